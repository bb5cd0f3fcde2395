"""The division by weights against its float64 oracle."""

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference import divide as reference
from xmipp_accel.reconstruction import finish

CENTRES = [1, 5, 8, 17]


def _sums(centre, seed=0):
    rng = np.random.default_rng(seed)
    sums = rng.normal(size=(2 * centre + 1, 2 * centre + 1, centre + 1, 4)).astype(np.float32)
    sums[..., 2] = rng.uniform(0, 2, size=sums.shape[:3])
    sums[..., 2][rng.uniform(size=sums.shape[:3]) < 0.3] = 0
    return sums


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0, 9.0])
def test_shell_weights_equal_the_oracle(device, centre, share):
    sums, limit = _sums(centre), share * centre**2 + 0.5
    found = finish.shell_weights(device.asarray(sums), limit)
    expected = reference.shell_weights(sums, limit)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[1].sum() >= 1


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("spare", [-1, 0, 1, 2, 7])
@pytest.mark.parametrize("least, limit", [(0.0, 0.8), (0.5, np.inf)])
def test_division_equals_the_oracle(device, centre, spare, least, limit):
    sums, rng = _sums(centre), np.random.default_rng(1)
    limit, largest = limit * centre**2, 0.0
    added, floor = rng.uniform(0, 0.3, size=(2, 2 * centre + 3)).astype(np.float32)
    for first in range(0, 2 * centre + 1, 3):
        rows = min(3, 2 * centre + 1 - first)
        shape = 2 * centre + spare, rows, centre + 1
        found = device.asarray(np.zeros(shape, np.complex64))
        arrays = (device.asarray(a) for a in (sums, added, floor))
        expected = np.zeros(shape, np.complex128)
        reference.divide(expected, sums, first, added, floor, least, limit)
        whole, *weights = arrays
        finish.divide(found, whole, first, *weights, least, limit)
        np.testing.assert_allclose(to_host(found), expected, atol=2e-5, rtol=2e-5)
        largest = max(largest, np.abs(expected).max())
    assert largest > 0
