"""Interpolation in an oversampled spectrum, on the CPU."""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(parallel=True, cache=True, fastmath=True)
def fourier_sample(spectrum, points, weights, width):
    """Sum the `width`^3 nearest grid values, weighted by a tabulated separable window.

    Parameters
    ----------
    spectrum : (M, M, M) complex64 array
        Axes z, y, x; frequency 0 at ``M // 2``.
    points : (m, 3) float32 array
        Positions (x, y, z) in grid steps from frequency 0; all taps must lie inside.
    weights : (T + 2,) float32 array
        The window at distances ``i * (width / 2) / T``.
    width : int
        Even number of taps along an axis.

    Returns
    -------
    (m,) complex64 array
    """
    centre = len(spectrum) // 2
    result = np.empty(len(points), dtype=np.complex64)
    scale = np.float32((len(weights) - 2) / (width / 2))
    for m in numba.prange(len(points)):
        window = np.empty((3, width), dtype=np.float32)
        first = np.empty(3, dtype=np.int64)
        for axis in range(3):
            position = points[m, axis]
            first[axis] = math.floor(position) - width // 2 + 1
            for tap in range(width):
                distance = abs(position - np.float32(first[axis] + tap)) * scale
                index = int(distance)
                part = distance - np.float32(index)
                window[axis, tap] = weights[index] * (np.float32(1) - part) + weights[index + 1] * part
        total = np.complex64(0)
        for i in range(width):
            for j in range(width):
                factor = window[2, i] * window[1, j]
                line = np.complex64(0)
                for k in range(width):
                    line += (
                        spectrum[centre + first[2] + i, centre + first[1] + j, centre + first[0] + k]
                        * window[0, k]
                    )
                total += line * factor
        result[m] = total
    return result
