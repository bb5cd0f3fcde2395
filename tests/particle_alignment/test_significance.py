import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmipp_accel.numerics.rotations import viewing_directions
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.particle_alignment.significance import (
    PooledRanks,
    best_first,
    entropies,
    margins,
    neighbourhoods,
)


def weights_by_definition(scores, neighbours):
    """Sort each pool; equal values share the mean of their ranks."""
    result = np.zeros(scores.shape)
    for r, near in enumerate(neighbours):
        pool = np.sort(scores[:, near].ravel())
        pool = pool[np.isfinite(pool)]
        for i, m in enumerate(scores[:, r]):
            if m > 0:
                ranks = np.flatnonzero(pool == m)
                cdf = ranks.mean() / (len(pool) - 1) if len(pool) > 1 else 1.0
                result[i, r] = m / pool[-1] * cdf
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_weights_follow_their_definition(seed, n, references, ties):
    rng = np.random.default_rng(seed)
    # The ranks tell scores apart that differ by 1/8192.
    scores = np.round(rng.uniform(-0.3, 1, (n, references)) * (10 if ties else 8192))
    scores = (scores / (10 if ties else 8192)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    near = rng.random((references, references)) < 0.5
    neighbours = [np.flatnonzero(row | (np.arange(references) == r)) for r, row in enumerate(near)]
    ranks = PooledRanks(neighbours)
    for part in np.array_split(scores, 2):  # as batches come
        ranks.add(part)
    expected = weights_by_definition(scores, neighbours)
    np.testing.assert_allclose(ranks.matrix(scores), expected, atol=1e-6)


def test_the_best_of_a_pool_weighs_one():
    scores = np.array([[0.1, 0.2], [0.5, 0.4]], np.float32)
    ranks = PooledRanks([np.array([0, 1])] * 2)
    ranks.add(scores)
    weights = ranks.matrix(scores)
    assert weights[1, 0] == 1 and weights.max() == 1 and weights[0, 0] == 0


def test_neighbourhoods():
    directions = viewing_directions(np.array([0.0, 8.0, 30.0, 90.0]), np.array([90.0, 90, 90, 90]))
    assert [list(near) for near in neighbourhoods(directions, 10)] == [[0, 1], [0, 1], [2], [3]]
    assert list(neighbourhoods(directions, 25)[2]) == [1, 2]
    group = symmetry_matrices("c4")
    assert [list(near) for near in neighbourhoods(directions, 10, group)] == [[0, 1, 3], [0, 1, 3], [2], [0, 1, 3]]


def test_best_first():
    votes = np.array([[0.1, 0.5, 0.3], [-1, -2, 0.0], [0.2, -np.inf, 0.4], [0.1, 0.1, 0.1]])
    np.testing.assert_array_equal(best_first(votes, 2), [[1, 2], [2, 0], [2, 0], [0, 1]])
    np.testing.assert_array_equal(best_first(votes, 3)[:2], [[1, 2, 0], [2, 0, 1]])


def test_margins():
    scores = np.array([[0.5, 0.4, 0.1], [0.2, 0.2, 0.1], [0.3, -np.inf, -np.inf]])
    expected = [[0.1, -0.1, -0.4], [0, 0, -0.1], [0, 0, 0]]
    np.testing.assert_allclose(margins(scores), expected)
    np.testing.assert_array_equal(margins(scores[:, :1]), np.zeros((3, 1)))


def test_entropies():
    scores = np.array([[0.9, 0.1, 0.1], [0.5, 0.5, 0.5], [0.5, 0.5, -np.inf]])
    got = entropies(scores, 100)
    np.testing.assert_allclose(got, [0, np.log(3), np.log(2)], atol=1e-6)
    assert got[0] == pytest.approx(0, abs=1e-6)


def test_entropies_follow_their_definition():
    rng = np.random.default_rng(3)
    scores = rng.uniform(-0.2, 0.4, (150, 31))
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    scores[70] = -np.inf
    got = entropies(scores.astype(np.float32), 60)
    likelihood = np.where(np.isfinite(scores), (1 - np.clip(scores, 0, 1) ** 2) ** -30.0, 0.0)
    probability = likelihood / np.maximum(likelihood.sum(axis=1, keepdims=True), 1e-300)
    expected = -(probability * np.log(np.maximum(probability, 1e-300))).sum(axis=1)
    assert 0.5 < np.median(expected) < np.log(31) - 0.2 and got[70] == 0
    np.testing.assert_allclose(got, expected, rtol=1e-5)
