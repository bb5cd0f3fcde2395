"""Frames against the sum of the others, on the CPU. The oracle is :mod:`xmipp_accel.kernels.reference.others`."""

from __future__ import annotations

import numba
import numpy as np

N_MOMENTS = 10
ROWS = 64


@numba.njit(parallel=True, fastmath=True, cache=True)
def _sum(spectra, ey, ex, total, power):
    n_sets, n, rows = spectra.shape[:3]
    ky, kx = total.shape[1:]
    for job in numba.prange(n_sets * ky):
        b, y = job // ky, job % ky
        source = y if y < ky // 2 else y + rows - ky
        for x in range(kx):
            total[b, y, x] = 0
            power[b, y, x] = 0
        for t in range(n):
            row = ey[b, t, y]
            for x in range(kx):
                frame = spectra[b, t, source, x]
                total[b, y, x] += frame * (row * ex[b, t, x])
                power[b, y, x] += frame.real * frame.real + frame.imag * frame.imag


@numba.njit(parallel=True, fastmath=True, cache=True)
def _moments(spectra, total, weights, columns, ey, ex, fy, fx, out):
    n_sets, n, rows = spectra.shape[:3]
    ky = total.shape[1]
    n_parts = out.shape[2]
    for job in numba.prange(n_sets * n * n_parts):
        b, t, part = job // (n * n_parts), job // n_parts % n, job % n_parts
        g = np.zeros(N_MOMENTS)
        for y in range(part * ROWS, min(ky, (part + 1) * ROWS)):
            row = ey[b, t, y]
            source = y if y < ky // 2 else y + rows - ky
            i0 = i1 = r0 = r1 = r2 = p0 = p1 = p2 = np.float32(0)
            for x in range(columns[y]):
                moved = spectra[b, t, source, x] * (row * ex[b, t, x])
                others = total[b, y, x] - moved
                w, f = weights[y, x], fx[x]
                real = w * (moved.real * others.real + moved.imag * others.imag)
                imag = w * (moved.imag * others.real - moved.real * others.imag)
                power = real * real + imag * imag
                i0 += imag
                i1 += imag * f
                r0 += real
                r1 += real * f
                r2 += real * f * f
                p0 += power
                p1 += power * f
                p2 += power * f * f
            f = fy[y]
            g[0] += f * i0
            g[1] += i1
            g[2] += f * f * r0
            g[3] += r2
            g[4] += f * r1
            g[5] += f * f * p0
            g[6] += p2
            g[7] += f * p1
            g[8] += r0
            g[9] += p0
        out[b, t, part] = g


def aligned_sum(spectra, ey, ex):
    """Sums of moved frames, and of their power.

    Parameters
    ----------
    spectra : ndarray of complex64, shape (b, n, rows, columns)
        Half-plane transforms of n frames, for b places.
    ey, ex : ndarray of complex64, shapes (b, n, ky) and (b, n, kx)
        Phases that move the frames. Where they are fewer than the rows and columns (and ky is even), the higher
        frequencies are left out.

    Returns
    -------
    ndarray of complex64, shape (b, ky, kx)
    ndarray of float32, shape (b, ky, kx)
    """
    total = np.empty((len(spectra), ey.shape[2], ex.shape[2]), dtype=np.complex64)
    power = np.empty(total.shape, dtype=np.float32)
    _sum(spectra, ey, ex, total, power)
    return total, power


def correlation_moments(spectra, total, weights, columns, ey, ex, fy, fx):
    """Derivatives, without their factors of pi, of each moved frame's correlation with the sum of the others.

    Parameters
    ----------
    spectra, ey, ex
        As for :func:`aligned_sum`, whose first result is `total`.
    weights : ndarray of float32, shape (ky, kx)
    columns : ndarray of int32, shape (ky,)
        Leading columns of each row that have any weight.
    fy, fx : ndarray of float32, shapes (ky,) and (kx,)
        Frequencies, cycles per px.

    Returns
    -------
    ndarray of float64, shape (b, n, 10)
        With z the weighted cross-spectrum: the sums of fy Im z, fx Im z; fy^2, fx^2, fx fy times Re z; the same
        times the square of abs(z); Re z and that square alone.
    """
    out = np.empty((*spectra.shape[:2], -(-len(fy) // ROWS), N_MOMENTS))
    _moments(spectra, total, weights, columns, ey, ex, fy, fx, out)
    return out.sum(axis=2)


@numba.njit(fastmath=True, cache=True)
def ring_sums(values, rings, n_rings):
    """Sums (n_rings,), float64, of `values` over int32 `rings` of the same shape (ky, kx)."""
    out = np.zeros(n_rings)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            out[rings[y, x]] += values[y, x]
    return out
