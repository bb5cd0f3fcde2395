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

SHAPES = [(1, 3, 2), (5, 15, 8), (7, 14, 7), (3, 22, 11), (2, 33, 17), (0, 5, 3)]


def _ways(device, *ways):
    """The CPU has one way of insertion."""
    return ways if device.kind == "cuda" else ways[:1]


def _problem(count, rows, columns, operators="c1", seed=0, plain=True):
    """Records, matrices and curvatures; if not `plain`, with steps of other lengths that are not orthogonal."""
    rng = np.random.default_rng(seed)
    slices = np.zeros((count, rows, columns, 4), np.float32)
    slices[..., :2] = rng.normal(size=slices.shape[:3] + (2,))
    slices[..., 2] = rng.uniform(0, 1, size=slices.shape[:3])
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    slices[:, ky**2 + kx**2 > (columns - 1) ** 2] = 0
    slices[:, rows // 2, 0] = 0  # a sample that a CTF zero silences
    matrices = np.einsum("nij,gkj->ngik", random_matrices(count + 1, rng)[:count], symmetry_matrices(operators))
    if plain:
        return slices, matrices, np.zeros(count, np.float32)
    matrices[:, :, :2] = np.array([[0.8, 0.05], [-0.1, 0.9]]) @ matrices[:, :, :2]
    return slices, matrices, rng.uniform(-1, 1, count).astype(np.float32) / columns**2


def _sums(columns, dtype, first=0, last=None):
    centre = columns + 2
    return np.zeros((2 * centre + 1, 2 * centre + 1, centre + 1, 4), dtype)[first:last]


def _compare(device, name, slices, *arguments, first=0, last=None, **how):
    expected, found = (_sums(slices.shape[2], kind, first, last) for kind in (np.float64, np.float32))
    getattr(reference, name)(expected, first, slices, *arguments)
    found = device.asarray(found)
    getattr(insert, name)(found, first, device.asarray(slices), *arguments, **how)
    found = to_host(found)
    if first == 0 and last is None:
        # At x = 0 rounding decides which of two opposite voxels takes a sample; joined, they are the same.
        complete_plane(found)
        complete_plane(expected)
    return found, expected


def _agree(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, atol=tolerance * max(np.abs(expected).max(), 1e-9))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operators", ["c1", "d3"])
def test_trilinear_equals_the_oracle(device, shape, operators, plain):
    slices, matrices, curvature = _problem(*shape, operators, plain=plain)
    images = np.arange(shape[0])
    for how in _ways(device, "scatter", "columns", "bricks"):
        found, expected = _compare(device, "insert_trilinear", slices, matrices, curvature, images, how=how)
        _agree(found, expected, 2e-5)
    assert shape[0] == 0 or np.abs(expected).max() > 0.4


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1.9, 1.0, 2.5])
def test_blob_equals_the_oracle(device, shape, radius, plain):
    slices, matrices, curvature = _problem(*shape, "c3", plain=plain)
    kernel = blob_table(radius, 0, 15.0), radius, shape[2] + 0.7
    images = np.arange(shape[0])
    for how in _ways(device, "columns", "bricks"):
        found, expected = _compare(device, "insert_blob", slices, matrices, curvature, images, *kernel, how=how)
        # One entry of the table to the next changes the kernel by 3e-4 of its maximum at most.
        _agree(found, expected, 5e-4)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_equals_the_oracle(device, shape, plain):
    slices, matrices, _ = _problem(*shape, "c3", plain=plain)
    images = np.arange(shape[0])
    found, expected = _compare(device, "insert_nearest", slices, matrices, images, float(shape[2]))
    differing = np.abs(found - expected).max(axis=-1) > 1e-4
    assert differing.mean() <= (0 if device.kind == "cpu" else 1e-3)


