"""Euler angles against SciPy's rotations."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler


def test_matrices_are_scipys_transposed():
    rng = np.random.default_rng(1)
    angles = np.concatenate([rng.uniform(-400, 400, (50, 3)), 90.0 * rng.integers(-4, 5, (30, 3))])
    expected = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(euler_to_matrix(*angles.T), expected, atol=1e-14)


@pytest.mark.parametrize("rot, shape", [(10, (3, 3)), ([10, 20], (2, 3, 3)), (np.zeros((2, 4)), (2, 4, 3, 3))])
def test_angles_may_be_numbers_or_arrays(rot, shape):
    matrices = euler_to_matrix(rot, 30, 40.0)
    assert matrices.shape == shape and matrices.dtype == np.float64
    np.testing.assert_allclose(matrices @ matrices.swapaxes(-1, -2), np.broadcast_to(np.eye(3), shape), atol=1e-15)


def test_angles_come_back():
    rng = np.random.default_rng(2)
    angles = np.stack([rng.uniform(-180, 180, 50), rng.uniform(0.1, 179.9, 50), rng.uniform(-180, 180, 50)])
    np.testing.assert_allclose(matrix_to_euler(euler_to_matrix(*angles)), angles, atol=1e-9)
    poles = euler_to_matrix([25.0, 25.0], [0.0, 180.0], [50.0, 50.0])
    np.testing.assert_allclose(euler_to_matrix(*matrix_to_euler(poles)), poles, atol=1e-12)
