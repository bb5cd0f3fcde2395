import numpy as np
import pytest

from tests.shared_data import shared_path
from xmipp_accel.numerics.rotations import viewing_directions
from xmipp_accel.numerics.sphere import asymmetric_unit, geodesic_directions, projection_directions
from xmipp_accel.numerics.symmetry import angular_distance, symmetry_matrices


def read_doc(path):
    lines = [line.split() for line in path.read_text().splitlines() if line.endswith(" ")]
    rows = np.array([[float(r[1]), float(r[2])] for r in lines if len(r) == 10])
    return viewing_directions(rows[:, 0], rows[:, 1])


@pytest.mark.parametrize("step, count", [(5, 1692), (7.5, 642), (10, 362), (15, 162), (30, 42), (90, 12)])
def test_counts(step, count):
    points = geodesic_directions(step)
    assert points.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)


def test_neighbours_are_as_far_apart_as_asked():
    points = geodesic_directions(5)
    cosine = points @ points.T - 2 * np.eye(len(points))
    nearest = np.rad2deg(np.arccos(cosine.max(1)))
    assert 4.5 < nearest.min() and nearest.max() < 5.6


@pytest.mark.parametrize("name, step", [("galleries/g_c1.doc", 10), ("align_significant/gallery.doc", 15)])
def test_same_directions_as_xmipp(name, step):
    theirs = read_doc(shared_path(f"golden/{name}"))
    ours = geodesic_directions(step)
    assert len(ours) == len(theirs)
    assert angular_distance(theirs, ours).min(1).max() < 1e-3


@pytest.mark.parametrize("name", ["c1", "c4", "d2", "d7", "t", "o", "i1", "i4"])
def test_asymmetric_units(name):
    matrices = symmetry_matrices(name)
    points = geodesic_directions(5)
    kept = points[asymmetric_unit(points, matrices)]
    # The grid does not share the group, so its share differs a little from 1/g.
    assert len(kept) == pytest.approx(len(points) / len(matrices), rel=0.12)
    # Every direction has a kept one near it, modulo the symmetry, and no two kept ones are equivalent.
    assert angular_distance(points, kept, matrices).min(1).max() < 6
    between = angular_distance(kept, kept, matrices) + 180 * np.eye(len(kept))
    assert between.min() > 1e-3


def test_tilt_limits():
    _, tilt = projection_directions(10, symmetry_matrices("c1"), 30, 100)
    assert tilt.min() >= 30 - 1e-6 and tilt.max() <= 100 + 1e-6 and len(tilt) < 362
    every = geodesic_directions(10)
    inside = (every[:, 2] <= np.cos(np.deg2rad(30)) + 1e-9) & (every[:, 2] >= np.cos(np.deg2rad(100)) - 1e-9)
    assert len(tilt) == inside.sum()


def test_tilt_limits_keep_an_orbit_that_has_a_member_inside():
    d2 = symmetry_matrices("d2")
    upper, lower = projection_directions(10, d2, 0, 90), projection_directions(10, d2, 90, 180)
    assert len(upper[0]) == len(lower[0]) == len(projection_directions(10, d2)[0])
    assert upper[1].max() <= 90 + 1e-6 and lower[1].min() >= 90 - 1e-6
