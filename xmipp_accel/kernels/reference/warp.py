"""Cubic B-spline interpolation along a displacement field in float64: the oracle of the warp kernels."""

from __future__ import annotations

import numpy as np
import scipy.ndimage


def warp(image, grid, step):
    """As `xmipp_accel.kernels.cpu.warp.warp`, by SciPy's spline interpolation."""
    image = np.asarray(image, dtype=np.float64)
    grid = np.asarray(grid, dtype=np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    node_y = np.minimum(y // step, grid.shape[0] - 2)
    node_x = np.minimum(x // step, grid.shape[1] - 2)
    u, v = (x / step - node_x)[..., None], (y / step - node_y)[..., None]
    low = (1 - u) * grid[node_y, node_x] + u * grid[node_y, node_x + 1]
    high = (1 - u) * grid[node_y + 1, node_x] + u * grid[node_y + 1, node_x + 1]
    shift = (1 - v) * low + v * high
    where = np.stack([y - shift[..., 0], x - shift[..., 1]])
    return scipy.ndimage.map_coordinates(image, where, order=3, mode="mirror")
