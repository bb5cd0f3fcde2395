"""Sums of two Fourier transforms over shells, on the CPU; see :mod:`xmipp_accel.kernels.reference.shells`."""

from __future__ import annotations

import math

import numba
import numpy as np

from xmipp_accel.backend import on_all_cores


def correlate_shells(a, b, n):
    """As the reference. Planes are shared between threads and summed in their order."""
    slabs = np.array_split(np.arange(len(a)), min(len(a), 64))
    return sum(on_all_cores(lambda slab: _correlate(a, b, n, slab[0], slab[-1] + 1), slabs))


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _correlate(a, b, n, first, stop):
    out = np.zeros((3, n // 2 + 1))
    for plane in range(first, stop):
        kz = min(plane, n - plane)
        for row in range(n):
            ky = min(row, n - row)
            for kx in range(n // 2 + 1):
                k2 = kz * kz + ky * ky + kx * kx
                shell = int(math.sqrt(k2) + 0.5)
                if shell > n // 2:
                    break
                count = 1.0 if kx == 0 or 2 * kx == n else 2.0
                va, vb = a[plane, row, kx], b[plane, row, kx]
                ar, ai = np.float64(va.real), np.float64(va.imag)
                br, bi = np.float64(vb.real), np.float64(vb.imag)
                out[0, shell] += count * (ar * br + ai * bi)
                out[1, shell] += count * (ar * ar + ai * ai)
                out[2, shell] += count * (br * br + bi * bi)
    return out
