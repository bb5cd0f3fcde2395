"""Weights of particle-reference pairs from the ranks of their scores, and the choice of the best references."""

from __future__ import annotations

import numpy as np

from xmipp_accel.numerics.symmetry import angular_distance


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
    near = angular_distance(directions, directions, matrices) <= distance + 1e-6
    np.fill_diagonal(near, True)
    return [np.flatnonzero(row) for row in near]


class PooledRanks:
    """The weights of Align Significant, for any pairs.

    For reference r the scores of all particles at the references of its neighbourhood form one pool V_r. A pair
    (i, r) of score m weighs

        w = m / max(V_r) * rank(m) / (|V_r| - 1), and 0 if m <= 0,

    where the rank counts from 0 and ties share their mean rank. Each column is sorted once; a rank in the pool is
    the sum of the ranks in its columns.

    Parameters
    ----------
    scores : (n, R) float array
        -inf marks excluded pairs, which belong to no pool.
    neighbours : list of R index arrays
    """

    def __init__(self, scores, neighbours):
        self._neighbours = neighbours
        self._sorted = np.sort(np.ascontiguousarray(np.transpose(scores)), axis=1)
        self._excluded = np.isneginf(self._sorted).sum(axis=1)

    def weights(self, reference, scores) -> np.ndarray:
        """Weights (m,) float64 of `scores` (m,) of particles at one reference."""
        scores = np.asarray(scores)
        pool = self._neighbours[reference]
        below = np.zeros(len(scores))
        size, highest = 0, -np.inf
        for column in pool:
            values = self._sorted[column][self._excluded[column] :]
            left, right = np.searchsorted(values, scores, "left"), np.searchsorted(values, scores, "right")
            below += 0.5 * (left + right)
            size += len(values)
            highest = max(highest, float(values[-1])) if len(values) else highest
        rank = np.clip((below - 0.5) / max(size - 1, 1), 0.0, 1.0) if size > 1 else np.ones(len(scores))
        share = np.maximum(scores, 0.0) / (highest if highest > 0 else 1.0)
        return share * rank

    def matrix(self, scores) -> np.ndarray:
        """Weights (n, R) float32 of every pair."""
        result = np.zeros(np.shape(scores), dtype=np.float32)
        for reference in range(result.shape[1]):
            result[:, reference] = self.weights(reference, scores[:, reference])
        return result


def best_references(votes, keep):
    """The references with the largest positive votes.

    Parameters
    ----------
    votes : (n, R) float array
    keep : int

    Returns
    -------
    particle, reference : (rows,) int64 arrays
        Grouped by particle, best first; particles without a positive vote are absent.
    """
    votes = np.asarray(votes)
    keep = min(keep, votes.shape[1])
    chosen = np.argpartition(-votes, keep - 1, axis=1)[:, :keep]
    values = np.take_along_axis(votes, chosen, axis=1)
    order = np.lexsort((chosen, -values), axis=1)
    chosen, values = np.take_along_axis(chosen, order, axis=1), np.take_along_axis(values, order, axis=1)
    particle, place = np.nonzero(values > 0)
    return particle, chosen[particle, place]


def margins(scores, particle, reference) -> np.ndarray:
    """How far each row's score is above the best of the particle's other references; 0 if there is no other."""
    scores = np.asarray(scores)
    if scores.shape[1] < 2:
        return np.zeros(len(particle))
    top = np.partition(scores, scores.shape[1] - 2, axis=1)[:, -2:]
    own = scores[particle, reference]
    other = np.where(own >= top[particle, 1], top[particle, 0], top[particle, 1])
    return np.where(np.isfinite(other), own - other, 0.0)


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
    correlation = np.clip(np.asarray(scores, dtype=np.float64), 0.0, 0.999)
    log = -0.5 * independent * np.log1p(-(correlation**2))
    log[np.isneginf(scores)] = -np.inf
    highest = log.max(axis=1, keepdims=True)
    probability = np.exp(log - np.where(np.isfinite(highest), highest, 0.0))
    total = np.maximum(probability.sum(axis=1, keepdims=True), 1e-300)
    probability /= total
    return -(probability * np.log(np.maximum(probability, 1e-300))).sum(axis=1) + 0.0
