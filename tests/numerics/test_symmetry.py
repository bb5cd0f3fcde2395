import numpy as np
import pytest

from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.numerics.symmetry import point_group, symmetry_matrices, view_symmetry

ORDERS = {"c1": 1, "c4": 4, "c13": 13, "d1": 2, "d2": 4, "d7": 14, "t": 12, "o": 24} | {
    f"i{k}": 60 for k in (1, 2, 3, 4)
}

# Order of the group, and of the rotations between equal projections.
MIRRORED = {"ci": (2, 1), "cs": (2, 2), "c5v": (10, 10), "c1v": (2, 2), "c4h": (8, 4), "c3h": (6, 6)}
MIRRORED |= {"s2": (2, 1), "s4": (4, 4), "s6": (6, 3), "d3v": (12, 6), "d4v": (16, 8), "d4h": (16, 8)}
MIRRORED |= {"d7h": (28, 28), "td": (24, 24), "th": (24, 12), "oh": (48, 24)}
MIRRORED |= {f"i{k}h": (120, 60) for k in (1, 2, 3, 4)}


def mirror(normal):
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    return np.eye(3) - 2 * np.outer(normal, normal)


def turn(fold, axis):
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    angle = 2 * np.pi / fold
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def contains(group, matrix, tolerance=1e-9):
    return np.abs(group - matrix).max((1, 2)).min() < tolerance


@pytest.mark.parametrize("name", ORDERS)
def test_is_a_group_of_rotations(name):
    group = symmetry_matrices(name)
    assert group.shape == (ORDERS[name], 3, 3) and group.dtype == np.float64
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(np.linalg.det(group), 1, atol=1e-12)
    np.testing.assert_allclose(
        group @ group.transpose(0, 2, 1), np.tile(np.eye(3), (len(group), 1, 1)), atol=1e-12
    )
    gaps = np.abs(group[:, None] - group[None]).max((2, 3)) + np.eye(len(group))
    assert gaps.min() > 1e-3
    assert all(contains(group, a @ b) for a in group for b in group)


