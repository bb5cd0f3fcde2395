"""Sums over shells of both twins against the definition."""

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference.shells import correlate_shells
from xmipp_accel.numerics.fsc import shell_sums


@pytest.mark.parametrize("shape", [(2, 2, 2), (7, 7, 7), (12, 12, 12), (31, 31, 31), (66, 66, 66), (1, 13, 13)])
def test_sums_are_those_of_the_definition(device, shape):
    rng = np.random.default_rng(shape[1])
    a, b = (np.fft.rfftn(rng.normal(size=shape)).astype(np.complex64) for _ in range(2))
    found = shell_sums(device.asarray(a), device.asarray(b))
    expected = correlate_shells(a, b, shape[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * expected[1].max())
    assert found[1].sum() <= (abs(np.fft.fftn(np.fft.irfftn(a, shape))) ** 2).sum() * (1 + 1e-5)


def test_every_radius_is_rounded_to_its_shell(device):
    """A transform of ones counts the samples of each shell."""
    n = 90
    k = np.fft.fftfreq(n) * n
    squares = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    counts = np.bincount(np.rint(np.sqrt(squares)).astype(int).ravel())[: n // 2 + 1]
    ones = device.asarray(np.ones((n, n, n // 2 + 1), np.complex64))
    np.testing.assert_array_equal(shell_sums(ones, ones)[0], counts)
    assert isinstance(shell_sums(ones, ones), np.ndarray) and to_host(ones).min() == 1
