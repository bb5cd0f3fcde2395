"""The search among class averages and the refinement of poses against their float64 oracles."""

import dataclasses

import numpy as np
import pytest

from xmipp_accel.backend import CPU, to_host
from xmipp_accel.kernels.reference.polar_search import polar_search
from xmipp_accel.kernels.reference.pose_refine import refine_pair
from xmipp_accel.particle_alignment import classify2d_refine, classify2d_scan, polar
from xmipp_accel.particle_alignment.classify2d_model import PreparedParticles
from xmipp_accel.particle_alignment.classify2d_refine import aligned_harmonics, refine_pairs
from xmipp_accel.particle_alignment.classify2d_scan import make_scan
from xmipp_accel.particle_alignment.classify2d_search import SearchGrid


@pytest.fixture(params=["kernels", "array code"])
def way(request, monkeypatch, device):
    """Also the code for GPUs where there is none."""
    if request.param == "array code" and device is CPU:
        monkeypatch.setattr(classify2d_scan, "_KernelScan", classify2d_scan._ArrayScan)
        monkeypatch.setattr(classify2d_refine, "_on_host", classify2d_refine._in_arrays)
        monkeypatch.setattr(classify2d_refine, "_aligned_on_host", classify2d_refine._aligned_in_arrays)


def _complex(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def _space(rings, harmonics, shifts, step=1.0, max_shift=5.0):
    return SearchGrid(rings, harmonics, 4 * harmonics, np.zeros((shifts, 2)), step, max_shift)


@pytest.mark.parametrize(
    "particles, classes, sets, shifts, rings, harmonics",
    [(1, 1, 1, 1, 1, 4), (3, 5, 2, 9, 5, 7), (17, 7, 1, 9, 6, 13), (35, 3, 2, 69, 4, 8), (2, 1, 1, 131, 3, 5)],
)
def test_scan_equals_the_oracle(device, way, particles, classes, sets, shifts, rings, harmonics):
    rng = np.random.default_rng(0)
    own, templates = (
        _complex(rng, particles, rings, harmonics),
        _complex(rng, sets, shifts, classes, rings, harmonics),
    )
    offsets = rng.normal(size=(particles, classes)).astype(np.float32)
    space, count = _space(rings, harmonics, shifts), min(2, classes)
    scan = make_scan(device.asarray(templates), space)
    found = scan.best(device.asarray(own), device.asarray(offsets), count)
    label, mirrored, shift, turn, score = (to_host(array) for array in found)
    oracle = [polar_search(own, kind.swapaxes(0, 1), space.n_turns) for kind in templates]
    # One oracle finds the particles of each class; the first axis is that of mirroring.
    best, angle, where = (np.stack(arrays).transpose(2, 1, 0) for arrays in zip(*oracle))
    expected = -np.sort(-(best.max(axis=2) + offsets), axis=1)[:, :count]
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4 * np.abs(best).max())
    rows = np.arange(particles)[:, None]
    assert (best.argmax(axis=2)[rows, label] == mirrored).mean() > 0.97
    same = (angle[rows, label, mirrored * 1] == turn % space.n_turns) & (where[rows, label, mirrored * 1] == shift)
    assert same.mean() > 0.97


def _pairs(rng, grid, count, noise):
    """Templates, samples of particles that are like them, and the poses where they are."""
    images = rng.normal(size=(3, grid.box, grid.box)).astype(np.float32) * polar.soft_circle(
        grid.box, grid.box * 0.3
    )
    templates = polar.angular_coefficients(polar.polar_samples(images, grid), grid)
    label, mirrored = rng.integers(0, 3, count), rng.random(count) < 0.5
    theta, shift = rng.uniform(-3, 3, count), rng.uniform(-2, 2, (count, 2))
    chosen = np.where(mirrored[:, None, None], templates[label].conj(), templates[label])
    turned = chosen * np.exp(-1j * theta[:, None] * np.arange(grid.n_harmonics))[:, None]
    samples = polar.shift_samples(polar.samples_from_coefficients(turned.astype(np.complex64), grid), -shift, grid)
    samples = samples + noise * np.abs(samples).mean() * _complex(rng, *samples.shape)
    return templates, samples.astype(np.complex64), label, mirrored, theta, shift


@pytest.mark.parametrize("box, rings, rounds", [(16, 1, 1), (20, 5, 2), (31, 11, 1), (64, 22, 2), (128, 31, 1)])
def test_refinement_equals_the_oracle(device, way, box, rings, rounds):
    rng = np.random.default_rng(1)
    grid = polar.polar_grid(box, rings, 0.35 * box, 3.0)
    templates, samples, label, mirrored, theta, shift = _pairs(rng, grid, 19, 0.3)
    space = _space(rings, grid.n_harmonics, 1, box / (3.0 * rings), 2.2)
    theta = (theta + rng.uniform(-0.4, 0.4, 19) * 2 * np.pi / space.n_turns).astype(np.float32)
    shift = (shift + rng.uniform(-0.3, 0.3, (19, 2)) * space.step).astype(np.float32)
    rows = rng.permutation(19)
    particles = PreparedParticles(grid, device.asarray(samples[np.argsort(rows)]), None, None, None, None)
    arrays = [device.asarray(array) for array in (rows, templates, label, mirrored, theta, shift)]
    found = [to_host(array) for array in refine_pairs(particles, *arrays, space, rounds)]
    steps = space.step / 3, np.pi / 2 / space.n_turns, 3.0, space.max_shift
    for i in range(19):
        template = templates[label[i]].conj() if mirrored[i] else templates[label[i]]
        expected = refine_pair(samples[i], template, theta[i], shift[i], box, steps, rounds)
        # Two nearly equal scores may change places in float32; the parabolas through them are nearly the same.
        np.testing.assert_allclose(found[0][i], expected[0], atol=0.02 * steps[1])
        np.testing.assert_allclose(found[1][i], expected[1], atol=0.02 * steps[0])
        np.testing.assert_allclose(found[2][i], expected[2], rtol=1e-3)


@pytest.mark.parametrize("box, rings, harmonics", [(16, 1, 3), (20, 5, 9), (64, 22, 71), (128, 31, 40)])
def test_aligned_harmonics_are_those_of_the_moved_samples(device, way, box, rings, harmonics):
    rng = np.random.default_rng(2)
    grid = dataclasses.replace(polar.polar_grid(box, rings, 0.45 * box, 3.0), n_harmonics=harmonics)
    samples = _complex(rng, 5, rings, len(grid.angles))
    rows, mirrored = rng.integers(0, 5, 21), rng.random(21) < 0.5
    theta, shift = rng.uniform(-3, 3, 21).astype(np.float32), rng.uniform(-4, 4, (21, 2)).astype(np.float32)
    arrays = [device.asarray(array) for array in (samples, rows, theta, shift, mirrored)]
    found = to_host(aligned_harmonics(*arrays, grid, budget=1 << 18))
    moved = samples[rows] * polar.shift_phases(grid, shift)
    circle = np.concatenate([moved, moved.conj()], axis=2).astype(np.complex128)
    q = np.arange(harmonics)
    expected = circle @ np.exp(-1j * np.outer(np.arange(grid.n_angles) * 2 * np.pi / grid.n_angles, q))
    expected = expected / grid.n_angles * np.exp(1j * theta[:, None] * q)[:, None]
    expected = np.where(mirrored[:, None, None], expected.conj(), expected)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
