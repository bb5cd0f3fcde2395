"""Cubic B-spline interpolation of images along a smooth displacement field, on the CPU.

Boundaries mirror about the outermost pixels. The oracle is :mod:`xmipp_accel.kernels.reference.warp`.
"""

from __future__ import annotations

import numba
import numpy as np

POLE = float(np.sqrt(3.0) - 2.0)
HORIZON = 24
COLUMNS = 64
ROWS = 8


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
    """Several rows at a time: each recursion waits for its last step, but not for those of the other rows."""
    ny, nx = image.shape
    pole, six = np.float32(POLE), np.float32(6.0)
    last = np.float32(POLE / (POLE * POLE - 1.0))
    for block in numba.prange((ny + ROWS - 1) // ROWS):
        low = block * ROWS
        high = min(ny, low + ROWS)
        for y in range(low, high):
            image[y, 0] = 6.0 * _causal_start(image[y], nx)
        for x in range(1, nx):
            for y in range(low, high):
                image[y, x] = six * image[y, x] + pole * image[y, x - 1]
        for y in range(low, high):
            image[y, nx - 1] = last * (image[y, nx - 1] + pole * image[y, nx - 2])
        for x in range(nx - 2, -1, -1):
            for y in range(low, high):
                image[y, x] = pole * (image[y, x + 1] - image[y, x])


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


def filter_in_place(image):
    """Turn `image` (ny, nx), float32, into the coefficients of the cubic B-spline through it."""
    if image.shape[1] > 1:
        _filter_rows(image)
    if image.shape[0] > 1:
        _filter_columns(image)


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


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _sample(c, y, x, sy, sx):
    """Value at (y + sy, x + sx)."""
    ny, nx = c.shape
    by, bx = np.floor(sy), np.floor(sx)
    wy, wx = _weights(sy - by), _weights(sx - bx)
    iy, ix = y + int(by), x + int(bx)
    if iy < 1 or ix < 1 or iy + 2 >= ny or ix + 2 >= nx:
        return _sample_border(c, iy, ix, wy, wx)
    total = np.float32(0.0)
    for a in range(4):
        total += wy[a] * (
            wx[0] * c[iy + a - 1, ix - 1]
            + wx[1] * c[iy + a - 1, ix]
            + wx[2] * c[iy + a - 1, ix + 1]
            + wx[3] * c[iy + a - 1, ix + 2]
        )
    return total


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _sample_run(rows, by, bx, sy, sx, dy, dx, out):
    """Values along a run of pixels whose shifts have the same whole parts; `rows` begin with the first tap."""
    r0, r1, r2, r3 = rows
    for k in range(len(out)):
        wy = _weights(sy + np.float32(k) * dy - by)
        wx = _weights(sx + np.float32(k) * dx - bx)
        out[k] = (
            wy[0] * (wx[0] * r0[k] + wx[1] * r0[k + 1] + wx[2] * r0[k + 2] + wx[3] * r0[k + 3])
            + wy[1] * (wx[0] * r1[k] + wx[1] * r1[k + 1] + wx[2] * r1[k + 2] + wx[3] * r1[k + 3])
            + wy[2] * (wx[0] * r2[k] + wx[1] * r2[k + 1] + wx[2] * r2[k + 2] + wx[3] * r2[k + 3])
            + wy[3] * (wx[0] * r3[k] + wx[1] * r3[k + 1] + wx[2] * r3[k + 2] + wx[3] * r3[k + 3])
        )


@numba.njit(parallel=True, cache=True, fastmath=True)
def _warp(c, grid, step, out):
    """Between two nodes shifts are linear: where their whole part stays, taps lie side by side in memory."""
    ny, nx = c.shape
    for y in numba.prange(ny):
        node = min(y // step, grid.shape[0] - 2)
        part = np.float32(y - node * step) / np.float32(step)
        line = grid[node] + part * (grid[node + 1] - grid[node])
        for column in range(line.shape[0] - 1):
            x = column * step
            count = min(step, nx - x)
            if column == line.shape[0] - 2:
                count = nx - x
            if count <= 0:
                break
            sy, sx = -line[column, 0], -line[column, 1]
            dy = (-line[column + 1, 0] - sy) / np.float32(step)
            dx = (-line[column + 1, 1] - sx) / np.float32(step)
            end_y, end_x = sy + np.float32(count - 1) * dy, sx + np.float32(count - 1) * dx
            by, bx = np.floor(sy), np.floor(sx)
            iy, ix = y + int(by) - 1, x + int(bx) - 1
            straight = np.floor(end_y) == by and np.floor(end_x) == bx
            if straight and iy >= 0 and ix >= 0 and iy + 3 < ny and ix + count + 3 <= nx:
                stop = ix + count + 3
                rows = c[iy, ix:stop], c[iy + 1, ix:stop], c[iy + 2, ix:stop], c[iy + 3, ix:stop]
                _sample_run(rows, by, bx, sy, sx, dy, dx, out[y, x : x + count])
            else:
                for k in range(count):
                    out[y, x + k] = _sample(c, y, x + k, sy + np.float32(k) * dy, sx + np.float32(k) * dx)


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
    return warp_frames(np.array(image, dtype=np.float32)[None], np.asarray(grid)[None], step)[0]


def warp_frames(images, grids, step):
    """As :func:`warp`, for float32 images (b, ny, nx), which are overwritten, and as many grids."""
    out = np.empty(images.shape, dtype=np.float32)
    for image, grid, moved in zip(images, grids, out):
        filter_in_place(image)
        _warp(image, np.ascontiguousarray(grid, dtype=np.float32), step, moved)
    return out
