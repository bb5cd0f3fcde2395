"""Images of a thick specimen, whose two sidebands lie on spheres that bend away from each other.

Electrons of 2.5 kV and a particle of 28 A stand for 300 kV and one of 350 A: what counts is its size in depths of
focus, ``lambda k^2 D / 2``, here 0.86 at Nyquist of 2 A.
"""

import dataclasses

import numpy as np
import pytest

from tests.reconstruction.particle_data import CPU, FourierAccumulator, ReconstructFourierParameters, Views
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.numerics.aberrations import odd_phase
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction.optics import ParticleOptics
from xmipp_accel.simulate.phantom import Phantom

BOX, DIAMETER, VOLTAGE = 40, 28.0, 2.5
WAVELENGTH = 12.2643 / np.sqrt(2500 * (1 + 0.978466e-6 * 2500))
COUNT = 150


def atoms():
    """Sharp Gaussians within a ball, with power up to Nyquist of 1 A/px."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(24, 3))
    radii = DIAMETER / 2 * np.sqrt(rng.uniform(0.3, 1.0, 24))
    centres *= (radii / np.linalg.norm(centres, axis=1))[:, None]
    return Phantom(centres, np.full(24, 0.5), rng.uniform(0.6, 1.4, 24))


@pytest.fixture(scope="module")
def curved():
    """Transforms (n, 2 BOX, BOX + 1) of wide fields with both sidebands, their CTF, and what is known of them."""
    rng, edge = np.random.default_rng(2), 2 * BOX
    matrices, defocus = random_matrices(COUNT, rng), rng.uniform(50, 150, COUNT)
    angles, ones = rng.uniform(0, 180, COUNT), np.ones(COUNT)
    optics = ParticleOptics(defocus, defocus - 20, angles, 0 * ones, VOLTAGE * ones, 0 * ones, 0.1 * ones)
    ky, kx = np.meshgrid(np.fft.fftfreq(edge), np.fft.rfftfreq(edge), indexing="ij")
    k2, along = kx**2 + ky**2, np.arctan2(ky, kx) - np.deg2rad(angles)[:, None, None]
    height = (defocus - 10)[:, None, None] + 10 * np.cos(2 * along)
    chi = np.pi * WAVELENGTH * k2 * height + np.arcsin(0.1)
    flat = kx[..., None] * matrices[:, None, None, 0] + ky[..., None] * matrices[:, None, None, 1]
    bend = 0.5 * WAVELENGTH * k2[..., None] * matrices[:, None, None, 2]
    upper, lower = ([atoms().fourier(k) for k in flat + sign * bend] for sign in (1, -1))
    return (np.exp(1j * chi) * upper - np.exp(-1j * chi) * lower) / 2j, np.sin(chi), matrices, optics


def cut(transforms):
    """The middle (n, BOX, BOX) of the fields."""
    fields = np.fft.fftshift(np.fft.irfft2(transforms, s=(2 * BOX, 2 * BOX)), axes=(1, 2))
    first = BOX - BOX // 2
    return fields[:, first : first + BOX, first : first + BOX].astype(np.float32)


def agreement(images, matrices, optics, specimen=None, group=None, **choices):
    """Correlation with the specimen's transform from 2.9 to 2.1 A."""
    choices = {"ctf": "weight", "mask_diameter": DIAMETER, "halves": False, **choices}
    accumulator = FourierAccumulator(ReconstructFourierParameters(**choices), CPU, BOX, 1.0)
    accumulator.insert(images, Views(matrices, np.zeros((len(images), 2)), optics=optics), group)
    k = np.fft.fftfreq(BOX)
    k2 = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    band = (k2 > 0.35**2) & (k2 < 0.48**2)
    truth = (specimen or atoms()).volume(BOX, 1.0)
    a, b = (np.fft.fftn(volume)[band] for volume in (accumulator.finish().full, truth))
    return (a * b.conj()).real.sum() / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("method", ["trilinear", "blob"])
def test_the_curved_sphere_finds_what_the_plane_loses(curved, method):
    """The hand is that of RELION, whose default agrees better with such images than --reverse_curvature, too."""
    transforms, _, *known = curved
    images = cut(transforms)
    none, standard, reverse = (
        agreement(images, *known, method=method, ewald=ewald) for ewald in ("none", "standard", "reversed")
    )
    assert standard > 0.91
    assert none < standard - 0.05 and reverse < 0.3


def test_the_mirror_image_needs_the_reversed_sphere(curved):
    """Views of it have the same image axes, mirrored, and the opposite direction."""
    transforms, _, matrices, optics = curved
    mirrored = matrices * [1, 1, -1] * np.array([1, 1, -1])[:, None]
    np.testing.assert_allclose(np.linalg.det(mirrored), 1)
    specimen = dataclasses.replace(atoms(), centres=atoms().centres * [1, 1, -1])
    images = cut(transforms)
    standard, reverse = (
        agreement(images, mirrored, optics, specimen, ewald=ewald) for ewald in ("standard", "reversed")
    )
    assert reverse > 0.91 and standard < 0.3


def test_images_of_flipped_phases_are_told_apart(curved):
    transforms, transfer, *known = curved
    flipped = cut(transforms * np.sign(transfer))
    assert agreement(flipped, *known, ewald="standard", ctf="phase_flipped") > 0.88
    assert agreement(flipped, *known, ewald="standard", ctf="weight") < 0.3


def test_the_particle_s_diameter_tells_where_the_spheres_part(curved):
    """With too small a one, both are taken for one plane's samples, whose weights have zeros."""
    transforms, _, *known = curved
    images = cut(transforms)
    right, small = (agreement(images, *known, ewald="standard", mask_diameter=d) for d in (DIAMETER, 3.0))
    assert right > small + 0.015


def test_odd_aberrations_are_undone_on_both_spheres(curved):
    """Their phase is that of the image, whichever sideband it is taken for."""
    transforms, _, *known = curved
    group = OpticsGroup("tilted", 1.0, BOX, odd_zernike=(0.0, 0.0, 24.0))
    ky, kx = np.meshgrid(np.fft.fftfreq(2 * BOX), np.fft.rfftfreq(2 * BOX), indexing="ij")
    images = cut(transforms * np.exp(1j * odd_phase(kx, ky, group.odd_zernike)))
    assert agreement(images, *known, group=group, ewald="standard") > 0.9
    assert agreement(images, *known, ewald="standard") < 0.75


@pytest.mark.parametrize("choices", [dict(ctf="none"), dict(ctf="premultiplied"), dict(method="xmipp")])
def test_what_has_no_two_sidebands_is_refused(choices):
    with pytest.raises(ParameterError, match="ewald: expected images with a CTF that is not corrected"):
        ReconstructFourierParameters(ewald="standard", **choices)
