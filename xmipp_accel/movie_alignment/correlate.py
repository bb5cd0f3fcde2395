"""Shifts from cross-spectra: search on a small window by matrix products, then Newton's method.

Nothing here makes a whole correlation image: only displacements within the search range are evaluated, as
``Ey C Ex`` with two small Fourier matrices.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, to_host


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
    """Sums of ``fy**a fx**b cross`` after translation by `shifts`, complex128 of shape (b, 3, 3) on the host."""
    xp = array_module(cross)
    shifts = np.asarray(shifts, dtype=np.float64)
    powers_y = np.stack([np.ones_like(fy), fy, fy * fy])
    powers_x = np.stack([np.ones_like(fx), fx, fx * fx], axis=1)
    wave_y = (np.exp(-2j * np.pi * shifts[:, :1] * fy)[:, None, :] * powers_y).astype(np.complex64)
    wave_x = (np.exp(-2j * np.pi * shifts[:, 1:] * fx)[:, :, None] * powers_x).astype(np.complex64)
    inner = xp.matmul(cross, xp.asarray(wave_x))
    return to_host(xp.matmul(xp.asarray(wave_y), inner)).astype(np.complex128)


def derivatives(moment):
    """Gradient (b, 2) and negative Hessian (b, 2, 2) of the correlation, from :func:`moments`."""
    gradient = 2 * np.pi * np.stack([moment[:, 1, 0].imag, moment[:, 0, 1].imag], axis=1)
    curvature = np.empty((len(moment), 2, 2))
    curvature[:, 0, 0], curvature[:, 1, 1] = moment[:, 2, 0].real, moment[:, 0, 2].real
    curvature[:, 0, 1] = curvature[:, 1, 0] = moment[:, 1, 1].real
    return gradient, (2 * np.pi) ** 2 * curvature


def newton(cross, fy, fx, start, iterations=4, reach=np.inf):
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
    start = np.asarray(start, dtype=np.float64)
    shifts = start.copy()
    fastest = 0.25 / max(np.abs(fy).max(), np.abs(fx).max())
    for _ in range(iterations):
        gradient, curvature = derivatives(moments(cross, fy, fx, shifts))
        definite, step = ascent(gradient, curvature)
        length = np.hypot(step[:, 0], step[:, 1])
        step *= np.minimum(1.0, 4 * fastest / np.maximum(length, 1e-12))[:, None]
        shifts += step
        if length.max(initial=0.0) < 1e-4:
            break
    gradient, curvature = derivatives(moments(cross, fy, fx, shifts))
    definite, _ = ascent(gradient, curvature)
    failed = ~definite | ~(np.hypot(*(shifts - start).T) <= reach)
    shifts[failed] = start[failed]
    curvature[failed] = 0.0
    return shifts, curvature


def ascent(gradient, curvature):
    """Whether each Hessian is definite, and Newton's step, or one along the gradient where it is not."""
    trace = np.trace(curvature, axis1=1, axis2=2)
    determinant = curvature[:, 0, 0] * curvature[:, 1, 1] - curvature[:, 0, 1] ** 2
    definite = (trace > 0) & (determinant > 1e-3 * trace**2)
    safe = np.where(
        definite[:, None, None], curvature, np.eye(2) * np.maximum(np.abs(trace), 1e-30)[:, None, None]
    )
    return definite, np.linalg.solve(safe, gradient[..., None])[..., 0]
