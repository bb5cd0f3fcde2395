import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.numerics.ctf import ctf_at, ctf_image, electron_wavelength


def ctf_of_one_frequency(kx, ky, defocus_u, defocus_v, angle, voltage, cs, amplitude_contrast, phase_shift):
    """Same physics, written as wave aberration of a defocus matrix instead of an angular cosine."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    along, across = c * kx + s * ky, -s * kx + c * ky
    volts = voltage * 1e3
    wavelength = 12.2643 / np.sqrt(volts + 0.978466e-6 * volts**2)
    defocus_k2 = defocus_u * along**2 + defocus_v * across**2
    chi = np.pi * wavelength * defocus_k2 - np.pi / 2 * cs * 1e7 * wavelength**3 * (kx**2 + ky**2) ** 2
    phase = chi + np.deg2rad(phase_shift)
    return np.sqrt(1 - amplitude_contrast**2) * np.sin(phase) + amplitude_contrast * np.cos(phase)


@pytest.mark.parametrize("size", [16, 15, (6, 11), 1])
@pytest.mark.parametrize(
    "optics",
    [
        (15000.0, 15000.0, 0.0, 300.0, 2.7, 0.1, 0.0),
        (21000.0, 17000.0, 33.0, 200.0, 2.0, 0.07, 0.0),
        (8000.0, 9000.0, -70.0, 100.0, 0.01, 1.0, 90.0),
    ],
)
def test_image_equals_independent_formula(size, optics, device):
    ny, nx = (size, size) if np.ndim(size) == 0 else size
    found = to_host(ctf_image(size, 2.5, *optics, xp=device.xp))
    assert found.shape == (ny, nx // 2 + 1) and found.dtype == np.float32
    for iy, ky in enumerate(np.fft.fftfreq(ny, 2.5)):
        for ix, kx in enumerate(np.fft.rfftfreq(nx, 2.5)):
            assert found[iy, ix] == pytest.approx(ctf_of_one_frequency(kx, ky, *optics), abs=2e-6)


def test_particles_are_a_leading_axis(device):
    defocus_u, defocus_v, angle = np.array([[9000.0, 8000.0, 12.0], [20000.0, 21000.0, -40.0]]).T
    stack = to_host(ctf_image(9, 3.0, defocus_u, defocus_v, angle, xp=device.xp))
    assert stack.shape == (2, 9, 5)
    for i in range(2):
        np.testing.assert_array_equal(
            stack[i], to_host(ctf_image(9, 3.0, defocus_u[i], defocus_v[i], angle[i], xp=device.xp))
        )
    assert ctf_image(9, 3.0, np.empty(0)).shape == (0, 9, 5)


def test_sign_is_positive_at_low_frequency_under_focus():
    image = ctf_image(64, 2.0, 10000.0)
    assert image[0, 0] == pytest.approx(0.1) and image[0, 5] > 0.3


def test_sample_positions_and_the_grid_agree():
    ky, kx = np.fft.fftfreq(8, 1.5)[:, None], np.fft.rfftfreq(8, 1.5)[None]
    at = ctf_at(kx**2 + ky**2, np.arctan2(ky, kx), [12000.0], [11000.0], [20.0])
    np.testing.assert_array_equal(at[0], ctf_image(8, 1.5, 12000.0, 11000.0, 20.0))


def test_wavelength_at_300_kv():
    assert electron_wavelength(300.0) == pytest.approx(0.019687, rel=1e-4)
