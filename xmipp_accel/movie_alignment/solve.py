"""Frame shifts from the shifts between pairs of frames."""

from __future__ import annotations

import numpy as np


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
    robust = np.ones(len(i))
    shifts = _solve(i, j, pair_shifts, weights, n)
    for _ in range(absolute_rounds):
        residual = _residuals(i, j, pair_shifts, shifts)
        floor = max(np.median(residual) * 0.1, 1e-3)
        shifts = _solve(i, j, pair_shifts, weights / np.maximum(residual, floor), n)
    for _ in range(bisquare_rounds):
        residual = _residuals(i, j, pair_shifts, shifts)
        cut = 4.685 * max(np.median(residual) / 1.1774, 1e-3)  # a 2D Gaussian's median radius is 1.1774 sigma
        robust = np.clip(1.0 - (residual / cut) ** 2, 0.0, None) ** 2
        shifts = _solve(i, j, pair_shifts, weights * robust, n)
    return shifts, robust


def _residuals(i, j, pair_shifts, shifts):
    return np.hypot(*(shifts[i] - shifts[j] - pair_shifts).T)


def _solve(i, j, pair_shifts, weights, n):
    laplacian = np.zeros((n, n))
    laplacian[i, j] = laplacian[j, i] = -weights
    laplacian[np.diag_indices(n)] = -laplacian.sum(axis=1)
    pulls = weights[:, None] * pair_shifts
    right = np.stack([np.bincount(i, p, n) - np.bincount(j, p, n) for p in pulls.T], axis=1)
    scale = max(np.trace(laplacian) / n, 1e-300)
    # The constant matrix fixes the mean to zero; the small ridge keeps frames without any trusted pair solvable.
    system = laplacian + scale / n + 1e-9 * scale * np.eye(n)
    return np.linalg.solve(system, right)
