"""Newton steps against the oracle."""

import numpy as np
import pytest

from xmipp_accel.kernels.cpu.newton import newton_steps
from xmipp_accel.kernels.reference.newton import newton_steps as oracle


def _steps(gradient, hessian, limit):
    out = np.full(gradient.shape, np.nan)
    newton_steps(gradient, hessian, limit, out)
    return out


@pytest.mark.parametrize(
    "pairs, n, scale", [(0, 3, 1.0), (1, 1, 1.0), (2000, 3, 1.0), (300, 3, 1e-9), (70, 5, 1e6)]
)
def test_steps_are_those_of_the_oracle(pairs, n, scale):
    rng = np.random.default_rng(1)
    hessian = rng.normal(size=(pairs, n, n)) * scale
    hessian = hessian + hessian.transpose(0, 2, 1)
    gradient, limit = rng.normal(size=(pairs, n)) * scale, rng.uniform(0.1, 2, n)
    np.testing.assert_allclose(_steps(gradient, hessian, limit), oracle(gradient, hessian, limit), atol=1e-9)


def test_flat_and_degenerate_curvatures():
    limit = np.array([1.0, 2.0, 0.5])
    hessian = np.array([np.zeros((3, 3)), np.diag([-2.0, -2.0, -2.0]), np.diag([-1.0, 0.0, 3.0]), np.ones((3, 3))])
    gradient = np.array([[0.0, 0, 0], [1, 1, 1], [0.1, 0.1, 0.1], [0.2, -0.1, 0.3]])
    found = _steps(gradient, hessian, limit)
    np.testing.assert_allclose(found, oracle(gradient, hessian, limit), atol=1e-9)
    np.testing.assert_array_equal(found[0], 0.0)


def test_the_top_of_a_paraboloid_is_one_step_away():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(3, 3))
    hessian, top = -(root @ root.T) - np.eye(3), np.array([0.02, -0.03, 0.01])
    step = _steps((-hessian @ top)[None], hessian[None], np.ones(3))
    np.testing.assert_allclose(step[0], top, rtol=1e-9)
