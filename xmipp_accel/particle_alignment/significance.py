"""Weights of particle-reference pairs from the ranks of their scores, and the choice of the best references."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from xmipp_accel.backend import kernel_turn, rows_on_all_cores
from xmipp_accel.kernels.cpu.ranks import count_scores, sum_pools

# Of each reference's histogram, and of all of them together.
_BINS, _MOST_BINS = 8192, 1 << 26
_ROWS = 64  # for a core at a time


def neighbourhoods(directions, distance, matrices=None) -> list[np.ndarray]:
    """Indices of the references within `distance` degrees of each reference, itself included.

    Parameters
    ----------
    directions : (R, 3) array
    distance : float
        Degrees.
    matrices : (g, 3, 3) array, optional
        Symmetry group, if neighbours across it count.
    """
    directions = np.asarray(directions, dtype=np.float64)
    tree = cKDTree(directions)
    reach = 2 * np.sin(np.deg2rad(min(distance + 1e-6, 180.0)) / 2)
    found = [[place] for place in range(len(directions))]
    for matrix in np.eye(3)[None] if matrices is None else matrices:
        for near, more in zip(found, tree.query_ball_point(directions @ matrix.T, reach + 1e-9)):
            near.extend(more)
    return [np.unique(near) for near in found]


class PooledRanks:
    """The weights of Align Significant, for any pairs.

    For reference r the scores of all particles at the references of its neighbourhood form one pool V_r. A pair
    (i, r) of score m weighs

        w = m / max(V_r) * rank(m) / (|V_r| - 1), and 0 if m <= 0,

    where the rank counts from 0 and ties share their mean rank. Particles come in parts: what is kept of them is
    one histogram a reference, which tells scores apart that differ by 1/8192 (by more if there are over 8192
    references).

    Parameters
    ----------
    neighbours : list of R index arrays
    """

    def __init__(self, neighbours):
        self._members = np.concatenate(neighbours)
        self._first = np.cumsum([0, *map(len, neighbours)])
        self._bins = min(_BINS, _MOST_BINS // len(neighbours))
        self._counts = np.zeros((len(neighbours), self._bins + 1), dtype=np.int32)
        self._cumulative: np.ndarray | None = None
        self._highest = np.full(len(neighbours), -np.inf)

    def add(self, scores):
        """Count the scores (m, R) of some particles; -inf marks excluded pairs, which belong to no pool."""
        count_scores(np.ascontiguousarray(scores, dtype=np.float32), self._counts, self._highest)
        self._cumulative = None

    def weights(self, reference, scores) -> np.ndarray:
        """Weights (m,) float64 of `scores` (m,) at the references `reference` (m,)."""
        if self._cumulative is None:
            self._cumulative = rows_on_all_cores(
                lambda counts: np.cumsum(counts, axis=1, dtype=np.int32), self._counts, _ROWS
            )
        reference, scores = np.asarray(reference), np.asarray(scores, dtype=np.float64)
        equal, up_to = (np.empty(len(scores), dtype=np.int64) for _ in range(2))
        pools = self._counts, self._cumulative, self._members, self._first
        with kernel_turn:
            sum_pools(*pools, reference, self._bin(scores), equal, up_to)
        size = np.add.reduceat(self._cumulative[self._members, -1], self._first[:-1], dtype=np.int64)[reference]
        highest = np.maximum.reduceat(self._highest[self._members], self._first[:-1])[reference]
        # The mean of the first and the last rank among those of equal score, counted from 0.
        rank = up_to - 0.5 * (equal + 1)
        cdf = np.where(size > 1, np.clip(rank / np.maximum(size - 1, 1), 0.0, 1.0), 1.0)
        return np.maximum(scores, 0.0) / np.where(highest > 0, highest, 1.0) * cdf

    def matrix(self, scores) -> np.ndarray:
        """Weights (m, R) float32 of every pair."""
        scores = np.asarray(scores)
        reference = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        return self.weights(reference.ravel(), scores.ravel()).reshape(scores.shape).astype(np.float32)

    def _bin(self, scores):
        """Bin of each score: 0 for those that are not positive, which weigh nothing."""
        shares = np.clip(scores, 0.0, 1.0).astype(np.float32) * np.float32(self._bins)
        return np.ceil(shares).astype(np.int64)


def best_first(votes, count) -> np.ndarray:
    """The references (m, count) int64 with the largest votes (m, R) of each particle, best first."""
    votes = np.asarray(votes)
    chosen = rows_on_all_cores(lambda part: np.argpartition(-part, count - 1, axis=1)[:, :count], votes, _ROWS)
    order = np.lexsort((chosen, -np.take_along_axis(votes, chosen, axis=1)), axis=1)
    return np.take_along_axis(chosen, order, axis=1)


def margins(scores) -> np.ndarray:
    """How far each score (m, T) is above the best other one of its particle; 0 if either is missing (-inf)."""
    scores = np.asarray(scores)
    if scores.shape[1] < 2:
        return np.zeros(scores.shape)
    top = -np.partition(-scores, 1, axis=1)[:, :2]
    other = np.where(scores >= top[:, :1], top[:, 1:], top[:, :1])
    return np.subtract(scores, other, where=np.isfinite(other) & np.isfinite(scores), out=np.zeros(scores.shape))


def entropies(scores, independent) -> np.ndarray:
    """Entropy (n,) in nats of the posterior over references: 0 is certainty, log R ignorance.

    Parameters
    ----------
    scores : (n, R) float array
        Correlations.
    independent : float
        Number of independent real data that are compared; a correlation c then has the profile likelihood
        ``(1 - c^2) ** (-independent / 2)`` in white noise.
    """

    def of_rows(scores):
        correlation = np.clip(scores, 0.0, 0.999).astype(np.float64)
        logarithms = -0.5 * independent * np.log1p(-(correlation**2))
        logarithms -= logarithms.max(axis=1, keepdims=True)
        logarithms[np.isneginf(scores)] = -np.inf
        return entropy(logarithms)

    return rows_on_all_cores(of_rows, np.asarray(scores), _ROWS)


def entropy(logarithms):
    """Entropy (m,) in nats of the distributions proportional to ``exp(logarithms)``, (m, R), at most 0.

    A row of -inf alone is a certainty.
    """
    weight = np.exp(logarithms)
    total = weight.sum(axis=1)
    spread = np.multiply(weight, logarithms, out=np.zeros(weight.shape), where=weight > 0).sum(axis=1)
    total = np.where(total > 0, total, 1.0)
    return np.maximum(np.log(total) - spread / total, 0.0)
