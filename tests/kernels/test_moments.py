"""Statistics of pixels against NumPy's in float64."""

import numpy as np
import pytest

from xmipp_accel.kernels.cpu.moments import moments


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint16", "int16"])
@pytest.mark.parametrize("count", [1, 7, 10007])
def test_moments(dtype, count):
    values = np.random.default_rng(count).normal(60, 15, count).astype(dtype)
    values[0] = values.max()
    exact = values.astype(np.float64)
    expected = exact.min(), exact.max(), exact.mean(), ((exact - exact.mean()) ** 2).sum()
    np.testing.assert_allclose(moments(values), expected, rtol=1e-9, atol=1e-6)


def test_a_large_offset_costs_no_precision():
    values = (1e6 + np.random.default_rng(0).normal(0, 1, 5000)).astype(np.float32)
    exact = values.astype(np.float64)
    assert moments(values)[3] == pytest.approx(((exact - exact.mean()) ** 2).sum(), rel=1e-6)


def test_values_that_are_not_finite_give_no_mean():
    _, _, mean, squares = moments(np.array([1, np.nan, 3], np.float32))
    assert np.isnan(mean)
    assert np.isnan(squares)
