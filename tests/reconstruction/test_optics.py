"""CTF coefficients for stretched images, and what aberrations do to images of a known object."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest

from tests.reconstruction import aberrated_data as data
from tests.reconstruction.particle_data import SAMPLING, phantom
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.aberrations import true_frequencies
from xmipp_accel.numerics.ctf import ctf_at
from xmipp_accel.numerics.rotations import matrix_to_euler, random_matrices
from xmipp_accel.reconstruction.optics import ParticleOptics

BOX = 32
STRETCHES = [None, data.STRETCH, [[1.03, 0.02], [-0.04, 0.96]]]


def phase_of(coefficients, kx, ky):
    d0, d1, d2, s0, s1, s2, offset = np.asarray(coefficients, dtype=np.float64).T[..., None, None]
    k2, difference, cross = kx**2 + ky**2, kx**2 - ky**2, 2 * kx * ky
    return d0 * k2 + d1 * difference + d2 * cross - (s0 * k2 + s1 * difference + s2 * cross) ** 2 + offset


@pytest.mark.parametrize("magnification", STRETCHES)
def test_coefficients_give_the_ctf_at_the_frequencies_of_the_specimen(magnification):
    """The kernel's form against `numerics.ctf`; float32 coefficients of phases up to 100 rad."""
    defocus = np.array([5000.0, 12000.0, -8000.0])
    angles, phase_shifts, voltages, cs = [20.0, 100, -60], [0.0, 40, 90], [300.0, 200, 100], [2.7, 1.4, 0]
    optics = ParticleOptics(defocus, defocus - 900, angles, phase_shifts, voltages, cs, 0.07)
    ky, kx = np.meshgrid(np.arange(-20.0, 21), np.arange(21.0), indexing="ij")
    step = 1 / (40 * 2.0)
    coefficients = optics.phase_coefficients(3, step, magnification)
    assert coefficients.shape == (3, 7) and coefficients.dtype == np.float32
    x, y = true_frequencies(kx * step, ky * step, magnification)
    values = [np.broadcast_to(getattr(optics, field.name), 3) for field in dataclasses.fields(optics)]
    u, v, angle, phase_shift, voltage, cs, contrast = values
    expected = ctf_at(x * x + y * y, np.arctan2(y, x), u, v, angle, voltage, cs, contrast, phase_shift)
    np.testing.assert_allclose(np.sin(phase_of(coefficients, kx, ky)), expected, atol=3e-5)


def test_a_negative_spherical_aberration_is_refused():
    optics = dataclasses.replace(data.optics(2), cs=np.array([2.7, -0.01]))
    with pytest.raises(ParameterError, match=r"cs: expected a spherical aberration of 0 or more, found -0\.01"):
        optics.phase_coefficients(2, 0.01)


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(1)
    matrices, shifts = random_matrices(3, rng), rng.uniform(-1.5, 1.5, (3, 2))
    return matrices, shifts, data.optics(3)


def error_after_undoing(images, group, views, edge):
    """Of the undone transforms against CTF times the undistorted ones, relative, from 12 to 6.7 A."""
    matrices, shifts, optics = views
    found, ctf = data.undone(images, group, optics, shifts)
    kx, ky = data.frequencies(edge, SAMPLING)
    used = np.abs(np.hypot(kx, ky) * SAMPLING - 0.35) < 0.1
    truth = (ctf * data.specimen(phantom(), matrices, kx, ky, group))[:, used]
    return np.linalg.norm(found[:, used] - truth) / np.linalg.norm(truth)


def test_undoing_gives_back_the_undistorted_transform(views):
    """To rounding on a periodic field; images of 32 px lose what defocus carried over their edges (0.002)."""
    matrices, shifts, optics = views
    whole = data.aberrated_views(phantom(), matrices, 65, data.ABERRATED, optics, shifts, extent=1)
    assert error_after_undoing(whole, data.ABERRATED, views, 65) < 1e-12
    cut = data.aberrated_views(phantom(), matrices, BOX, data.ABERRATED, optics, shifts)
    assert error_after_undoing(cut, data.ABERRATED, views, BOX) < 0.005


