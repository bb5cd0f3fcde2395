"""Sums of both twins against the oracle."""

import numpy as np
import pytest

from xmipp_accel.kernels.reference.pose_sums import pose_sums as oracle
from xmipp_accel.particle_alignment import polish


def _sums(device, *arrays):
    return polish._sums(*(device.asarray(array) for array in arrays))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 1, 31), (17, 4, 2), (0, 3, 4)])
def test_sums_are_those_of_the_oracle(device, shape):
    rng = np.random.default_rng(1)
    pairs, rings, angles = shape

    def values(*sizes):
        return (rng.normal(size=sizes) + 1j * rng.normal(size=sizes)).astype(np.complex64)

    arguments = (
        values(pairs, rings, 3, angles),
        values(*shape),
        values(*shape),
        rng.uniform(0.5, 2, rings).astype(np.float32),
        rng.normal(size=(2, rings, angles)).astype(np.float32),
    )
    found = _sums(device, *arguments)
    expected = oracle(*arguments)
    assert expected.shape == (pairs, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(initial=0))


def test_a_pair_does_not_depend_on_the_others(device):
    rng = np.random.default_rng(2)
    turned, samples, phases = (
        rng.normal(size=size).astype(np.complex64) for size in ((9, 4, 3, 25), (9, 4, 25), (9, 4, 25))
    )
    factors, frequencies = np.ones(4, np.float32), rng.normal(size=(2, 4, 25)).astype(np.float32)
    whole = _sums(device, turned, samples, phases, factors, frequencies)
    alone = _sums(device, turned[5:6], samples[5:6], phases[5:6], factors, frequencies)
    np.testing.assert_array_equal(alone[0], whole[5])
