"""Particles against all shifted class averages at all in-plane angles, on the CPU.

As :mod:`xmipp_accel.kernels.cpu.polar_search`, but for many particles and few references, which are shifted
instead. All of them with all of their shifts lie along the vector lanes, of which few stay empty even if there are
few shifts. Two particles at a time share what is loaded of the references, two angles what is loaded of the
products.
"""

from __future__ import annotations

import numba
import numpy as np

from xmipp_accel.kernels.cpu.polar_search import LANES, angle_index

_LOWEST = np.float32(-3e38)
_PARTICLES = 16  # that one thread takes at a time


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _correlate(first, second, references, quads, products, others, lanes):
    """Sum conj(particle) * reference over 4 * quads rings for each lane and two particles."""
    for s in range(lanes):
        products[s] = 0
        products[LANES + s] = 0
        others[s] = 0
        others[LANES + s] = 0
    for quad in range(quads):
        p, r = 8 * quad, 8 * LANES * quad
        a0, b0, a1, b1 = first[p], first[p + 1], first[p + 2], first[p + 3]
        a2, b2, a3, b3 = first[p + 4], first[p + 5], first[p + 6], first[p + 7]
        c0, d0, c1, d1 = second[p], second[p + 1], second[p + 2], second[p + 3]
        c2, d2, c3, d3 = second[p + 4], second[p + 5], second[p + 6], second[p + 7]
        for s in range(lanes):
            x0, y0 = references[r + s], references[r + LANES + s]
            x1, y1 = references[r + 2 * LANES + s], references[r + 3 * LANES + s]
            x2, y2 = references[r + 4 * LANES + s], references[r + 5 * LANES + s]
            x3, y3 = references[r + 6 * LANES + s], references[r + 7 * LANES + s]
            products[s] += (a0 * x0 + b0 * y0) + (a1 * x1 + b1 * y1) + (a2 * x2 + b2 * y2) + (a3 * x3 + b3 * y3)
            products[LANES + s] += (
                (a0 * y0 - b0 * x0) + (a1 * y1 - b1 * x1) + (a2 * y2 - b2 * x2) + (a3 * y3 - b3 * x3)
            )
            others[s] += (c0 * x0 + d0 * y0) + (c1 * x1 + d1 * y1) + (c2 * x2 + d2 * y2) + (c3 * x3 + d3 * y3)
            others[LANES + s] += (
                (c0 * y0 - d0 * x0) + (c1 * y1 - d1 * x1) + (c2 * y2 - d2 * x2) + (c3 * y3 - d3 * x3)
            )


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _turn(products, quads, trig, other, work, lanes):
    """Cosine and sine parts of the even and of the odd harmonics at two angles, into rows 0 to 7 of `work`."""
    for s in range(8 * LANES):
        work[s] = 0
    for quad in range(quads):
        u, c = 8 * quad, 8 * LANES * quad
        c0, s0, c1, s1 = trig[u], trig[u + 1], trig[u + 2], trig[u + 3]
        c2, s2, c3, s3 = trig[u + 4], trig[u + 5], trig[u + 6], trig[u + 7]
        d0, t0, d1, t1 = other[u], other[u + 1], other[u + 2], other[u + 3]
        d2, t2, d3, t3 = other[u + 4], other[u + 5], other[u + 6], other[u + 7]
        for s in range(lanes):
            i = c + s
            x0, y0, x1, y1 = products[i], products[i + LANES], products[i + 2 * LANES], products[i + 3 * LANES]
            x2, y2 = products[i + 4 * LANES], products[i + 5 * LANES]
            x3, y3 = products[i + 6 * LANES], products[i + 7 * LANES]
            work[s] += c0 * x0 + c2 * x2
            work[LANES + s] += s0 * y0 + s2 * y2
            work[2 * LANES + s] += c1 * x1 + c3 * x3
            work[3 * LANES + s] += s1 * y1 + s3 * y3
            work[4 * LANES + s] += d0 * x0 + d2 * x2
            work[5 * LANES + s] += t0 * y0 + t2 * y2
            work[6 * LANES + s] += d1 * x1 + d3 * x3
            work[7 * LANES + s] += t1 * y1 + t3 * y3


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _keep_best(work, t, top, lanes):
    """Raise each lane's best (`top` rows 0, 1: score and t) by the four angles that belong to t."""
    number = np.float32(t)
    for s in range(lanes):
        ce, se, co, so = work[s], work[LANES + s], work[2 * LANES + s], work[3 * LANES + s]
        value = max(ce + co + abs(se + so), ce - co + abs(se - so))
        highest = top[s]
        top[LANES + s] = number if value > highest else top[LANES + s]
        top[s] = value if value > highest else highest


