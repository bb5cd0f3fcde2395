import numpy as np
import pytest

from tests.numerics.angles import angular_distance
from tests.shared_data import shared_path
from xmipp_accel.numerics.rotations import viewing_directions
from xmipp_accel.numerics.sphere import (
    asymmetric_unit,
    geodesic_directions,
    perturb_directions,
    projection_directions,
)
from xmipp_accel.numerics.symmetry import symmetry_matrices, view_symmetry

ALL = ["c1", "c4", "d2", "d7", "t", "o", "i1", "i2", "i3", "i4", "ci", "cs", "c5v", "c4h", "c3h", "s4", "s6"]
ALL += ["d3v", "d4h", "d7h", "td", "th", "oh", "i1h", "i2h", "i3h", "i4h"]


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


@pytest.mark.parametrize("name", ALL)
def test_asymmetric_units(name):
    matrices = view_symmetry(name)
    points = geodesic_directions(5)
    kept = points[asymmetric_unit(points, matrices)]
    # The grid does not share the group, so its share differs a little from 1/g.
    assert len(kept) == pytest.approx(len(points) / len(matrices), rel=0.12)
    # Every direction has a kept one near it, modulo the symmetry, and no two kept ones are equivalent.
    assert angular_distance(points, kept, matrices).min(1).max() < 6
    between = angular_distance(kept, kept, matrices) + 180 * np.eye(len(kept))
    assert between.min() > 1e-3


@pytest.mark.parametrize("name, theirs", [("c4", 93), ("d2", 104), ("d7", 30), ("o", 16), ("i1", 10), ("i2", 8)])
def test_units_cover_the_sphere_as_xmipps_do_with_fewer_directions(name, theirs):
    original = read_doc(shared_path(f"golden/galleries/g_{name}.doc"))
    assert len(original) == theirs
    matrices = symmetry_matrices(name)
    ours = viewing_directions(*projection_directions(10, matrices))
    assert len(ours) <= len(original)  # Xmipp's has the borders twice
    every = geodesic_directions(2.5)
    gap, their_gap = (angular_distance(every, unit, matrices).min(1) for unit in (ours, original))
    # Where a unit's borders meet, its grid does not join; Xmipp's twice kept borders help a little.
    assert gap.mean() <= 1.05 * their_gap.mean() and gap.max() < 10.5


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


@pytest.mark.parametrize("name", ALL)
def test_tilt_limits_keep_all_that_has_a_view_inside_and_nothing_else(name):
    matrices = view_symmetry(name)
    rot, tilt = projection_directions(10, matrices, 40, 75)
    assert tilt.min() >= 40 - 1e-6 and tilt.max() <= 75 + 1e-6
    kept = viewing_directions(rot, tilt)
    every = geodesic_directions(4)
    inside = (every[:, 2] >= np.cos(np.deg2rad(68))) & (every[:, 2] <= np.cos(np.deg2rad(47)))
    assert angular_distance(every[inside], kept, matrices).min(1).max() < 10


@pytest.mark.parametrize("step", [0.8, 2, 3.7, 33, 40])
def test_any_step_gives_a_full_grid(step):
    rot, tilt = projection_directions(step, view_symmetry("oh"))
    points = viewing_directions(rot, tilt)
    probes = perturb_directions(np.zeros((200, 3)), 60, np.random.default_rng(0))
    assert angular_distance(probes, points, view_symmetry("oh")).min(1).max() < 0.9 * step


def test_perturbation_has_the_asked_deviation_and_repeats_with_its_seed():
    grid = geodesic_directions(5)
    moved = perturb_directions(grid, 1.5, np.random.default_rng(3))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1)
    angle = np.rad2deg(np.arccos(np.clip((grid * moved).sum(1), -1, 1)))
    assert np.sqrt((angle**2).mean() / 2) == pytest.approx(1.5, rel=0.05)
    c1 = symmetry_matrices("c1")
    first, again, other = (projection_directions(5, c1, perturb=1.5, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[1] - other[1]).max() > 0.5
    np.testing.assert_array_equal(projection_directions(5, c1, seed=4), projection_directions(5, c1))
    limited = projection_directions(5, view_symmetry("d7h"), 20, 70, perturb=3)[1]
    assert limited.min() >= 20 - 1e-6 and limited.max() <= 70 + 1e-6
