import numpy as np
import pytest
from scipy.interpolate import BSpline

from xmipp_accel.numerics import bspline


@pytest.mark.parametrize("n_control", [4, 5, 9])
def test_basis_equals_scipys(n_control):
    length = 37.0
    h = length / (n_control - 3)
    knots = (np.arange(n_control + 4) - 3) * h
    x = np.linspace(0, length, 50)[:-1]
    expected = BSpline(knots, np.eye(n_control), 3)(x)
    np.testing.assert_allclose(bspline.basis_matrix(x, length, n_control), expected, atol=1e-12)


def test_rows_sum_to_one_up_to_both_ends():
    matrix = bspline.basis_matrix([0.0, 0.3, 11.9, 12.0], 12.0, 6)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-12)


def test_reproduces_straight_lines():
    n, length = 7, 20.0
    nodes = (np.arange(n) - 1) * length / (n - 3)
    x = np.linspace(0, length, 13)
    np.testing.assert_allclose(bspline.basis_matrix(x, length, n) @ (2 * nodes + 1), 2 * x + 1, atol=1e-12)
    assert np.abs(bspline.second_differences(n) @ nodes).max() < 1e-12


def test_too_few_control_points():
    with pytest.raises(ValueError, match="4 control points"):
        bspline.basis_matrix([0.0], 1.0, 3)


def test_grid_and_scattered_evaluation_agree():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, 5, 6, 2))
    lengths = 8.0, 100.0, 70.0
    t, y, x = np.arange(8.0), np.linspace(0, 99, 4), np.linspace(0, 69, 3)
    grid = bspline.evaluate_grid(points, t, y, x, lengths)
    assert grid.shape == (8, 4, 3, 2)
    scattered = bspline.evaluate(points, t[:, None, None], y[:, None], x, lengths)
    np.testing.assert_allclose(grid, scattered, atol=1e-12)
