"""Windowed patches of frames, on the CPU. The oracle is :mod:`xmipp_accel.kernels.reference.patches`."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(parallel=True, fastmath=True, cache=True)
def _cut(images, starts, window, out):
    n_patches, n = starts.shape[:2]
    size = len(window)
    for job in numba.prange(n_patches * n):
        p, t = job // n, job % n
        y0, x0 = starts[p, t, 0], starts[p, t, 1]
        total = np.float64(0)
        for y in range(size):
            row_total = np.float32(0)
            row = images[t, y0 + y, x0 : x0 + size]
            for x in range(size):
                row_total += row[x]
            total += row_total
        mean = np.float32(total / (size * size))
        for y in range(size):
            row = images[t, y0 + y, x0 : x0 + size]
            for x in range(size):
                out[p, t, y, x] = (row[x] - mean) * (window[y] * window[x])


def cut_patches(images, starts, window):
    """Cut square patches, subtract their means and apply a separable window.

    Parameters
    ----------
    images : ndarray of float32, shape (n, my, mx)
    starts : ndarray of int32, shape (p, n, 2)
        First row and column of each patch in each image; patches lie inside.
    window : ndarray of float32, shape (size,)

    Returns
    -------
    ndarray of float32, shape (p, n, size, size)
    """
    out = np.empty((*starts.shape[:2], len(window), len(window)), dtype=np.float32)
    _cut(images, starts, window, out)
    return out
