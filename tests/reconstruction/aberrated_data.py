"""Exact images of a phantom through a microscope with aberrations, and the formula that undoes them, in float64.

The wave that a weak-phase object scatters gets the whole aberration function, even and odd part in one, and
interferes with the unscattered one. That this is a CTF times ``exp(i odd)`` is what the package assumes.
"""

import numpy as np

from tests.reconstruction.particle_data import SAMPLING
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.numerics.aberrations import even_phase, odd_phase, true_frequencies
from xmipp_accel.reconstruction.optics import ParticleOptics

# 3 % between the axes, turned by 33 degrees; at 6 A the beam tilt makes 1.5 rad, the Zernike terms 0.5 to 1 rad.
TURN = np.array([[np.cos(0.58), -np.sin(0.58)], [np.sin(0.58), np.cos(0.58)]])
STRETCH = TURN @ np.diag([1.02, 0.99]) @ TURN.T
ABERRATED = OpticsGroup(
    name="aberrated",
    sampling_rate=SAMPLING,
    magnification=STRETCH,
    beam_tilt=(4.0, -3.0),
    odd_zernike=(0.0, 0.0, 150.0, 0.0, 0.0, -90.0),
    even_zernike=(0.3, 4.0, 0.0, -6.0, 900.0, 0.0, 0.0, 0.0, -600.0),
)
VOLTAGE, CS = 300.0, 2.7


def optics(count, seed=5, defocus=(3000.0, 4500.0)):
    """`ParticleOptics` of small defocus, whose rings stay within small boxes."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(*defocus, count)
    angle = rng.uniform(0, 180, count)
    return ParticleOptics(u, u - 300, angle, np.zeros(count), np.full(count, VOLTAGE), np.full(count, CS), 0.1)


def frequencies(edge, rate):
    """(kx, ky) in 1/A of the samples of ``fft2``."""
    axis = np.fft.fftfreq(edge, rate)
    return np.meshgrid(axis, axis)


def chi(kx, ky, particles, magnification):
    """Phase of the CTF (n, ...) of ``sin(chi)``, with the defocus as a matrix at the specimen's frequency."""
    x, y = true_frequencies(kx, ky, magnification)
    p = particles
    angle, wavelength = (
        np.deg2rad(p.defocus_angle)[:, None, None],
        12.2643 / np.sqrt(3e5 * (1 + 0.978466e-6 * 3e5)),
    )
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    defocus = p.defocus_u[:, None, None] * along**2 + p.defocus_v[:, None, None] * across**2
    spherical = 0.5 * np.pi * CS * 1e7 * wavelength**3 * (x**2 + y**2) ** 2
    return np.pi * wavelength * defocus - spherical + np.arcsin(p.amplitude_contrast)


def specimen(phantom, matrices, kx, ky, group):
    """Undistorted transforms (n, ...) of `Phantom.project` at the specimen's frequencies of image samples."""
    x, y = true_frequencies(kx, ky, group.magnification)
    plane = np.stack([x, y], axis=-1)
    return np.stack([phantom.fourier(plane @ matrix[:2]) for matrix in matrices]) / group.sampling_rate**3


def aberrated_views(phantom, matrices, box, group, particles, shifts=0.0, extent=4):
    """Images (n, box, box) of an optics group, cut from the middle of a field `extent` times as wide.

    `shifts` (n, 2) are those that centre the images. An `extent` of 1 leaves the field uncut and periodic.
    """
    edge = box if extent == 1 else extent * box + 1  # odd: each frequency has its opposite
    kx, ky = frequencies(edge, group.sampling_rate)
    odd = odd_phase(kx, ky, group.odd_zernike, group.beam_tilt, VOLTAGE, CS, group.magnification)
    even = even_phase(kx, ky, group.even_zernike, group.magnification)
    aberration = chi(kx, ky, particles, group.magnification) - even - odd
    y, x = np.moveaxis(np.broadcast_to(shifts, (len(matrices), 2)) * group.sampling_rate, 1, 0)[..., None, None]
    place = 2j * np.pi * (kx * x + ky * y)
    wave = np.fft.ifft2(specimen(phantom, matrices, kx, ky, group) * np.exp(place - 1j * aberration))
    field = np.fft.fftshift(-wave.imag, axes=(1, 2))
    first = edge // 2 - box // 2
    return field[:, first : first + box, first : first + box]


def undone(images, group, particles, shifts=0.0):
    """Transforms (n, box, box) of centred images without their odd phases, and their CTF: ``CTF P(M k)``, CTF."""
    box = images.shape[1]
    kx, ky = frequencies(box, group.sampling_rate)
    y, x = np.moveaxis(np.broadcast_to(shifts, (len(images), 2)) * group.sampling_rate, 1, 0)[..., None, None]
    odd = odd_phase(kx, ky, group.odd_zernike, group.beam_tilt, VOLTAGE, CS, group.magnification)
    centred = np.fft.fft2(np.roll(images, -(box // 2), axis=(1, 2))) * np.exp(-2j * np.pi * (kx * x + ky * y))
    even = even_phase(kx, ky, group.even_zernike, group.magnification)
    return centred * np.exp(-1j * odd), np.sin(chi(kx, ky, particles, group.magnification) - even)
