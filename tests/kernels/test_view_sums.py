"""Products with views and sums over views of both twins against the oracle."""

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.initial_volume import posterior
from xmipp_accel.kernels.reference import view_sums as oracle


def _products(device, *arrays):
    return to_host(posterior._products(*(device.asarray(array) for array in arrays)))


def _added(device, sums, shifted, pairs, factors):
    first = np.searchsorted(pairs[:, 0], np.arange(len(sums) + 1)).astype(np.int32)
    sums = device.asarray(sums.copy())
    posterior._add(sums, *(device.asarray(array) for array in (shifted, pairs, first, factors)))
    return to_host(sums)


def _made(views, images, shifts, rings, harmonics, share, seed=0):
    rng = np.random.default_rng(seed)

    def values(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    view, image = np.nonzero(rng.random((views, images)) < share)
    pairs = np.stack([view, image, rng.integers(0, shifts, len(view))], axis=1).astype(np.int32)
    shape = rings, harmonics
    return values(views, *shape), values(images, shifts, *shape), pairs, values(len(pairs), harmonics)


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1, 1), (7, 5, 3, 4, 9, 0.4), (31, 13, 1, 1, 67, 0.9), (5, 6, 2, 17, 1, 0.5), (4, 3, 2, 2, 5, 0)],
)
def test_both_are_those_of_the_oracle(device, sizes):
    views, shifted, pairs, factors = _made(*sizes)
    expected = oracle.view_products(views, shifted, pairs)
    assert expected.shape == (len(pairs), sizes[4])
    found = _products(device, views, shifted, pairs)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(initial=1))
    expected = views.astype(np.complex128)
    oracle.add_to_views(expected, shifted, pairs, factors)
    found = _added(device, views, shifted, pairs, factors)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_sums_in_instalments_are_the_same_to_the_last_digit(device):
    views, shifted, pairs, factors = _made(6, 9, 2, 5, 11, 0.7)
    whole = _added(device, views, shifted, pairs, factors)
    for part in (pairs[:, 1] < 4, pairs[:, 1] >= 4):
        views = _added(device, views, shifted, pairs[part], factors[part])
    np.testing.assert_array_equal(views, whole)
