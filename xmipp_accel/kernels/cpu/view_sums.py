"""Images times views and sums of images over views, on the CPU.

See :mod:`xmipp_accel.kernels.reference.view_sums`; here the pairs stand in the order of their views.
"""

from __future__ import annotations

import numba


@numba.njit(parallel=True, nogil=True, fastmath={"contract"}, cache=True)
def view_products(weighted, shifted, pairs, out):
    """As the reference, into `out`, (P, Q) complex64."""
    rings, harmonics = weighted.shape[1:]
    for pair in numba.prange(len(pairs)):
        view, image, shift = pairs[pair]
        for q in range(harmonics):
            out[pair, q] = 0
        for k in range(rings):
            for q in range(harmonics):
                out[pair, q] += weighted[view, k, q] * shifted[image, shift, k, q]


@numba.njit(parallel=True, nogil=True, fastmath={"contract"}, cache=True)
def add_to_views(sums, shifted, pairs, first, factors):
    """As the reference; pairs ``first[v]`` to ``first[v + 1]`` are those of view v, (R + 1,)."""
    rings, harmonics = sums.shape[1:]
    for view in numba.prange(len(sums)):
        for pair in range(first[view], first[view + 1]):
            image, shift = pairs[pair, 1], pairs[pair, 2]
            for k in range(rings):
                for q in range(harmonics):
                    sums[view, k, q] += factors[pair, q] * shifted[image, shift, k, q]
