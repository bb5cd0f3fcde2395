"""Histograms of scores."""

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
