"""The spreading of weights alone against its float64 oracle."""

import numba
import numpy as np
import pytest

from xmipp_accel.backend import CPU, to_host
from xmipp_accel.kernels.reference import weights as reference
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction.blob import blob_table
from xmipp_accel.reconstruction.symmetry import join_weights
from xmipp_accel.reconstruction.weights import insert_weights

RADIUS = 1.9
TABLE = blob_table(RADIUS, 0, 8.5)
IDENTITY = np.eye(3, dtype=int)[None]


def _problem(count, rows, columns, operators="c3", scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    slices = rng.normal(size=(count, rows, columns, 4)).astype(np.float32)
    slices[..., 2] = rng.uniform(0, 1, size=slices.shape[:3])
    slices[:, rows // 2, 0, 2] = 0  # a sample that a CTF zero silences
    matrices = scale * np.einsum("nij,gkj->ngik", random_matrices(count, rng), symmetry_matrices(operators))
    return slices, matrices.astype(np.float32), np.zeros(count, np.float32)


def _spread(device, slices, matrices, curvature, images, centre=None):
    """(sums of the device, sums of the oracle), each with its plane kx = 0 joined."""
    # At x = 0 rounding decides which of two opposite voxels takes a sample; joined, they are the same.
    centre = 2 * slices.shape[2] - 1 if centre is None else centre
    shape = (2 * centre + 1, 2 * centre + 1, centre + 1)
    expected = np.zeros(shape)
    reference.insert_weights(expected, 0, slices, matrices, curvature, images, TABLE, RADIUS)
    found = device.asarray(np.zeros(shape, np.float32))
    insert_weights(found, 0, device.asarray(slices), matrices, curvature, images, TABLE, RADIUS)
    return to_host(join_weights(found, IDENTITY)), join_weights(expected, IDENTITY)


def _agree(found, expected):
    assert expected.max() > 0.05
    # One entry of the table to the next changes the kernel by 3e-4 of its maximum at most.
    np.testing.assert_allclose(found, expected, atol=5e-4 * expected.max())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (5, 15, 8), (7, 14, 7), (2, 33, 17)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_weights_equal_the_oracle(device, shape, scale):
    slices, matrices, curvature = _problem(*shape, scale=scale)
    slices[:, 0, 0, 2] = 1  # of the smallest shape, too
    _agree(*_spread(device, slices, matrices, curvature, np.arange(shape[0])))


def test_curved_and_sheared_slices_equal_the_oracle(device):
    slices, matrices, curvature = _problem(4, 21, 11)
    matrices[:, :, :2] = np.einsum("ij,ngjk->ngik", [[1.02, 0.03], [-0.01, 0.97]], matrices[:, :, :2])
    curvature += np.array([0.01, -0.01, 0.03, 0.0], np.float32)
    found, expected = _spread(device, slices, matrices, curvature, np.arange(4))
    _agree(found, expected)
    flat = _spread(device, slices, matrices, 0 * curvature, np.arange(4))[1]
    assert np.abs(flat - expected).max() > 0.1 * expected.max()


def test_what_leaves_the_grid_is_dropped(device):
    slices, matrices, curvature = _problem(3, 15, 8)
    _agree(*_spread(device, slices, matrices, curvature, np.arange(3), centre=6))


def test_some_planes_are_those_of_the_whole(device):
    slices, matrices, curvature = _problem(3, 15, 8)
    whole, images = np.zeros((31, 31, 16)), np.arange(3)
    reference.insert_weights(whole, 0, slices, matrices, curvature, images, TABLE, RADIUS)
    for first, last in ((0, 9), (9, 30), (30, 31), (7, 7)):
        expected = np.zeros((last - first, 31, 16))
        reference.insert_weights(expected, first, slices, matrices, curvature, images, TABLE, RADIUS)
        np.testing.assert_array_equal(expected, whole[first:last])
        found = device.asarray(np.zeros(expected.shape, np.float32))
        insert_weights(found, first, device.asarray(slices), matrices, curvature, images, TABLE, RADIUS)
        # Rounding decides which of two opposite voxels of the plane x = 0 takes a sample.
        np.testing.assert_allclose(to_host(found)[..., 1:], expected[..., 1:], atol=5e-4 * whole.max())


def test_axis_aligned_planes_hit_whole_voxels(device):
    """Matrices of zeros and ones exercise the degenerate intervals and x = 0."""
    slices, _, curvature = _problem(24, 15, 8)
    matrices = 2 * symmetry_matrices("o")[:, None].astype(np.float32)
    _agree(*_spread(device, slices, matrices, curvature, np.arange(24)))


def test_only_the_listed_images_are_inserted(device):
    problem = _problem(6, 15, 8)
    _agree(*_spread(device, *problem, np.array([4, 1])))
    nothing, zeros = _spread(device, *problem, np.arange(0))
    assert not nothing.any() and not zeros.any()


def test_operators_that_keep_the_grid_need_no_insertion():
    group = symmetry_matrices("d2")
    slices, matrices, curvature = _problem(3, 15, 8, operators="d2")
    expected = _spread(CPU, slices, matrices, curvature, np.arange(3))[1]
    once = np.zeros(expected.shape)
    reference.insert_weights(once, 0, slices, matrices[:, :1], curvature, np.arange(3), TABLE, RADIUS)
    np.testing.assert_allclose(join_weights(once, np.rint(group).astype(int)), expected, atol=1e-3)


def test_threads_do_not_change_the_sums(device):
    if device.kind != "cpu":
        pytest.skip("the order of a GPU's sums varies")
    problem = _problem(9, 33, 17)
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            results.append(_spread(device, *problem, np.arange(9))[0])
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(*results)
