"""Xmipp's real-space shift: cubic B-splines whose boundary mirrors between pixels, with wrap-around."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module


def shift_bspline(images, shifts):
    """Move images as Xmipp does before it transforms them.

    Every axis is a linear map of the pixels, so a batch is shifted by two matrix products.

    Parameters
    ----------
    images : (n, ny, nx) float32 array
    shifts : (n, 2) array_like
        To apply, (y, x) in px.

    Returns
    -------
    (n, ny, nx) float32 array on the same device
    """
    xp = array_module(images)
    shifts = np.asarray(shifts, dtype=np.float64)
    rows = xp.asarray(_shift_matrices(images.shape[1], shifts[:, 0]))
    columns = xp.asarray(_shift_matrices(images.shape[2], shifts[:, 1]))
    return xp.matmul(xp.matmul(rows, images), columns.transpose(0, 2, 1))


def _shift_matrices(size, shifts):
    """Matrices (n, size, size) float32 that shift a line of `size` px by each of `shifts` px."""
    samples = np.zeros((size, size))
    for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        samples[np.arange(size), _mirror(np.arange(size) + offset, size)] += weight
    position = np.arange(size) - shifts[:, None]
    position = np.mod(position + 0.5, size) - 0.5
    base = np.floor(position).astype(int)
    weights = np.zeros((len(shifts), size, size))
    line, point = np.ogrid[: len(shifts), :size]
    for tap in range(-1, 3):
        weights[line, point, _mirror(base + tap, size)] += _cubic(position - base - tap)
    return (weights @ np.linalg.inv(samples)).astype(np.float32)


def _mirror(index, size):
    index = np.mod(index, 2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


def _cubic(t):
    t = np.abs(t)
    return np.where(t < 1, 2 / 3 - t * t + t**3 / 2, np.maximum(2 - t, 0) ** 3 / 6)
