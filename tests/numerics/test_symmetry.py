import numpy as np
import pytest

from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.symmetry import angular_distance, symmetry_matrices

ORDERS = {"c1": 1, "c4": 4, "c13": 13, "d1": 2, "d2": 4, "d7": 14, "t": 12, "o": 24} | {
    f"i{k}": 60 for k in (1, 2, 3, 4)
}


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


@pytest.mark.parametrize("name", ["c0", "c", "d", "x2", "", "ci", "i5", "i1h", "c2v", "c-2", "td", "c99999", "i"])
def test_other_names_are_refused(name):
    with pytest.raises(ParameterError, match="symmetry"):
        symmetry_matrices(name)


def test_case_and_aliases():
    for name, same in (("C4", "c4"), ("D02", "d2"), (" O ", "o"), ("I1", "i1")):
        np.testing.assert_array_equal(symmetry_matrices(name), symmetry_matrices(same))


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


def test_angular_distance_is_the_smallest_over_the_group():
    x, y, z = np.eye(3)
    np.testing.assert_allclose(angular_distance([x], [y, z, -x]), [[90, 90, 180]])
    np.testing.assert_allclose(angular_distance([x], [y, z, -x], symmetry_matrices("c4")), [[0, 90, 0]], atol=1e-5)
