"""Extremes, mean and variance of pixels, in one pass."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, cache=True)
def moments(values):
    """Smallest and largest of `values` (n,), their mean, and the sum of the squares of their deviations from it.

    Values that are not finite give a mean that is none.
    """
    low = high = values[0]
    origin = np.float64(values[0])
    total = squares = np.float64(0)
    for value in values:
        low, high = min(low, value), max(high, value)
        # About one of the values, the squares are small enough to be subtracted.
        deviation = np.float64(value) - origin
        total += deviation
        squares += deviation * deviation
    mean = total / len(values)
    squares -= len(values) * mean * mean
    return np.float64(low), np.float64(high), origin + mean, 0.0 if squares < 0 else squares
