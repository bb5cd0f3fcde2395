"""Records of images for the insertion into a Fourier volume, on the CPU.

Layouts are those of :mod:`xmipp_accel.kernels.reference.insert`.
"""

from __future__ import annotations

import math

import numba
import numpy as np


def prepare_slices(arrays, limit, flags, slices):
    """As the reference, into float32 `slices` and on this thread alone; `arrays` and `flags` in its order."""
    arguments = [*arrays, float(limit), *flags, slices]
    _prepare(*arguments)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _prepare(transforms, ramp_y, ramp_x, factors, table, limit, mode, sideband, inside_only, once, slices):
    n, rows, columns, _ = slices.shape
    padded = transforms.shape[1]
    for image in range(n):
        f = factors[image]
        for row in range(rows):
            ky = row - rows // 2
            source = ky % padded
            turn_y = ramp_y[image, row]
            for kx in range(columns):
                k2 = np.float32(kx * kx + ky * ky)
                inside = k2 <= limit
                weight = f[7]
                if weight == 0 or (inside_only and not inside) or (once and kx == 0 and ky < 0):
                    slices[image, row, kx] = 0
                    continue
                if f[8] != 0:
                    weight *= math.exp(-f[8] * k2)
                if once and k2 == 0:
                    weight *= np.float32(0.5)
                value = transforms[image, source, kx] * turn_y * ramp_x[image, kx]
                extra = np.float32(0.0)
                if table.size:
                    extra = table[row, kx, 0]
                    odd = table[row, kx, 1]
                    value *= complex(math.cos(odd), -math.sin(odd))
                    weight *= table[row, kx, 2]
                multiplier, square = complex(np.float32(1.0), np.float32(0.0)), np.float32(1.0)
                if mode > 0:
                    astigmatic, oblique = np.float32(kx * kx - ky * ky), np.float32(2 * kx * ky)
                    stretched = f[3] * k2 + f[4] * astigmatic + f[5] * oblique
                    phase = f[0] * k2 + f[1] * astigmatic + f[2] * oblique - stretched * stretched + f[6] + extra
                    multiplier, square = _transfer(phase, f[9] * k2, mode, sideband)
                value *= multiplier
                shown = weight if inside else np.float32(0.0)
                slices[image, row, kx, 0] = value.real * shown
                slices[image, row, kx, 1] = value.imag * shown
                slices[image, row, kx, 2] = weight * square
                slices[image, row, kx, 3] = 0


@numba.njit(cache=True, fastmath=True, inline="always")
def _transfer(phase, separation, mode, sideband):
    sine = np.float32(math.sin(phase))
    square = sine * sine
    multiplier = complex(sine, np.float32(0.0))
    if mode == 2:
        multiplier = complex(abs(sine), np.float32(0.0))
    elif mode == 3:
        multiplier = complex(np.float32(1.0), np.float32(0.0))
    if sideband != 0:
        sign = np.float32(-1.0 if mode == 2 and sine < 0 else 1.0)
        half = np.float32(0.5) * sign
        multiplier = complex(half * sine, half * np.float32(sideband * math.cos(phase)))
        angle = math.pi * separation
        overlap = np.float32(1.0 if angle < 1e-4 else max(0.0, math.sin(angle) / angle))
        square = np.float32(0.25) * (1 - overlap) + np.float32(0.5) * overlap * square
    return multiplier, square
