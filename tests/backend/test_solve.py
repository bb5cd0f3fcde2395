import numpy as np
import pytest

from xmipp_accel.backend import solve_positive, to_host


@pytest.mark.parametrize("n", [1, 31, 33, 200])
def test_positive_systems(device, n):
    """Each matrix with a right-hand side of its own, and with one for several."""
    rng = np.random.default_rng(n)
    roots = rng.normal(size=(3, 2, n, n + 5))
    matrices = roots @ roots.swapaxes(-1, -2) / n + np.eye(n)
    for shape in ((3, 2, n), (2, n)):
        right = rng.normal(size=shape)
        found = to_host(solve_positive(device.asarray(matrices), device.asarray(right)))
        assert found.shape == (3, 2, n)
        expected = np.linalg.solve(matrices, np.broadcast_to(right, (3, 2, n))[..., None])[..., 0]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_what_is_not_positive_on_the_cpu():
    matrices = np.stack([np.eye(3), np.diag([1.0, -1.0, 1.0])])
    with pytest.raises(np.linalg.LinAlgError):
        solve_positive(matrices, np.ones((2, 3)))
