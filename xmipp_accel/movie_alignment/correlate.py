"""Shifts from cross-spectra: search on a small window by matrix products, then Newton's method.

Nothing here makes a whole correlation image: only displacements within the search range are evaluated, as
``Ey C Ex`` with two small Fourier matrices.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.movie_alignment.others import newton_step


def window_maximum(cross, fy, fx, radius, step):
    """Find the largest correlation within a disc, on a grid.

    Parameters
    ----------
    cross : array of complex64, shape (b, ky, kx)
        Weighted cross-spectra, image times conjugate reference, half plane.
    fy, fx : ndarray
        Frequencies, cycles per px.
    radius : float
        Of the disc around zero, px.
    step : (float, float)
        Of the grid along y and x, px.

    Returns
    -------
    shifts : ndarray, shape (b, 2)
        Translation (y, x) of the image that correlates best.
    at_limit : ndarray of bool, shape (b,)
        Whether it touches the disc's border.
    """
    xp = array_module(cross)
    grid = [np.arange(-int(radius / s), int(radius / s) + 1) * s for s in step]
    wave_y = xp.asarray(np.exp(-2j * np.pi * grid[0][:, None] * fy[None]).astype(np.complex64))
    wave_x = xp.asarray(np.exp(-2j * np.pi * fx[:, None] * grid[1][None]).astype(np.complex64))
    values = xp.matmul(wave_y, xp.matmul(cross, wave_x)).real
    distance = np.hypot(grid[0][:, None], grid[1][None])
    values = xp.where(xp.asarray(distance <= radius), values, -np.inf)
    best = to_host(values.reshape(len(values), -1).argmax(axis=1))
    row, column = np.unravel_index(best, distance.shape)
    return np.stack([grid[0][row], grid[1][column]], axis=1), distance[row, column] > radius - max(step)


def moments(cross, fy, fx, shifts):
    """Sums of ``fy**a fx**b cross`` after translation by `shifts` (b, 2): complex128 of shape (b, 3, 3)."""
    xp = array_module(cross)
    fy, fx, shifts = (xp.asarray(values, dtype=xp.float64) for values in (fy, fx, shifts))
    powers_y = xp.stack([xp.ones_like(fy), fy, fy * fy])
    powers_x = xp.stack([xp.ones_like(fx), fx, fx * fx], axis=1)
    wave_y = (xp.exp(-2j * np.pi * shifts[:, :1] * fy)[:, None, :] * powers_y).astype(xp.complex64)
    wave_x = (xp.exp(-2j * np.pi * shifts[:, 1:] * fx)[:, :, None] * powers_x).astype(xp.complex64)
    return xp.matmul(wave_y, xp.matmul(cross, wave_x)).astype(xp.complex128)


def derivatives(moment):
    """Gradient (b, 2) and negative Hessian (b, 2, 2) of the correlation, from :func:`moments`."""
    xp = array_module(moment)
    gradient = 2 * np.pi * xp.stack([moment[:, 1, 0].imag, moment[:, 0, 1].imag], axis=1)
    yy, yx, xx = moment[:, 2, 0].real, moment[:, 1, 1].real, moment[:, 0, 2].real
    rows = xp.stack([xp.stack([yy, yx], axis=1), xp.stack([yx, xx], axis=1)], axis=1)
    return gradient, (2 * np.pi) ** 2 * rows


def newton(cross, fy, fx, start, iterations=3, reach=np.inf):
    """Climb to the correlation's maximum.

    Parameters
    ----------
    cross, fy, fx
        As in :func:`window_maximum`.
    start : ndarray, shape (b, 2)
    iterations : int
    reach : float
        Results farther from `start` than this are not trusted.

    Returns
    -------
    shifts : ndarray, shape (b, 2)
        `start` where the climb failed.
    curvature : ndarray, shape (b, 2, 2)
        Negative Hessian there; zero where the climb failed.
    """
    xp = array_module(cross)
    start = xp.asarray(start, dtype=xp.float64)
    shifts = start
    longest = 1.0 / max(np.abs(fy).max(), np.abs(fx).max())
    for _ in range(iterations):
        step, _ = newton_step(*derivatives(moments(cross, fy, fx, shifts)))
        length = xp.hypot(step[:, 0], step[:, 1])
        shifts = shifts + step * xp.minimum(1.0, longest / xp.maximum(length, 1e-12))[:, None]
    gradient, curvature = derivatives(moments(cross, fy, fx, shifts))
    _, definite = newton_step(gradient, curvature)
    moved = shifts - start
    found = definite & (xp.hypot(moved[:, 0], moved[:, 1]) <= reach)
    shifts = xp.where(found[:, None], shifts, start)
    return to_host(shifts), to_host(xp.where(found[:, None, None], curvature, 0.0))
