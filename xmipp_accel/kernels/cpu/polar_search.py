"""All references against all particles, all in-plane angles and shifts, on the CPU.

Shifts lie along the vector lanes. The products of one pair stay in the first-level cache between the sum over the
rings and the sum over the harmonics. Even and odd, cosine and sine parts are summed apart, which gives the scores
at psi, -psi, pi + psi and pi - psi for one sum each.
"""

from __future__ import annotations

import numba
import numpy as np

LANES = 64  # a constant, or the compiler cannot tell the rows of one array apart and does not vectorise
_LOWEST = np.float32(-3e38)
_TILE = 64


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _correlate(reference, particle, quads, products, lanes):
    """Sum conj(reference) * particle over 4 * quads rings for each lane."""
    for s in range(lanes):
        products[s] = 0
        products[LANES + s] = 0
    for quad in range(quads):
        r, p = 8 * quad, 8 * LANES * quad
        a0, b0, a1, b1 = reference[r], reference[r + 1], reference[r + 2], reference[r + 3]
        a2, b2, a3, b3 = reference[r + 4], reference[r + 5], reference[r + 6], reference[r + 7]
        for s in range(lanes):
            x0, y0 = particle[p + s], particle[p + LANES + s]
            x1, y1 = particle[p + 2 * LANES + s], particle[p + 3 * LANES + s]
            x2, y2 = particle[p + 4 * LANES + s], particle[p + 5 * LANES + s]
            x3, y3 = particle[p + 6 * LANES + s], particle[p + 7 * LANES + s]
            products[s] += (a0 * x0 + b0 * y0) + (a1 * x1 + b1 * y1) + (a2 * x2 + b2 * y2) + (a3 * x3 + b3 * y3)
            products[LANES + s] += (
                (a0 * y0 - b0 * x0) + (a1 * y1 - b1 * x1) + (a2 * y2 - b2 * x2) + (a3 * y3 - b3 * x3)
            )


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _turn(products, octets, trig, work, t, lanes):
    """Raise each lane's best (work rows 4, 5: score and t) by the four angles that belong to t."""
    for s in range(lanes):
        work[s] = 0
        work[LANES + s] = 0
        work[2 * LANES + s] = 0
        work[3 * LANES + s] = 0
    for octet in range(octets):
        u, c = 16 * octet, 16 * LANES * octet
        c0, s0, c1, s1 = trig[u], trig[u + 1], trig[u + 2], trig[u + 3]
        c2, s2, c3, s3 = trig[u + 4], trig[u + 5], trig[u + 6], trig[u + 7]
        c4, s4, c5, s5 = trig[u + 8], trig[u + 9], trig[u + 10], trig[u + 11]
        c6, s6, c7, s7 = trig[u + 12], trig[u + 13], trig[u + 14], trig[u + 15]
        for s in range(lanes):
            i = c + s
            work[s] += (c0 * products[i] + c2 * products[i + 4 * LANES]) + (
                c4 * products[i + 8 * LANES] + c6 * products[i + 12 * LANES]
            )
            work[LANES + s] += (s0 * products[i + LANES] + s2 * products[i + 5 * LANES]) + (
                s4 * products[i + 9 * LANES] + s6 * products[i + 13 * LANES]
            )
            work[2 * LANES + s] += (c1 * products[i + 2 * LANES] + c3 * products[i + 6 * LANES]) + (
                c5 * products[i + 10 * LANES] + c7 * products[i + 14 * LANES]
            )
            work[3 * LANES + s] += (s1 * products[i + 3 * LANES] + s3 * products[i + 7 * LANES]) + (
                s5 * products[i + 11 * LANES] + s7 * products[i + 15 * LANES]
            )
    number = np.float32(t)
    for s in range(lanes):
        ce, se, co, so = work[s], work[LANES + s], work[2 * LANES + s], work[3 * LANES + s]
        value = max(ce + co + abs(se + so), ce - co + abs(se - so))
        top = work[4 * LANES + s]
        work[5 * LANES + s] = number if value > top else work[5 * LANES + s]
        work[4 * LANES + s] = value if value > top else top


