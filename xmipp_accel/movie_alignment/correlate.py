"""Shifts from cross-spectra: search on a small window by matrix products, then Newton's method.

Nothing here makes a whole correlation image: only displacements within the search range are evaluated, as
``Ey C Ex`` with two small Fourier matrices.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, from_host, to_host
from xmipp_accel.movie_alignment.others import newton_step
from xmipp_accel.movie_alignment.spectra import moving_phases


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
    places = np.zeros((max(map(len, grid)), 2))
    for axis, along in enumerate(grid):
        places[: len(along), axis] = along
    waves = moving_phases(places, fy, fx, xp)
    wave_y, wave_x = (wave[: len(along)] for wave, along in zip(waves, grid))
    sums = (cross.reshape(-1, len(fx)) @ wave_x.T).reshape(*cross.shape[:2], -1)
    distance = np.hypot(grid[0][:, None], grid[1][None])
    outside = np.where(distance <= radius, 0, -np.inf).astype(np.float32)
    values = xp.matmul(wave_y, sums).real + from_host(outside, xp)
    best = to_host(values.reshape(len(values), -1).argmax(axis=1))
    row, column = np.unravel_index(best, distance.shape)
    return np.stack([grid[0][row], grid[1][column]], axis=1), distance[row, column] > radius - max(step)


class _Moments:
    """Sums of ``fy**a fx**b cross``, a and b up to 2, after translations."""

    def __init__(self, cross, fy, fx):
        self._cross, self._xp = cross, array_module(cross)
        self._fy, self._fx = fy, fx
        self._powers = [from_host(np.stack([f**0, f, f**2]), self._xp, np.float32) for f in (fy, fx)]

    def derivatives(self, shifts):
        """Gradient (b, 2) and negative Hessian (b, 2, 2) of the correlation at `shifts` (b, 2), on the host."""
        phases = moving_phases(shifts, self._fy, self._fx, self._xp)
        wave_y, wave_x = (phase[:, None] * powers for phase, powers in zip(phases, self._powers))
        sums = self._xp.matmul(wave_y, self._xp.matmul(self._cross, wave_x.swapaxes(1, 2)))
        moment = to_host(sums).astype(np.complex128)
        gradient = 2 * np.pi * moment[:, [1, 0], [0, 1]].imag
        yy, yx, xx = moment[:, [2, 1, 0], [0, 1, 2]].real.T
        return gradient, (2 * np.pi) ** 2 * np.stack([yy, yx, yx, xx], axis=1).reshape(-1, 2, 2)


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
    moments, shifts = _Moments(cross, fy, fx), start
    longest = 1.0 / max(np.abs(fy).max(), np.abs(fx).max())
    for _ in range(iterations):
        step, _ = newton_step(*moments.derivatives(shifts))
        length = np.hypot(step[:, 0], step[:, 1])
        shifts = shifts + step * np.minimum(1.0, longest / np.maximum(length, 1e-12))[:, None]
    gradient, curvature = moments.derivatives(shifts)
    _, definite = newton_step(gradient, curvature)
    moved = shifts - start
    found = definite & (np.hypot(moved[:, 0], moved[:, 1]) <= reach)
    return np.where(found[:, None], shifts, start), np.where(found[:, None, None], curvature, 0.0)
