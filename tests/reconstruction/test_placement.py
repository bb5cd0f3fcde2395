"""Where images go."""

import numpy as np
import pytest

from xmipp_accel.backend import CPU
from xmipp_accel.errors import ParameterError
from xmipp_accel.kernels.reference.insert import SHIFT, WEIGHT
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views

COUNT, BOX = 60, 16


@pytest.fixture
def views():
    rng = np.random.default_rng(4)
    return Views(
        random_matrices(COUNT, rng),
        rng.uniform(-3, 3, (COUNT, 2)),
        weights=rng.choice([1.0, 0.5, 0.0, -1.0], COUNT),
        halves=rng.integers(1, 3, COUNT),
        groups=rng.integers(0, 3, COUNT),
    )


def _accumulator(**parameters):
    return FourierAccumulator(ReconstructFourierParameters(ctf="none", **parameters), CPU, BOX, 2.0)


def test_images_go_to_the_sums_of_their_half_set_and_group(views):
    placement = _accumulator(error_groups=3).place(views)
    np.testing.assert_array_equal(placement.parts, 3 * (views.halves - 1) + views.groups)
    np.testing.assert_array_equal(placement.signs, np.sign(views.weights))
    np.testing.assert_array_equal(placement.factors[:, SHIFT], views.shifts.astype(np.float32))
    order, edges = placement.order(7)
    assert len(edges) == 8 and edges[6] == edges[7] == COUNT  # nothing in the last one
    for part in range(6):
        members = order[edges[part] : edges[part + 1]]
        np.testing.assert_array_equal(np.sort(members), np.flatnonzero(placement.parts == part))
    assert not _accumulator(halves=False).place(views).parts.any()
    with pytest.raises(ParameterError, match="groups: expected 0 to 1 for every image"):
        _accumulator(error_groups=2).place(views)


def test_images_of_like_direction_follow_each_other():
    rng = np.random.default_rng(5)
    views = Views(random_matrices(4000, rng), np.zeros((4000, 2)), halves=rng.integers(1, 3, 4000))
    order, edges = _accumulator().place(views).order(2)
    for members in np.split(order, edges[1:-1]):
        ordered, random = views.matrices[members, 2], views.matrices[rng.permutation(members), 2]
        near, far = (np.abs((d[1:] * d[:-1]).sum(axis=1)) for d in (ordered, random))
        # Cells of a tenth are at most sqrt(3) / 10 across; few images begin a new one elsewhere.
        assert np.mean(near > np.cos(0.18)) > 0.6 > 0.1 > np.mean(far > np.cos(0.18))


def test_images_that_are_left_out_neither_count_nor_weigh(views):
    placement = _accumulator().place(views)
    left_out = np.arange(COUNT) % 3 == 0
    rest = placement.without(left_out)
    assert not rest.factors[left_out, WEIGHT].any() and not rest.signs[left_out].any()
    np.testing.assert_array_equal(rest.factors[~left_out], placement.factors[~left_out])
    np.testing.assert_array_equal(placement.signs, np.sign(views.weights))  # which stay as they are