@numba.njit(cache=True)
def _keep_classes(products, trig, top, first_column, columns, n_shifts, best, psi_index, shift_index):
    """Raise the best score of each class by those of its lanes."""
    n_harmonics, quarter = trig.shape[1] // 2, len(trig) - 1
    start = 0
    while start < columns:
        number = (first_column + start) // n_shifts
        stop = min((number + 1) * n_shifts - first_column, columns)
        lane = start + top[start:stop].argmax()
        if top[lane] > best[number]:
            t = int(top[LANES + lane])
            best[number] = top[lane]
            psi_index[number] = angle_index(products, lane, trig[t], t, n_harmonics, quarter)
            shift_index[number] = first_column + lane - number * n_shifts
        start = stop


@numba.njit(parallel=True, cache=True, fastmath=True)
def class_search(particles, references, first_ring, trig, n_shifts, best, psi_index, shift_index):
    """Find the best in-plane angle and shift of each particle with each reference.

    Parameters
    ----------
    particles : (m, Q * K * 2) float32 array
        Harmonics in the order (q, k, real | imaginary); Q and K multiples of 4, padded with zeros.
    references : (B, Q * K * 2 * LANES) float32 array
        Weighted harmonics of the shifted references in the order (q, k, real | imaginary, lane), in B blocks.
        Shift s of reference r is column ``r S + s``, and column c lane ``c % L`` of block ``c // L`` with
        ``L = ceil(R S / B)``.
    first_ring : (Q,) int32 array
        First ring that holds harmonic q, a multiple of 4.
    trig : (n_psi / 4 + 1, Q * 2) float32 array
        Cosine and sine of ``q psi_t``.
    n_shifts : int
        S.
    best, psi_index, shift_index : (m, R) float32, int32 and int32 arrays
        Receive the score ``max over t, s of Re sum_q exp(i q psi_t) sum_k P[k, q] conj(R_s[k, q])`` and where it
        was found.
    """
    n_harmonics, n_columns = len(first_ring), best.shape[1] * n_shifts
    n_rings = particles.shape[1] // (2 * n_harmonics)
    in_block = (n_columns + len(references) - 1) // len(references)
    lanes = (in_block + 15) // 16 * 16
    for job in numba.prange((len(particles) + _PARTICLES - 1) // _PARTICLES):
        products = np.empty((2, n_harmonics * 2 * LANES), dtype=np.float32)
        work, top = np.empty(8 * LANES, dtype=np.float32), np.empty(2 * LANES, dtype=np.float32)
        last = min((job + 1) * _PARTICLES, len(particles))
        best[job * _PARTICLES : last] = _LOWEST
        for block in range(len(references)):
            columns = min(in_block, n_columns - block * in_block)
            for p in range(job * _PARTICLES, last, 2):
                for q in range(n_harmonics):
                    offset, own = 2 * (q * n_rings + first_ring[q]), slice(q * 2 * LANES, (q + 1) * 2 * LANES)
                    _correlate(
                        particles[p, offset:],
                        particles[min(p + 1, last - 1), offset:],
                        references[block, offset * LANES :],
                        (n_rings - first_ring[q]) // 4,
                        products[0, own],
                        products[1, own],
                        lanes,
                    )
                for i in range(min(2, last - p)):
                    top[:LANES] = _LOWEST
                    for t in range(0, len(trig), 2):
                        other = min(t + 1, len(trig) - 1)
                        _turn(products[i], n_harmonics // 4, trig[t], trig[other], work, lanes)
                        _keep_best(work[: 4 * LANES], t, top, lanes)
                        _keep_best(work[4 * LANES :], other, top, lanes)
                    _keep_classes(
                        products[i], trig, top, block * in_block, columns, n_shifts,
                        best[p + i], psi_index[p + i], shift_index[p + i],
                    )  # fmt: skip
