"""Particles against all shifted class averages at all in-plane angles, on the CPU.

As :mod:`xmipp_accel.kernels.cpu.polar_search`, but for many particles and few references, which are shifted
instead. All of them with all of their shifts lie along the vector lanes, of which few stay empty even if there are
few shifts. Two particles at a time share what is loaded of the references.
"""

from __future__ import annotations

import numba
import numpy as np

from xmipp_accel.kernels.cpu.harmonics import LANES, LOWEST, angle_index, best_angles, sum_rings

_PARTICLES = 16  # that one thread takes at a time


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


@numba.njit(parallel=True, cache=True)
def class_search(particles, references, first_ring, trig, n_shifts, best, psi_index, shift_index):
    """Find the best in-plane angle and shift of each particle with each reference.

    Parameters
    ----------
    particles : (m, Q * K * 2) float32 array
        Harmonics in the order (q, k, real | imaginary); Q even, padded with zeros.
    references : (B, Q * K * 2 * LANES) float32 array
        Weighted harmonics of the shifted references in the order (q, k, real | imaginary, lane), in B blocks.
        Shift s of reference r is column ``r S + s``, and column c lane ``c % L`` of block ``c // L`` with
        ``L = ceil(R S / B)``.
    first_ring : (Q,) int32 array
        First ring that holds harmonic q.
    trig : (n_psi / 4 + 1, Q * 2) float32 array
        Cosine and sine of ``q psi_t``.
    n_shifts : int
        S.
    best, psi_index, shift_index : (m, R) float32, int32 and int32 arrays
        Receive the score ``max over t, s of Re sum_q exp(i q psi_t) sum_k P[k, q] conj(R_s[k, q])`` and where it
        was found.
    """
    n_harmonics, n_columns = len(first_ring), best.shape[1] * n_shifts
    width, size = particles.shape[1], n_harmonics * 2 * LANES
    in_block = (n_columns + len(references) - 1) // len(references)
    lanes = (in_block + 15) // 16 * 16
    rows, turns = particles.reshape(-1), trig.reshape(-1)
    for job in numba.prange((len(particles) + _PARTICLES - 1) // _PARTICLES):
        products, top = np.empty(2 * size, dtype=np.float32), np.empty(2 * LANES, dtype=np.float32)
        last = min((job + 1) * _PARTICLES, len(particles))
        best[job * _PARTICLES : last] = LOWEST
        for block in range(len(references)):
            columns = min(in_block, n_columns - block * in_block)
            for p in range(job * _PARTICLES, last, 2):
                other = min(p + 1, last - 1)
                sum_rings(
                    rows, p * width, other * width, references[block], first_ring,
                    width // (2 * n_harmonics), products, lanes,
                )  # fmt: skip
                for i in range(other - p + 1):
                    best_angles(products, i * size, turns, n_harmonics, top, lanes)
                    _keep_classes(
                        products[i * size :], trig, top, block * in_block, columns, n_shifts,
                        best[p + i], psi_index[p + i], shift_index[p + i],
                    )  # fmt: skip
