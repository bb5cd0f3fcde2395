"""Cubic B-spline interpolation of images along a smooth displacement field, on the CPU.

Boundaries mirror about the outermost pixels. The oracle is :mod:`xmipp_accel.kernels.reference.warp`.
"""

from __future__ import annotations

import numba
import numpy as np

POLE = float(np.sqrt(3.0) - 2.0)
HORIZON = 24
COLUMNS = 64


@numba.njit(cache=True)
def mirror(i, n):
    """Index within 0 .. n - 1 after reflections about the first and the last pixel."""
    if n == 1:
        return 0
    period = 2 * n - 2
    i = i % period
    return period - i if i >= n else i


@numba.njit(cache=True)
def _causal_start(line, n):
    total = line[0]
    power = 1.0
    for k in range(1, HORIZON):
        power *= POLE
        total += power * line[mirror(k, n)]
    return total


@numba.njit(parallel=True, cache=True)
def _filter_rows(image):
    ny, nx = image.shape
    for y in numba.prange(ny):
        row = image[y]
        row[0] = 6.0 * _causal_start(row, nx)
        for x in range(1, nx):
            row[x] = 6.0 * row[x] + POLE * row[x - 1]
        row[nx - 1] = POLE / (POLE * POLE - 1.0) * (row[nx - 1] + POLE * row[nx - 2])
        for x in range(nx - 2, -1, -1):
            row[x] = POLE * (row[x + 1] - row[x])


@numba.njit(parallel=True, cache=True)
def _filter_columns(image):
    ny, nx = image.shape
    for block in numba.prange((nx + COLUMNS - 1) // COLUMNS):
        low = block * COLUMNS
        high = min(nx, low + COLUMNS)
        for x in range(low, high):
            image[0, x] = 6.0 * _causal_start(image[:, x], ny)
        for y in range(1, ny):
            for x in range(low, high):
                image[y, x] = 6.0 * image[y, x] + POLE * image[y - 1, x]
        for x in range(low, high):
            image[ny - 1, x] = POLE / (POLE * POLE - 1.0) * (image[ny - 1, x] + POLE * image[ny - 2, x])
        for y in range(ny - 2, -1, -1):
            for x in range(low, high):
                image[y, x] = POLE * (image[y + 1, x] - image[y, x])


def spline_coefficients(image):
    """Coefficients of the cubic B-spline through `image`, float32 of shape (ny, nx)."""
    coefficients = np.array(image, dtype=np.float32)
    if coefficients.shape[1] > 1:
        _filter_rows(coefficients)
    if coefficients.shape[0] > 1:
        _filter_columns(coefficients)
    return coefficients


@numba.njit(cache=True, inline="always")
def _weights(t):
    s = np.float32(1.0) - t
    sixth = np.float32(1.0 / 6.0)
    w0 = s * s * s * sixth
    w3 = t * t * t * sixth
    w1 = np.float32(2.0 / 3.0) - t * t + np.float32(0.5) * t * t * t
    return w0, w1, np.float32(1.0) - w0 - w1 - w3, w3


@numba.njit(cache=True)
def _sample_border(coefficients, iy, ix, wy, wx):
    ny, nx = coefficients.shape
    total = np.float32(0.0)
    for a in range(4):
        y = mirror(iy + a - 1, ny)
        for b in range(4):
            total += wy[a] * wx[b] * coefficients[y, mirror(ix + b - 1, nx)]
    return total


@numba.njit(parallel=True, cache=True, fastmath=True)
def _warp(c, grid, step, out):
    ny, nx = c.shape
    for y in numba.prange(ny):
        node = min(y // step, grid.shape[0] - 2)
        part = np.float32(y - node * step) / np.float32(step)
        line = grid[node] + part * (grid[node + 1] - grid[node])
        for x in range(nx):
            column = min(x // step, line.shape[0] - 2)
            u = np.float32(x - column * step) / np.float32(step)
            sy = -(line[column, 0] + u * (line[column + 1, 0] - line[column, 0]))
            sx = -(line[column, 1] + u * (line[column + 1, 1] - line[column, 1]))
            by, bx = np.floor(sy), np.floor(sx)
            wy, wx = _weights(sy - by), _weights(sx - bx)
            iy, ix = y + int(by), x + int(bx)
            if iy < 1 or ix < 1 or iy + 2 >= ny or ix + 2 >= nx:
                out[y, x] = _sample_border(c, iy, ix, wy, wx)
                continue
            total = np.float32(0.0)
            for a in range(4):
                total += wy[a] * (
                    wx[0] * c[iy + a - 1, ix - 1]
                    + wx[1] * c[iy + a - 1, ix]
                    + wx[2] * c[iy + a - 1, ix + 1]
                    + wx[3] * c[iy + a - 1, ix + 2]
                )
            out[y, x] = total


def warp(image, grid, step):
    """Move the content of `image` along a displacement field.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
    grid : ndarray of float32, shape (gy, gx, 2)
        Translation (y, x) to apply at the nodes (i * step, j * step), which reach the last pixel at least; linear
        between them; gy and gx at least 2.
    step : int

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        ``out[y, x] = image(y - dy, x - dx)``.
    """
    out = np.empty(image.shape, dtype=np.float32)
    _warp(spline_coefficients(image), np.ascontiguousarray(grid, dtype=np.float32), step, out)
    return out