@numba.njit(cache=True, fastmath=True, forceinline=True)
def angle_index(products, s, trig, t, n_harmonics, quarter):
    """Which of the four angles of t reached the best score of lane s."""
    ce = se = co = so = np.float32(0)
    for q in range(0, n_harmonics, 2):
        ce += trig[2 * q] * products[2 * LANES * q + s]
        se += trig[2 * q + 1] * products[2 * LANES * q + LANES + s]
        co += trig[2 * q + 2] * products[2 * LANES * (q + 1) + s]
        so += trig[2 * q + 3] * products[2 * LANES * (q + 1) + LANES + s]
    n_psi = 4 * quarter
    if ce + co + abs(se + so) >= ce - co + abs(se - so):
        return t if se + so >= 0 else (n_psi - t) % n_psi
    return (2 * quarter + t) % n_psi if se - so >= 0 else 2 * quarter - t


@numba.njit(parallel=True, cache=True, fastmath=True)
def polar_search(references, particles, first_ring, trig, n_shifts, candidates, best, psi_index, shift_index):
    """Find the best in-plane angle and shift of each particle with each of its candidates.

    Parameters
    ----------
    references : (R, Q * K * 2) float32 array
        Weighted harmonics in the order (q, k, real | imaginary); Q a multiple of 8, K of 4, padded with zeros.
    particles : (m, B, Q * K * 2 * LANES) float32 array
        Harmonics of the shifted particles in the order (q, k, real | imaginary, lane), in B blocks of shifts;
        shift s is lane ``s % L`` of block ``s // L`` with ``L = ceil(n_shifts / B)``.
    first_ring : (Q,) int32 array
        First ring that holds harmonic q, a multiple of 4.
    trig : (n_psi / 4 + 1, Q * 2) float32 array
        Cosine and sine of ``q psi_t``.
    n_shifts : int
    candidates : (m, T) int32 array
        References that each particle is compared with; -1 stands for none.
    best, psi_index, shift_index : (m, T) float32, int32 and int32 arrays
        Receive the score and where it was found; where there is no candidate they are left alone.
    """
    n_candidates, n_particles = candidates.shape[1], len(particles)
    n_harmonics = len(first_ring)
    n_rings = references.shape[1] // (2 * n_harmonics)
    blocks = particles.shape[1]
    in_block = (n_shifts + blocks - 1) // blocks
    lanes = (in_block + 15) // 16 * 16
    tiles = (n_candidates + _TILE - 1) // _TILE
    for job in numba.prange(n_particles * tiles):
        p, start = job // tiles, job % tiles * _TILE
        products = np.empty(n_harmonics * 2 * LANES, dtype=np.float32)
        work = np.empty(6 * LANES, dtype=np.float32)
        for block in range(blocks):
            particle = particles[p, block]
            valid = min(in_block, n_shifts - block * in_block)
            for c in range(start, min(start + _TILE, n_candidates)):
                r = candidates[p, c]
                if r < 0:
                    continue
                for q in range(n_harmonics):
                    offset = 2 * (q * n_rings + first_ring[q])
                    _correlate(
                        references[r, offset:],
                        particle[offset * LANES :],
                        (n_rings - first_ring[q]) // 4,
                        products[q * 2 * LANES : (q + 1) * 2 * LANES],
                        lanes,
                    )
                work[4 * LANES :] = _LOWEST
                for t in range(len(trig)):
                    _turn(products, n_harmonics // 8, trig[t], work, t, lanes)
                top = 0
                for s in range(1, valid):
                    if work[4 * LANES + s] > work[4 * LANES + top]:
                        top = s
                if block == 0 or work[4 * LANES + top] > best[p, c]:
                    t = int(work[5 * LANES + top])
                    best[p, c] = work[4 * LANES + top]
                    shift_index[p, c] = block * in_block + top
                    psi_index[p, c] = angle_index(products, top, trig[t], t, n_harmonics, len(trig) - 1)
