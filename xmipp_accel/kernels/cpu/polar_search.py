"""All references against all particles, all in-plane angles and shifts, on the CPU.

Shifts lie along the vector lanes. The products of one pair stay in the first-level cache between the sum over the
rings and the sum over the harmonics. Two references at a time share what is loaded of the particle. Even and odd
harmonics' cosine and sine parts are summed apart, which gives the scores at psi, -psi, pi + psi and pi - psi.
"""

from __future__ import annotations

import numba
import numpy as np

from xmipp_accel.kernels.cpu.harmonics import LANES, angle_index, best_angles, sum_rings

_TILE = 64


@numba.njit(parallel=True, cache=True)
def polar_search(references, particles, first_ring, trig, n_shifts, candidates, best, psi_index, shift_index):
    """Find the best in-plane angle and shift of each particle with each of its candidates.

    Parameters
    ----------
    references : (R, Q * K * 2) float32 array
        Weighted harmonics in the order (q, k, real | imaginary); Q even, padded with zeros.
    particles : (m, B, Q * K * 2 * LANES) float32 array
        Harmonics of the shifted particles in the order (q, k, real | imaginary, lane), in B blocks of shifts;
        shift s is lane ``s % L`` of block ``s // L`` with ``L = ceil(n_shifts / B)``.
    first_ring : (Q,) int32 array
        First ring that holds harmonic q.
    trig : (n_psi / 4 + 1, Q * 2) float32 array
        Cosine and sine of ``q psi_t``.
    n_shifts : int
    candidates : (m, T) int32 array
        References that each particle is compared with; -1 stands for none.
    best, psi_index, shift_index : (m, T) float32, int32 and int32 arrays
        Receive the score and where it was found; where there is no candidate they are left alone.
    """
    n_candidates, n_particles = candidates.shape[1], len(particles)
    n_harmonics, width = len(first_ring), references.shape[1]
    blocks = particles.shape[1]
    in_block = (n_shifts + blocks - 1) // blocks
    lanes = (in_block + 15) // 16 * 16
    tiles = (n_candidates + _TILE - 1) // _TILE
    rows, turns, size = references.reshape(-1), trig.reshape(-1), n_harmonics * 2 * LANES
    for job in numba.prange(n_particles * tiles):
        p, start = job // tiles, job % tiles * _TILE
        products, top = np.empty(2 * size, dtype=np.float32), np.empty(2 * LANES, dtype=np.float32)
        wanted = start + np.flatnonzero(candidates[p, start : start + _TILE] >= 0)
        for block in range(blocks):
            valid = min(in_block, n_shifts - block * in_block)
            for i in range(0, len(wanted), 2):
                pair = wanted[i : i + 2]
                first, second = candidates[p, pair[0]], candidates[p, pair[-1]]
                sum_rings(
                    rows, first * width, second * width, particles[p, block], first_ring,
                    width // (2 * n_harmonics), products, lanes,
                )  # fmt: skip
                for place, c in enumerate(pair):
                    best_angles(products, place * size, turns, n_harmonics, top, lanes)
                    lane = top[:valid].argmax()
                    if block == 0 or top[lane] > best[p, c]:
                        t = int(top[LANES + lane])
                        best[p, c] = top[lane]
                        shift_index[p, c] = block * in_block + lane
                        psi_index[p, c] = angle_index(
                            products[place * size :], lane, trig[t], t, n_harmonics, len(trig) - 1
                        )
