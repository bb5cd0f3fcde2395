"""Records of images for the insertion into a Fourier volume, on the CPU.

Layouts are those of :mod:`xmipp_accel.kernels.reference.insert`. Rows go through short loops without branches,
each of which the compiler turns into vector instructions.
"""

from __future__ import annotations

import math

import numba
import numpy as np

# Of the sine's Taylor series around 0, which at pi / 2 ends with an error of 6e-8.
_SINE = np.array([(-1) ** k / math.factorial(2 * k + 1) for k in range(7)], dtype=np.float32)
# Pi in parts, so that whole turns are taken away without rounding.
_PI = np.array([3.140625, 9.67653589793e-4], dtype=np.float32)


def prepare_slices(arrays, origin, gain, limit, flags, slices):
    """As the reference, into float32 `slices` and on this thread alone; `arrays` and `flags` in its order."""
    arguments = [*arrays, origin, float(gain), float(limit), *flags, slices]
    _prepare(*arguments)


@numba.njit(cache=True, fastmath=True, nogil=True)
def _prepare(transforms, factors, table, origin, gain, limit, mode, sideband, inside_only, once, slices):
    n, rows, columns, _ = slices.shape
    padded = transforms.shape[1]
    transfer, weight = np.empty((3, columns), np.float32), np.empty(columns, np.float32)
    for image in range(n):
        f = factors[image]
        ramp_y, ramp_x = _ramp(rows, rows // 2, origin - f[10], padded), _ramp(columns, 0, origin - f[11], padded)
        ramp_y *= np.float32(gain)
        for row in range(rows):
            ky = row - rows // 2
            start, inside = 1 if once and ky < 0 else 0, _columns_inside(ky, limit, columns)
            stop = inside if inside_only else columns
            if f[7] == 0:
                stop = start
            slices[image, row, :start] = 0
            slices[image, row, stop:] = 0
            _weigh(weight, f, ky, stop)
            if once and ky == 0:
                weight[0] *= np.float32(0.5)
            source = transforms[image, ky % padded, :columns] * (ramp_y[row] * ramp_x)
            if table.size:
                weight *= table[row, :, 2]
                source *= np.exp(-1j * table[row, :, 1]).astype(np.complex64)
            if mode > 0:
                _phase(transfer[0], f, ky, stop)
                if table.size:
                    transfer[0] += table[row, :, 0]
                _transfer(transfer, f[9], ky, mode, sideband, stop)
            else:
                transfer[0], transfer[1], transfer[2] = 1, 0, 1
            _write(slices[image, row], source, transfer, weight, start, stop, inside)


@numba.njit(cache=True, nogil=True)
def _ramp(length, middle, offset, padded):
    """Phase factors that move the pixel `offset` to pixel 0, of frequencies from ``-middle`` on."""
    return np.exp(2j * np.pi * offset / padded * (np.arange(length) - middle)).astype(np.complex64)


@numba.njit(cache=True)
def _columns_inside(ky, limit, columns):
    left = limit - ky * ky
    if left < 0:
        return 0
    return min(columns, int(math.sqrt(left) + 1e-9) + 1)


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _weigh(weight, f, ky, stop):
    weight[:] = f[7]
    if f[8] != 0:
        for kx in range(stop):
            weight[kx] *= math.exp(-f[8] * np.float32(kx * kx + ky * ky))


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _phase(phase, f, ky, stop):
    for kx in range(stop):
        x2, y2, xy = np.float32(kx * kx), np.float32(ky * ky), np.float32(2 * kx * ky)
        stretched = f[3] * (x2 + y2) + f[4] * (x2 - y2) + f[5] * xy
        phase[kx] = f[0] * (x2 + y2) + f[1] * (x2 - y2) + f[2] * xy - stretched * stretched + f[6]


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _transfer(transfer, separation, ky, mode, sideband, stop):
    """Real and imaginary multiplier and weight, in place of the phases in the first row."""
    real, imaginary, square = transfer[0], transfer[1], transfer[2]
    if sideband != 0:
        for kx in range(stop):
            imaginary[kx] = real[kx] + np.float32(0.5 * math.pi)
        _sine(imaginary, stop)
    _sine(real, stop)
    if sideband != 0:
        for kx in range(stop):
            angle = np.float32(math.pi) * separation * np.float32(kx * kx + ky * ky)
            overlap = max(np.float32(0.0), np.float32(math.sin(angle)) / max(angle, np.float32(1e-6)))
            overlap = np.float32(1.0) if angle < 1e-3 else overlap
            sign = np.float32(-0.5 if mode == 2 and real[kx] < 0 else 0.5)
            square[kx] = np.float32(0.25) * (1 - overlap) + np.float32(0.5) * overlap * real[kx] * real[kx]
            imaginary[kx] *= sign * np.float32(sideband)
            real[kx] *= sign
        return
    for kx in range(stop):
        square[kx] = real[kx] * real[kx]
        imaginary[kx] = 0
    if mode == 2:
        for kx in range(stop):
            real[kx] = abs(real[kx])
    elif mode == 3:
        real[:stop] = 1


@numba.njit(cache=True, fastmath={"contract", "nsz"}, forceinline=True)
def _sine(phase, stop):
    """Sine in place: the rest beside whole half-turns by its series, the sign by their number."""
    c, pi = _SINE, _PI
    for kx in range(stop):
        turns = np.rint(phase[kx] * np.float32(1 / math.pi))
        rest = (phase[kx] - turns * pi[0]) - turns * pi[1]
        r2 = rest * rest
        series = c[1] + r2 * (c[2] + r2 * (c[3] + r2 * (c[4] + r2 * (c[5] + r2 * c[6]))))
        odd = turns - np.float32(2.0) * np.floor(turns * np.float32(0.5))
        phase[kx] = (rest + rest * r2 * series) * (np.float32(1.0) - np.float32(2.0) * odd)


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _write(records, source, transfer, weight, start, stop, inside):
    for kx in range(start, stop):
        value, shown = source[kx], weight[kx] if kx < inside else np.float32(0.0)
        re, im = transfer[0, kx] * shown, transfer[1, kx] * shown
        records[kx, 0] = value.real * re - value.imag * im
        records[kx, 1] = value.real * im + value.imag * re
        records[kx, 2] = transfer[2, kx] * weight[kx]
        records[kx, 3] = 0