def test_amplitude_contrast_without_aberrations_shows_the_phantom_itself(views):
    """Up to the spherical aberration, which turns the phase by less than 0.1 rad up to 9 A."""
    matrices, shifts, optics = views
    flat = dataclasses.replace(optics, defocus_u=np.zeros(3), defocus_v=np.zeros(3), amplitude_contrast=1.0)
    soft = phantom().blurred(4.0)
    found = data.aberrated_views(soft, matrices, BOX, OpticsGroup("plain", SAMPLING), flat, shifts)
    expected = soft.project(matrices, BOX, SAMPLING, -shifts)
    assert np.abs(found - expected).max() < 0.005 * expected.max()


PLAIN = dict(magnification=np.eye(2), beam_tilt=(0, 0), odd_zernike=(), even_zernike=())


@pytest.mark.parametrize("forgotten", PLAIN)
def test_each_aberration_matters(views, forgotten):
    matrices, shifts, optics = views
    images = data.aberrated_views(phantom(), matrices, BOX, data.ABERRATED, optics, shifts)
    wrong = dataclasses.replace(data.ABERRATED, **{forgotten: PLAIN[forgotten]})
    assert error_after_undoing(images, wrong, views, BOX) > 0.1


def test_a_stretched_projection_is_that_of_stretched_gaussians():
    """In real space ``M`` takes a feature at ``r`` to ``M^T r``: Gaussians of covariance ``sigma^2 M^T M``."""
    matrices, m = random_matrices(2, np.random.default_rng(4)), data.STRETCH @ [[1.0, 0.03], [-0.02, 1.0]]
    particles = phantom()
    kx, ky = data.frequencies(BOX + 1, SAMPLING)
    group = OpticsGroup("stretched", SAMPLING, magnification=m)
    transform = data.specimen(particles, matrices, kx, ky, group)
    found = np.fft.fftshift(np.fft.ifft2(transform).real, axes=(1, 2))
    axis = (np.arange(BOX + 1) - BOX // 2) * SAMPLING
    inverse = np.linalg.inv(m.T)
    x, y = np.einsum("ij,jab->iab", inverse, np.stack(np.meshgrid(axis, axis)))
    for image, matrix in zip(found, matrices):
        centre = matrix[:2] @ particles.centres.T
        far = (x[..., None] - centre[0]) ** 2 + (y[..., None] - centre[1]) ** 2
        density = np.exp(-0.5 * far / particles.sigmas**2) / (2 * np.pi * particles.sigmas**2)
        truth = density @ particles.masses / np.linalg.det(m) / SAMPLING
        assert np.abs(image - truth).max() < 0.005 * truth.max()


@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="RELION is not installed")
def test_relion_undoes_the_aberrations_that_the_file_tells(tmp_path):
    """Each forgotten aberration lowers the correlation of RELION's map with the phantom at 7 A."""
    count, rng = 80, np.random.default_rng(6)
    matrices, shifts, optics = random_matrices(count, rng), rng.uniform(-2, 2, (count, 2)), data.optics(count)
    images = data.aberrated_views(phantom(), matrices, BOX, data.ABERRATED, optics, shifts, extent=2)
    write_stack(tmp_path / "particles.mrcs", images.astype(np.float32), SAMPLING)
    rot, tilt, psi = matrix_to_euler(matrices)
    pose = dict(rot=rot, tilt=tilt, psi=psi, shift_y=shifts[:, 0], shift_x=shifts[:, 1], has_pose=True)
    particles = Particles(
        [str(tmp_path / "particles.mrcs")] * count, np.arange(count), **pose, **vars(optics), has_ctf=True
    )
    truth = np.fft.fftn(phantom().volume(BOX, SAMPLING))
    k = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[np.fft.fftfreq(BOX) * BOX] * 3)))
    used = np.abs(k - 13) < 2

    def agreement(group):
        write_particles(tmp_path / "p.star", dataclasses.replace(particles, groups={1: group}))
        command = ["relion_reconstruct", "--i", "p.star", "--o", "map.mrc", "--ctf"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        found = np.fft.fftn(read_volume(tmp_path / "map.mrc")[0])
        product = (found * truth.conj())[used].real.sum()
        return product / np.linalg.norm(found[used]) / np.linalg.norm(truth[used])

    right = agreement(data.ABERRATED)
    assert right > 0.97
    for name, plain in PLAIN.items():
        assert agreement(dataclasses.replace(data.ABERRATED, **{name: plain})) < right - 0.003, name
