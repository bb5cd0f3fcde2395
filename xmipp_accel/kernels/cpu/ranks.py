"""Histograms of scores, and sums over several of them."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def count_scores(scores, counts, highest):
    """Count the scores of each reference and raise its highest one.

    Serial, as it runs beside the parallel search, and not every threading layer of Numba takes two callers.

    Parameters
    ----------
    scores : (m, R) float32 array
        -inf is not counted.
    counts : (R, B + 1) int32 array
        Bin b takes scores in ((b - 1) / B, b / B]; bin 0 all that are not positive, bin B all from 1 on.
    highest : (R,) float64 array
    """
    bins = counts.shape[1] - 1
    for i in range(scores.shape[0]):
        for r in range(scores.shape[1]):
            score = scores[i, r]
            if score == -np.inf:
                continue
            highest[r] = max(highest[r], score)
            counts[r, int(np.ceil(min(max(score, np.float32(0)), np.float32(1)) * bins))] += 1


@numba.njit(parallel=True, cache=True, nogil=True)
def sum_pools(counts, cumulative, members, first, reference, bins, equal, up_to):
    """Scores of a pair's pool that share its bin, and those up to it.

    Parameters
    ----------
    counts, cumulative : (R, B + 1) int32 arrays
        Of each reference; the second is the first's running sum.
    members : int array
        References of all pools; those of pool r are ``members[first[r] : first[r + 1]]``.
    first : (R + 1,) int array
    reference, bins : (m,) int arrays
        The pool of each pair, and the bin of its score.
    equal, up_to : (m,) int64 arrays
        The results.
    """
    for pair in numba.prange(len(reference)):
        pool, bin_of_pair = reference[pair], bins[pair]
        equal[pair] = up_to[pair] = 0
        for place in range(first[pool], first[pool + 1]):
            equal[pair] += counts[members[place], bin_of_pair]
            up_to[pair] += cumulative[members[place], bin_of_pair]
