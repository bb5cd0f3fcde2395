import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.numerics.statistics import normalise_background, usable_rows


def test_background_becomes_standard(device):
    rng = np.random.default_rng(0)
    images = rng.normal(3.0, 5.0, (4, 11, 11))
    images[:, 4:7, 4:7] += 100
    axis = np.arange(11) - 5
    outside = np.hypot(axis[:, None], axis[None]) > 3
    found = to_host(normalise_background(device.asarray(images), 3))
    np.testing.assert_allclose(found[:, outside].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(found[:, outside].std(axis=1), 1, atol=1e-5)
    assert found[:, 5, 5].min() > 15


def test_constant_background_only_loses_its_mean():
    images = np.full((1, 9, 9), 7.0)
    images[0, 4, 4] = 9.0
    found = normalise_background(images, 2)
    assert found[0, 0, 0] == 0 and found[0, 4, 4] == 2


def test_images_that_are_constant_or_not_finite_are_not_usable(device):
    images = np.random.default_rng(0).normal(1e4, 1.0, (6, 8, 8)).astype(np.float32)
    images[1] = 1e4
    images[2, 3, 3] = np.nan
    images[3, 0, 0] = -np.inf
    images[4] = 0
    images[5] = 1e4 + 1e-3 * images[0] / 1e4  # nothing but rounding
    found = usable_rows(device.asarray(images))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, [True, False, False, False, False, False])
