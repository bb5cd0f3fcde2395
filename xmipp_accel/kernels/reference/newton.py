"""Bounded Newton steps towards a maximum, in float64 NumPy: the oracle."""

from __future__ import annotations

import numpy as np


def newton_steps(gradient, hessian, limit):
    """Ascent steps of the length of Newton's, at most the limits.

    Coordinates are measured in their limits. A curvature of the wrong sign is turned round, and one below a
    thousandth of the largest is raised to that.

    Parameters
    ----------
    gradient : (b, n) array
    hessian : (b, n, n) array
        Symmetric.
    limit : (n,) array

    Returns
    -------
    (b, n) float64 array
    """
    values, vectors = np.linalg.eigh(hessian * limit[:, None] * limit)
    floor = 1e-3 * np.abs(values).max(axis=1, keepdims=True) + 1e-30
    values = np.maximum(np.abs(values), floor)
    along = np.einsum("bij,bi->bj", vectors, gradient * limit) / values
    step = np.einsum("bij,bj->bi", vectors, along)
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step / np.maximum(longest, 1.0) * limit