@pytest.mark.parametrize(
    "name, fold, axis",
    [
        ("c5", 5, (0, 0, 1)),
        ("d3", 3, (0, 0, 1)),
        ("d3", 2, (1, 0, 0)),
        ("t", 3, (0, 0, 1)),
        ("t", 2, (0, 0.816496, 0.577350)),
        ("o", 4, (0, 0, 1)),
        ("o", 4, (1, 0, 0)),
        ("o", 3, (1, 1, 1)),
        ("i1", 2, (1, 0, 0)),
        ("i1", 5, (0.85065080702670, 0, -0.5257311142635)),
        ("i1", 3, (0.9341723640, 0.3568220765, 0)),
        ("i2", 2, (0, 0, 1)),
        ("i2", 5, (0.525731114, 0, 0.850650807)),
        ("i2", 3, (0, 0.356822076, 0.934172364)),
        ("i3", 2, (-0.5257311143, 0, 0.8506508070)),
        ("i3", 5, (0, 0, 1)),
        ("i3", 3, (-0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
        ("i4", 2, (0.5257311143, 0, 0.8506508070)),
        ("i4", 5, (0.8944271932547096, 0, 0.4472135909903704)),
        ("i4", 3, (0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
    ],
)
def test_axes_stand_where_xmipp_puts_them(name, fold, axis):
    assert contains(symmetry_matrices(name), turn(fold, axis), 1e-5)


@pytest.mark.parametrize("name", MIRRORED)
def test_groups_with_mirrors(name):
    """Closed, half of it the rotations; molecules, and so the reconstruction, refuse it."""
    group = point_group(name)
    assert len(group) == MIRRORED[name][0]
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(np.linalg.det(group), np.repeat([1, -1], len(group) // 2), atol=1e-12)
    gaps = np.abs(group[:, None] - group[None]).max((2, 3)) + np.eye(len(group))
    assert gaps.min() > 1e-3
    assert all(contains(group, a @ b) for a in group for b in group)
    with pytest.raises(ParameterError, match="symmetry"):
        symmetry_matrices(name)


@pytest.mark.parametrize(
    "name, generators",
    [
        ("ci", [-np.eye(3)]),
        ("cs", [mirror((0, 0, 1))]),
        ("c5v", [turn(5, (0, 0, 1)), mirror((0, 1, 0))]),
        ("c5h", [turn(5, (0, 0, 1)), mirror((0, 0, 1))]),
        ("s6", [turn(3, (0, 0, 1)), -np.eye(3)]),
        ("s4", [turn(4, (0, 0, 1)) @ mirror((0, 0, 1))]),
        ("d3v", [turn(3, (0, 0, 1)), turn(2, (1, 0, 0)), mirror((1, 0, 0))]),
        ("d3h", [turn(3, (0, 0, 1)), turn(2, (1, 0, 0)), mirror((0, 0, 1))]),
        ("td", [turn(3, (0, 0, 1)), turn(2, (0, 0.816496, 0.577350)), mirror((1.4142136, 2.4494897, 0))]),
        ("th", [turn(3, (0, 0, 1)), turn(2, (0, -0.816496, -0.577350)), -np.eye(3)]),
        ("oh", [turn(3, (1, 1, 1)), turn(4, (0, 0, 1)), mirror((0, 1, 1))]),
        ("i1h", [turn(5, (0.85065080702670, 0, -0.5257311142635)), mirror((0, 0, -1))]),
        ("i2h", [turn(5, (0.525731114, 0, 0.850650807)), mirror((1, 0, 0))]),
        ("i3h", [turn(5, (0, 0, 1)), -np.eye(3)]),
        ("i4h", [turn(5, (0, 0, 1)), -np.eye(3)]),
    ],
)
def test_mirrors_stand_where_xmipp_puts_them(name, generators):
    assert all(contains(point_group(name), generator, 1e-5) for generator in generators)


@pytest.mark.parametrize("name", [*ORDERS, *MIRRORED])
def test_view_symmetry_joins_equal_projections_and_no_others(name):
    """Exact projections of points, along directions that a rotation relates, differ by half a turn at most."""
    group, views = point_group(name), view_symmetry(name)
    assert len(views) == MIRRORED.get(name, (0, len(group)))[1]
    assert all(contains(views, a @ b) for a in views for b in views)
    rng = np.random.default_rng(1)
    points = rng.normal(size=(1, 3)) @ group.swapaxes(1, 2)
    points = np.concatenate([points[:, 0], rng.normal(size=3) @ group.swapaxes(1, 2)])
    axes = random_matrices(1, rng)[0]

    def seen(frame):
        return np.sort_complex(np.round(points @ frame[0] + 1j * (points @ frame[1]), 9) + 0.0)

    def equal(a, b):
        return min(np.abs(seen(a) - seen(frame)).max() for frame in (b, b * [[-1], [-1], [1]])) < 1e-6

    assert all(equal(axes, axes @ view.T) for view in views)
    other = random_matrices(1, rng)[0]
    assert not equal(axes, axes @ other.T)


@pytest.mark.parametrize(
    "name", ["s3", "s4v", "s0", "ch", "c0v", "tdh", "tv", "ih", "i5h", "i2v", "dv", "cih", "s4h"]
)
def test_groups_with_mirrors_that_do_not_exist_are_refused(name):
    with pytest.raises(ParameterError, match="symmetry"):
        point_group(name)


@pytest.mark.parametrize("name", ["c0", "c", "d", "x2", "", "ci", "i5", "i1h", "c2v", "c-2", "td", "c99999", "i"])
def test_other_names_are_refused(name):
    with pytest.raises(ParameterError, match="symmetry"):
        symmetry_matrices(name)


def test_case_and_aliases():
    for name, same in (("C4", "c4"), ("D02", "d2"), (" O ", "o"), ("I1", "i1")):
        np.testing.assert_array_equal(symmetry_matrices(name), symmetry_matrices(same))
    np.testing.assert_array_equal(point_group("C04H"), point_group("c4h"))


def test_result_may_be_changed_by_the_caller():
    symmetry_matrices("c2")[:] = 0
    np.testing.assert_array_equal(symmetry_matrices("c2")[0], np.eye(3))


@pytest.mark.parametrize(
    "name, constant, order",
    [
        ("c7", "SYM_CYCLIC", 7),
        ("d7", "SYM_DIHEDRAL_X", 7),
        ("o", "SYM_OCTAHEDRAL", 1),
        ("i1", "SYM_I222", 1),
        ("i2", "SYM_I222r", 1),
        ("i3", "SYM_In25", 1),
        ("i4", "SYM_In25r", 1),
    ],
)
def test_agrees_with_scipion(name, constant, order):
    symmetry = pytest.importorskip("pwem.convert.symmetry")
    import pwem.constants

    theirs = symmetry.getSymmetryMatrices(getattr(pwem.constants, constant), n=order)[:, :3, :3]
    ours = symmetry_matrices(name)
    assert len(theirs) == len(ours)
    assert all(contains(ours, matrix, 1e-6) for matrix in theirs)
