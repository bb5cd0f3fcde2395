"""Bounded Newton steps towards a maximum, on the CPU; see :mod:`xmipp_accel.kernels.reference.newton`.

LAPACK takes a microsecond or two for a matrix of 3 x 3, and threads that call it wait for each other.
"""

from __future__ import annotations

import math

import numba
import numpy as np

_SWEEPS = 12  # Jacobi's method converges quadratically: five or six are enough


@numba.njit(parallel=True, nogil=True, cache=True)
def newton_steps(gradient, hessian, limit, out):
    """As the reference, into `out`."""
    n = len(limit)
    for pair in numba.prange(len(gradient)):
        matrix, vectors, step = np.empty((n, n)), np.eye(n), np.zeros(n)
        for i in range(n):
            for j in range(n):
                matrix[i, j] = hessian[pair, i, j] * limit[i] * limit[j]
        _diagonalize(matrix, vectors)
        largest = 0.0
        for i in range(n):
            largest = max(largest, abs(matrix[i, i]))
        for k in range(n):
            along = 0.0
            for i in range(n):
                along += vectors[i, k] * gradient[pair, i] * limit[i]
            along /= max(abs(matrix[k, k]), 1e-3 * largest + 1e-30)
            for i in range(n):
                step[i] += vectors[i, k] * along
        longest = 1.0
        for i in range(n):
            longest = max(longest, abs(step[i]))
        for i in range(n):
            out[pair, i] = step[i] / longest * limit[i]


@numba.njit(inline="always")
def _diagonalize(matrix, vectors):
    """Leave the eigenvalues on the diagonal of a symmetric matrix and turn the columns of `vectors` with it."""
    n = len(matrix)
    for _ in range(_SWEEPS):
        beside = 0.0
        for i in range(n):
            for j in range(i):
                beside = max(beside, abs(matrix[i, j]))
        if beside == 0.0:
            break
        for i in range(n):
            for j in range(i):
                if matrix[i, j] == 0.0:
                    continue
                # Numerical Recipes, eq. 11.1.10: the smaller of the two angles that bring the element to zero.
                theta = (matrix[j, j] - matrix[i, i]) / (2.0 * matrix[i, j])
                tangent = math.copysign(1.0, theta) / (abs(theta) + math.sqrt(theta * theta + 1.0))
                cosine = 1.0 / math.sqrt(tangent * tangent + 1.0)
                sine = tangent * cosine
                for k in range(n):
                    a, b = matrix[k, i], matrix[k, j]
                    matrix[k, i], matrix[k, j] = cosine * a - sine * b, sine * a + cosine * b
                for k in range(n):
                    a, b = matrix[i, k], matrix[j, k]
                    matrix[i, k], matrix[j, k] = cosine * a - sine * b, sine * a + cosine * b
                    a, b = vectors[k, i], vectors[k, j]
                    vectors[k, i], vectors[k, j] = cosine * a - sine * b, sine * a + cosine * b
                matrix[i, j] = matrix[j, i] = 0.0