def test_only_the_listed_images_are_inserted(device):
    slices, matrices, curvature = _problem(6, 15, 8)
    chosen = np.array([4, 1])
    found, expected = _compare(device, "insert_trilinear", slices, matrices, curvature, chosen)
    _agree(found, expected, 2e-5)
    nothing, zeros = _compare(device, "insert_trilinear", slices, matrices, curvature, chosen[:0])
    assert not nothing.any() and not zeros.any()


@pytest.mark.parametrize("name", ["insert_trilinear", "insert_blob", "insert_nearest"])
def test_part_of_the_planes_gets_what_the_whole_gets(device, name):
    slices, matrices, curvature = _problem(3, 15, 8, "d3")
    extra = {
        "insert_trilinear": (curvature, np.arange(3)),
        "insert_blob": (curvature, np.arange(3), blob_table(1.9, 0, 15.0), 1.9, 9.9),
        "insert_nearest": (np.arange(3), 8.0),
    }[name]
    sums = device.asarray(_sums(8, np.float32))
    getattr(insert, name)(sums, 0, device.asarray(slices), matrices, *extra)
    for first, last in ((0, 7), (7, 12), (12, 21)):
        found, expected = _compare(device, name, slices, matrices, *extra, first=first, last=last)
        _agree(found, to_host(sums)[first:last], 2e-6)
        assert np.abs(expected).max() > 0


def test_axis_aligned_planes_hit_whole_voxels(device):
    """Matrices of zeros and ones exercise the degenerate intervals and x = 0."""
    slices, _, _ = _problem(24, 15, 8)
    geometry = symmetry_matrices("o")[:, None], np.zeros(24, np.float32), np.arange(24)
    for name, extra in (("insert_trilinear", ()), ("insert_blob", (blob_table(1.9, 0, 15.0), 1.9, 9.9))):
        found, expected = _compare(device, name, slices, *geometry, *extra)
        _agree(found, expected, 5e-4)


def test_threads_and_tiles_do_not_change_the_sums(monkeypatch):
    import numba

    from xmipp_accel.kernels.cpu import insert as cpu

    slices, matrices, curvature = _problem(9, 33, 17, plain=False)
    results = []
    before = numba.get_num_threads()
    try:
        for threads, tile_bytes in ((1, 10**9), (before, 10**9), (before, 20000)):
            numba.set_num_threads(threads)
            monkeypatch.setattr(cpu, "TILE_BYTES", tile_bytes)
            sums = _sums(17, np.float32)
            insert.insert_trilinear(sums, 0, slices, matrices, curvature, np.arange(9))
            insert.insert_blob(
                sums, 0, slices, matrices, curvature, np.arange(9), blob_table(1.9, 0, 15.0), 1.9, 99
            )
            insert.insert_nearest(sums, 0, slices, matrices, np.arange(9), 17.0)
            results.append(sums)
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("mode, sideband", [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (1, -1), (2, 1)])
@pytest.mark.parametrize("rows, inside_only, once", [(12, False, False), (13, True, False), (13, True, True)])
@pytest.mark.parametrize("with_table", [False, True])
def test_prepare_equals_the_oracle(device, mode, sideband, inside_only, once, rows, with_table):
    rng = np.random.default_rng(3)
    columns = rows // 2 + rows % 2
    transforms = (rng.normal(size=(3, 14, 8)) + 1j * rng.normal(size=(3, 14, 8))).astype(np.complex64)
    sizes = [0.3, 0.1, 0.1, 0.03, 0.01, 0.01, 1.0, 1.0, 0.01, 0.05, -3.0, 4.0]
    factors = (rng.uniform(0.1, 1, size=(3, 12)) * sizes).astype(np.float32)
    table = rng.uniform(0.2, 1, (rows, columns, 3) if with_table else (0, 0, 3)).astype(np.float32)
    arrays = (transforms, factors, table)
    choices = (rows, columns), 5, 1.3, 30.0, mode, sideband, inside_only, once
    expected = reference.prepare_slices(*arrays, *choices)
    found = insert.prepare_slices(*(device.asarray(a) for a in arrays), *choices)
    np.testing.assert_allclose(to_host(found), expected, atol=2e-5)
