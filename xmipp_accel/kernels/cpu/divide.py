"""Division of a Fourier volume's sums by their weights on the CPU; see :mod:`..reference.divide`."""

from __future__ import annotations

import math

import numba
import numpy as np

from xmipp_accel.backend import on_all_cores


def shell_weights(sums, limit):
    """As the reference. Planes are shared between threads and summed in their order."""
    slabs = np.array_split(np.arange(len(sums)), min(len(sums), 64))
    return sum(on_all_cores(lambda slab: _shell_weights(sums, float(limit), slab[0], slab[-1] + 1), slabs))


@numba.njit(nogil=True, cache=True)
def _shell_weights(sums, limit, first, stop):
    centre = sums.shape[1] // 2
    out = np.zeros((2, 2 * sums.shape[2] + 1))
    for plane in range(first, stop):
        for row in range(sums.shape[1]):
            across = (plane - centre) ** 2 + (row - centre) ** 2
            for kx in range(sums.shape[2]):
                squares = across + kx * kx
                if squares > limit:
                    break
                shell = int(math.sqrt(squares) + 0.5)
                out[0, shell] += sums[plane, row, kx, 2]
                out[1, shell] += 1.0
    return out


def divide(spectrum, sums, first, added, floor, least, limit):
    """As the reference, on this thread alone."""
    _divide(spectrum, sums, first, added, floor, float(least), float(limit))


@numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp"})
def _divide(spectrum, sums, first, added, floor, least, limit):
    centre, padded = sums.shape[1] // 2, len(spectrum)
    for plane in range(len(sums)):
        kz = plane - centre
        if kz < -((padded - 1) // 2) or kz > padded // 2:
            continue
        target = spectrum[kz % padded]
        for row in range(spectrum.shape[1]):
            across = kz * kz + (row + first - centre) ** 2
            for kx in range(sums.shape[2]):
                squares = across + kx * kx
                if squares > limit:
                    break
                shell = int(math.sqrt(np.float32(squares)) + np.float32(0.5))
                record = sums[plane, row + first, kx]
                divisor = max(record[2] + added[shell], floor[shell])
                if divisor > least:
                    target[row, kx] = complex(record[0] / divisor, record[1] / divisor)
