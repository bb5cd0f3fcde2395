import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference.patches import cut_patches
from xmipp_accel.kernels.reference.warp import warp as reference_warp
from xmipp_accel.movie_alignment.correct import warp
from xmipp_accel.movie_alignment.patches import _cut


def grid_for(shape, step, rng, size):
    nodes = [max(2, -(-(s - 1) // step) + 1) for s in shape]
    return (rng.normal(size=(*nodes, 2)) * size).astype(np.float32)


@pytest.mark.parametrize("shape", [(37, 53), (1, 9), (9, 1), (1, 1), (2, 3), (13, 97), (64, 64)])
@pytest.mark.parametrize("size", [0.4, 30.0])
def test_warp_equals_the_reference(device, shape, size):
    """Float32 positions near 100 px are exact to 1e-5, times the steepest slope of such noise."""
    rng = np.random.default_rng(sum(shape))
    image = rng.normal(size=shape).astype(np.float32)
    grid = grid_for(shape, 8, rng, size)
    found = to_host(warp(device.asarray(image), device.asarray(grid), 8))
    np.testing.assert_allclose(found, reference_warp(image, grid, 8), atol=1e-4)


def test_warp_direction(device):
    image = np.zeros((20, 20), dtype=np.float32)
    image[8, 9] = 1
    grid = np.zeros((3, 3, 2), dtype=np.float32)
    grid[..., 0], grid[..., 1] = 3, -2
    moved = to_host(warp(device.asarray(image), grid, 16))
    assert np.unravel_index(moved.argmax(), moved.shape) == (11, 7)


@pytest.mark.parametrize("size", [2, 7, 16])
def test_patches_equal_the_reference(device, size):
    rng = np.random.default_rng(size)
    images = (rng.normal(size=(3, 17, 23)) + 5).astype(np.float32)
    starts = np.stack([rng.integers(0, 17 - size + 1, (4, 3)), rng.integers(0, 23 - size + 1, (4, 3))], axis=-1)
    starts = starts.astype(np.int32)
    window = rng.uniform(0, 1, size).astype(np.float32)
    found = to_host(_cut(device.asarray(images), starts, window))
    np.testing.assert_allclose(found, cut_patches(images, starts, window), atol=1e-5)
