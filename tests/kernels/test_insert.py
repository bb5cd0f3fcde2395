"""The insertion kernels against their float64 oracle.

Tolerances: float32 sums of some dozens of terms of size 1 and positions rounded to float32 agree to 2e-5 of the
largest sum; the nearest-voxel kernel is discontinuous, so its GPU twin may move single samples.
"""

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference import insert as reference
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.blob import blob_table
from xmipp_accel.reconstruction.symmetry import complete_plane

SHAPES = [(1, 3, 2), (5, 15, 8), (7, 14, 7), (3, 22, 11), (2, 33, 17)]


def _problem(count, rows, columns, operators="c1", seed=0):
    rng = np.random.default_rng(seed)
    slices = np.zeros((count, rows, columns, 4), np.float32)
    slices[..., :2] = rng.normal(size=slices.shape[:3] + (2,))
    slices[..., 2] = rng.uniform(0, 1, size=slices.shape[:3])
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    slices[:, ky**2 + kx**2 > (columns - 1) ** 2] = 0
    slices[:, rows // 2, 0] = 0  # a sample that a CTF zero silences
    matrices = np.einsum("nij,gkj->ngik", random_matrices(count, rng), symmetry_matrices(operators))
    return slices, matrices


def _accumulator(columns, dtype):
    return np.zeros((2 * columns + 1, 2 * columns + 1, columns + 1, 4), dtype)


def _compare(device, name, slices, matrices, images, *extra):
    expected = _accumulator(slices.shape[2], np.float64)
    getattr(reference, name)(expected, slices, matrices, images, *extra)
    found = device.asarray(_accumulator(slices.shape[2], np.float32))
    getattr(insert, name)(found, device.asarray(slices), matrices, images, *extra)
    found = to_host(found)
    # At x = 0 rounding decides which of two opposite voxels takes a sample; joined, they are the same.
    complete_plane(found)
    complete_plane(expected)
    return found, expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operators", ["c1", "d3"])
def test_trilinear_equals_the_oracle(device, shape, operators):
    slices, matrices = _problem(*shape, operators)
    found, expected = _compare(device, "insert_trilinear", slices, matrices, np.arange(shape[0]))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1.9, 1.0, 2.5])
def test_blob_equals_the_oracle(device, shape, radius):
    slices, matrices = _problem(*shape, "c3")
    table = blob_table(radius, 0, 15.0)
    found, expected = _compare(device, "insert_blob", slices, matrices, np.arange(shape[0]), table, radius)
    # One entry of the table to the next changes the kernel by 3e-4 of its maximum at most.
    np.testing.assert_allclose(found, expected, atol=5e-4 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_equals_the_oracle(device, shape):
    slices, matrices = _problem(*shape, "c3")
    found, expected = _compare(device, "insert_nearest", slices, matrices, np.arange(shape[0]))
    differing = np.abs(found - expected).max(axis=-1) > 1e-4
    assert differing.mean() <= (0 if device.kind == "cpu" else 1e-3)


def test_only_the_listed_images_are_inserted(device):
    slices, matrices = _problem(6, 15, 8)
    chosen = np.array([4, 1])
    found, expected = _compare(device, "insert_trilinear", slices, matrices, chosen)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    nothing, zeros = _compare(device, "insert_trilinear", slices, matrices, chosen[:0])
    assert not nothing.any() and not zeros.any()


def test_axis_aligned_planes_hit_whole_voxels(device):
    """Matrices of zeros and ones exercise the degenerate intervals and x = 0."""
    slices, _ = _problem(24, 15, 8)
    matrices = symmetry_matrices("o")[:, None]
    for name, extra in (("insert_trilinear", ()), ("insert_blob", (blob_table(1.9, 0, 15.0), 1.9))):
        found, expected = _compare(device, name, slices, matrices, np.arange(24), *extra)
        np.testing.assert_allclose(found, expected, atol=5e-4 * np.abs(expected).max())


def test_threads_do_not_change_the_sums():
    import numba

    slices, matrices = _problem(9, 33, 17)
    results = []
    before = numba.get_num_threads()
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            sums = _accumulator(17, np.float32)
            insert.insert_trilinear(sums, slices, matrices, np.arange(9))
            insert.insert_nearest(sums, slices, matrices, np.arange(9))
            results.append(sums)
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("keep_outside", [False, True])
@pytest.mark.parametrize("rows", [13, 12])
def test_prepare_equals_the_oracle(device, mode, keep_outside, rows):
    rng = np.random.default_rng(3)
    columns = rows // 2 + rows % 2
    transforms = (rng.normal(size=(3, 14, columns)) + 1j * rng.normal(size=(3, 14, columns))).astype(np.complex64)
    ramp_y = np.exp(1j * rng.normal(size=(3, rows))).astype(np.complex64)
    ramp_x = np.exp(1j * rng.normal(size=(3, columns))).astype(np.complex64)
    optics = rng.uniform(-1, 1, size=(3, 5)).astype(np.float32) * [0.3, 0.1, 0.1, 1e-3, 1.0]
    optics = optics.astype(np.float32)
    weights = np.array([1.0, 0.5, 2.0], np.float32)
    arrays = (transforms, ramp_y, ramp_x, optics, weights)
    expected = reference.prepare_slices(*arrays, rows, 30.0, mode, keep_outside)
    found = insert.prepare_slices(*(device.asarray(a) for a in arrays), rows, 30.0, mode, keep_outside)
    np.testing.assert_allclose(to_host(found), expected, atol=2e-5)
