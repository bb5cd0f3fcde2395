"""Sums for the score of aligned pairs and its derivatives, on the CPU.

See :mod:`xmipp_accel.kernels.reference.pose_sums`. One pass takes what ten products and sums of NumPy would read
thirty times. A ring is summed in single precision, the rings in double.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(parallel=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, cache=True)
def pose_sums(turned, samples, phases, factors, frequencies, out):
    """As the reference, into `out`; all arrays in single precision but this one."""
    pairs, rings, _, angles = turned.shape
    for pair in numba.prange(pairs):
        out[pair] = 0.0
        for ring in range(rings):
            score = by_psi = by_y = by_x = np.float32(0)
            psi_psi = psi_y = psi_x = y_y = y_x = x_x = np.float32(0)
            for j in range(angles):
                sample, phase = samples[pair, ring, j], phases[pair, ring, j]
                re = sample.real * phase.real - sample.imag * phase.imag
                im = sample.real * phase.imag + sample.imag * phase.real
                ky, kx = frequencies[0, ring, j], frequencies[1, ring, j]
                r = turned[pair, ring, 0, j]
                real, imaginary = r.real * re + r.imag * im, r.real * im - r.imag * re
                score += real
                by_y -= imaginary * ky
                by_x -= imaginary * kx
                y_y -= real * ky * ky
                y_x -= real * ky * kx
                x_x -= real * kx * kx
                r = turned[pair, ring, 1, j]
                slope = r.imag * re - r.real * im
                by_psi += r.real * re + r.imag * im
                psi_y += slope * ky
                psi_x += slope * kx
                r = turned[pair, ring, 2, j]
                psi_psi += r.real * re + r.imag * im
            sums = score, by_psi, by_y, by_x, psi_psi, psi_y, psi_x, y_y, y_x, x_x
            for place in range(10):
                out[pair, place] += np.float64(factors[ring]) * np.float64(sums[place])
