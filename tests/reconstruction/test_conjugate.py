"""Least-squares maps: the operators against direct sums, the maps against an exact phantom."""

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, in_band, phantom, reconstruct, views
from xmipp_accel.backend import CPU, good_fft_size, to_host
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.fsc import fourier_shell_correlation, soft_sphere
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction.conjugate import BLOB, add_prior, solve
from xmipp_accel.reconstruction.geometry import VolumeGrid
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.inversion import LeastSquares
from xmipp_accel.reconstruction.optics import ParticleOptics

IDENTITY = np.eye(3, dtype=int)[None]


def _records(images, ctf=None, radius=None):
    """Slices (n, rows, columns, 4) of padded images up to a radius, each pair of opposite samples once."""
    box = images.shape[1]
    period = good_fft_size(2 * box)
    radius = period // 2 if radius is None else radius
    ky, kx = np.meshgrid(np.arange(-radius, radius + 1), np.arange(radius + 1), indexing="ij")
    once = np.where(ky**2 + kx**2 > radius**2, 0, np.where(kx > 0, 1, np.where(ky > 0, 1, 0.5 * (ky == 0))))
    ctf = 1.0 if ctf is None else ctf[:, ky % period, kx]
    values = np.fft.rfft2(images, s=(period, period))[:, ky % period, kx]
    values = values * np.exp(2j * np.pi * (ky + kx) * (box // 2) / period) * ctf * once
    weights = np.broadcast_to(once * ctf**2, values.shape)
    return np.stack([values.real, values.imag, weights, 0 * weights], axis=-1).astype(np.float32)


def _operators(device, slices, matrices, box, curvature=0.0):
    """(A* W F, spectrum of A* W A, band)."""
    radius, period = slices.shape[2] - 1, good_fft_size(2 * box)
    grid = VolumeGrid(box, SAMPLING, period, radius, radius + 2)
    inversion = LeastSquares(Gridding("blob", False, *BLOB, ""), grid, IDENTITY, wiener=0.0, iterations=1)
    part = [device.asarray(np.zeros(shape, np.float32)) for shape in inversion.shapes]
    matrices, images = matrices[:, None].astype(np.float32), np.arange(len(slices))
    curvature = np.full(len(slices), curvature, np.float32)
    whole = inversion.bands((0, grid.shape[0]))
    reach = radius + BLOB[0]
    inversion.insert(part, whole, device.asarray(slices), matrices, curvature, images, reach)
    equations = inversion.join(part)
    return equations.right, equations.spectrum, radius * box / period


def _refine(images, matrices, device=CPU, ctf=None, radius=None, iterations=12, prior=None, support=None):
    """(map, residuals) on the host."""
    box = images.shape[1]
    right, spectrum, band = _operators(device, _records(images, ctf, radius), matrices, box)
    if prior is not None:
        add_prior(spectrum, box, band, prior)
    found, residuals = solve(right, spectrum, band, iterations, support)
    return to_host(found), residuals


def _frequencies(slices, matrices, curvature=0.0):
    """Voxel positions and records of all samples that count, with their mates."""
    rows, columns = slices.shape[1:3]
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    steps = np.stack([kx, ky, curvature * (kx**2 + ky**2)], axis=-1).reshape(-1, 3)
    k = (steps @ matrices).reshape(-1, 3)
    records = slices.reshape(-1, 4).astype(np.float64)
    values, weights = records[:, 0] + 1j * records[:, 1], records[:, 2]
    return np.concatenate([k, -k]), np.concatenate([values, values.conj()]), np.concatenate([weights, weights])


def _sum_waves(k, values, size, period):
    """``sum_j v_j exp(2 pi i k_j r / period)`` at the voxels of a cube, float64."""
    axis = np.arange(size) - size // 2
    x, y, z = (np.exp(2j * np.pi * np.outer(k[:, a], axis) / period) for a in range(3))
    return np.einsum("jz,jyx->zyx", z * values[:, None], y[:, :, None] * x[:, None, :], optimize=True).real


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("band, curvature", [("whole", 0.0), ("inner", 0.0), ("inner", 0.05)])
def test_operators_are_the_sums_over_samples(device, box, band, curvature):
    rng = np.random.default_rng(box)
    images, matrices = rng.normal(size=(3, box, box)), random_matrices(3, rng)
    period = good_fft_size(2 * box)
    ctf = ctf_image(period, SAMPLING, np.array([9000.0, 12000.0, 15000.0]))
    slices = _records(images, ctf, None if band == "whole" else 5)
    right, spectrum, _ = _operators(device, slices, matrices, box, curvature)
    k, values, weights = _frequencies(slices, matrices, curvature)
    # The blob lets 0.1 to 0.4 % alias; what is not folded at Nyquist makes several.
    assert _difference(to_host(right), _sum_waves(k, values, box, period)) < 6e-3
    kernel = np.fft.fftshift(np.fft.irfftn(to_host(spectrum)))
    size = len(kernel)
    assert size >= 2 * box
    inner = (slice(1, None),) * 3  # no two voxels are half of the edge apart
    assert _difference(kernel[inner], _sum_waves(k, weights, size, period)[inner]) < 6e-3


def _difference(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("masked", [False, True])
def test_solution_is_that_of_the_dense_system(masked):
    box, size = 5, 10
    rng = np.random.default_rng(2)
    spectrum = np.abs(np.fft.rfftn(rng.normal(size=(size,) * 3))).astype(np.float32) + 5
    kernel = np.fft.irfftn(spectrum)
    voxels = np.stack(np.meshgrid(*[np.arange(box)] * 3, indexing="ij"), -1).reshape(-1, 3)
    dense = kernel[tuple(np.moveaxis(voxels[:, None] - voxels[None], -1, 0))]
    right = rng.normal(size=(box,) * 3).astype(np.float32)
    inside = rng.uniform(size=right.size) < 0.6 if masked else np.ones(right.size, bool)
    expected = np.zeros(right.size)
    expected[inside] = np.linalg.solve(dense[np.ix_(inside, inside)], right.ravel()[inside])
    support = inside.reshape(right.shape).astype(np.float32) if masked else None
    found, residuals = solve(right, spectrum, 10, 60, support)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-3 * np.abs(expected).max())
    image = np.where(inside, dense @ found.ravel().astype(np.float64), 0)
    assert residuals[-1] == pytest.approx(_difference(image, np.where(inside, right.ravel(), 0)), abs=1e-5)


def test_no_data_make_an_empty_map():
    found, residuals = solve(np.zeros((4,) * 3, np.float32), np.zeros((8, 8, 5), np.float32) + 1, 2, 5)
    assert not found.any() and residuals == []


def test_prior_is_a_fraction_of_the_shell_mean(device):
    spectrum = device.asarray(np.full((12, 12, 7), 2.0, np.float32))
    add_prior(spectrum, 6, 3.0, [0.0, 0.5, 1.5, 3.0])
    # Shells of twice the box are half as wide; those beyond the last whole one of the band are like it.
    expected = 2 + 2 * np.array([0, 0.25, 0.5, 1.0, 1.5, 1.5, 1.5])
    np.testing.assert_allclose(to_host(spectrum)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("box", [32, 27])
def test_map_is_ten_times_nearer_to_the_phantom(device, box):
    images, matrices, shifts = views(500, box)
    truth = phantom().volume(box, SAMPLING)
    found, residuals = _refine(images, matrices, device)
    error, scale = in_band(found, truth)
    direct = in_band(reconstruct(images, matrices, shifts, device), truth)[0]
    # Measured 0.0006 against 0.016 and 0.020.
    assert error < 0.0015
    assert error < 0.1 * direct
    assert abs(scale - 1) < 1e-3
    assert residuals[-1] < 1e-4


def test_few_iterations_suffice_and_no_more_are_made():
    images, matrices, _ = views(300, 32)
    found, residuals = _refine(images, matrices, iterations=6)
    assert len(residuals) == 6 and residuals[-1] < 2e-3
    assert in_band(found, phantom().volume(32, SAMPLING))[0] < 0.005
    assert len(_refine(images, matrices, iterations=80)[1]) < 20


def test_density_is_flat_from_the_core_to_the_rim():
    """Direct maps leave 1 to 5 % between the two."""
    box = 32
    images, matrices, _ = views(500, box)
    truth = phantom().volume(box, SAMPLING)
    found, _ = _refine(images, matrices)
    core = soft_sphere(box, 4, 1) > 0.5
    rim = (soft_sphere(box, 12, 1) > 0.5) & (soft_sphere(box, 7, 1) < 0.5)
    gains = [(found * truth)[part].sum() / (truth * truth)[part].sum() for part in (core, rim)]
    assert abs(gains[1] / gains[0] - 1) < 0.005


def test_support_fills_gaps_between_few_views():
    images, matrices, _ = views(40, 32)
    truth = phantom().volume(32, SAMPLING)
    errors = [
        in_band(_refine(images, matrices, support=support)[0], truth)[0]
        for support in (None, soft_sphere(32, 12, 3))
    ]
    assert errors[1] < 0.5 * errors[0]


def test_regularisation_calms_what_few_noisy_views_leave_open():
    images, matrices, _ = views(40, 32)
    images = images + images.std() * np.random.default_rng(8).normal(size=images.shape)
    truth = phantom().volume(32, SAMPLING)
    errors = [in_band(_refine(images, matrices, prior=prior)[0], truth)[0] for prior in (0.0, 0.3)]
    assert errors[1] < 0.95 * errors[0]


def test_noisy_map_with_ctf_is_as_good_as_the_direct_one():
    rng = np.random.default_rng(5)
    images, matrices, shifts = views(600, 32)
    truth = phantom().volume(32, SAMPLING)
    optics = ParticleOptics(rng.uniform(8000, 20000, 600), 12000.0, 30.0, 0.0, 300.0, 2.7, 0.1)
    columns = optics.defocus_u, np.full(600, 12000.0), np.full(600, 30.0)
    seen = np.fft.irfft2(np.fft.rfft2(images, s=(64, 64)) * ctf_image(64, SAMPLING, *columns))[:, :32, :32]
    seen = (seen + np.sqrt(10) * seen.std() * rng.normal(size=seen.shape)).astype(np.float32)
    refined, _ = _refine(seen, matrices, ctf=ctf_image(64, SAMPLING, *columns))
    direct = reconstruct(seen, matrices, shifts, ctf="weight", optics=optics)
    found, expected = (fourier_shell_correlation(x, truth)[1:15] for x in (refined, direct))
    assert expected.min() < 0.8 < expected.max()
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found.mean() > expected.mean() - 0.003
