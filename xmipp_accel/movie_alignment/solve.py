"""Frame shifts from the shifts between pairs of frames."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dposv


def frame_pairs(n):
    """Indices (i, j) of all pairs with i < j, each of shape (n (n - 1) / 2,)."""
    return np.triu_indices(n, 1)


def shifts_from_pairs(i, j, pair_shifts, weights, n, absolute_rounds=20, bisquare_rounds=10):
    """Solve ``shift[i] - shift[j] = pair_shift`` for all frames, robustly.

    Least absolute deviations come first, since at low dose many pairs are plainly wrong; Tukey's bisquare with the
    residuals' median absolute deviation then recovers the efficiency of least squares.

    Parameters
    ----------
    i, j : ndarray of int, shape (m,)
    pair_shifts : ndarray, shape (m, 2)
        Translation of frame i that brings it onto frame j.
    weights : ndarray, shape (m,)
    n : int
        Number of frames.

    Returns
    -------
    shifts : ndarray, shape (n, 2)
        Their mean is zero.
    trusted : ndarray, shape (m,)
        Final robust weight of each pair, from 0 to 1.
    """
    # Matrices (n, n) of complex numbers, y + ix, need few steps for each round.
    wanted, base = np.zeros((n, n), dtype=complex), np.zeros((n, n))
    wanted[i, j] = pair_shifts[:, 0] + 1j * pair_shifts[:, 1]
    wanted[j, i] = -wanted[i, j]
    base[i, j] = base[j, i] = weights
    robust = np.ones((n, n))
    shifts = _solve(wanted, base)
    for _ in range(absolute_rounds):
        residual = _residuals(wanted, shifts)
        floor = max(np.median(residual[i, j]) * 0.1, 1e-3)
        shifts = _solve(wanted, base / np.maximum(residual, floor))
    for _ in range(bisquare_rounds):
        residual = _residuals(wanted, shifts)
        # A 2D Gaussian's median radius is 1.1774 sigma.
        cut = 4.685 * max(np.median(residual[i, j]) / 1.1774, 1e-3)
        robust = np.maximum(1.0 - (residual / cut) ** 2, 0.0) ** 2
        shifts = _solve(wanted, base * robust)
    return np.stack([shifts.real, shifts.imag], axis=1), robust[i, j]


def _residuals(wanted, shifts):
    return np.abs(shifts[:, None] - shifts - wanted)


def _solve(wanted, weights):
    """Shifts (n,) whose differences are those `wanted` (n, n), in the least squares' sense."""
    n = len(weights)
    total = weights.sum(axis=1)
    scale = max(total.sum() / n, 1e-300)
    # The constant matrix fixes the mean to zero; the small ridge keeps frames without any trusted pair solvable.
    system = scale / n - weights
    system.flat[:: n + 1] += total + 1e-9 * scale
    right = (weights * wanted).sum(axis=1)
    # NumPy's own would let go of Python's lock each time, and then wait for it among other movies' threads.
    _, shifts, info = dposv(system, np.stack([right.real, right.imag], axis=1))
    if info:
        raise np.linalg.LinAlgError(f"leading minor {info} of the frames' equations is not positive")
    return shifts[:, 0] + 1j * shifts[:, 1]
