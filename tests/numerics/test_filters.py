import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.numerics.filters import fourier_resize, resample_images


def band_limited(size, largest, seed=0):
    """A sum of waves (size, size), the same function of the position in the box whatever the size."""
    rng = np.random.default_rng(seed)
    u = (np.arange(size) - size // 2) / size
    waves = [
        (a, b, *rng.normal(size=2)) for a in range(-largest, largest + 1) for b in range(-largest, largest + 1)
    ]
    return sum(
        c * np.cos(2 * np.pi * (a * u[:, None] + b * u[None]))
        + s * np.sin(2 * np.pi * (a * u[:, None] + b * u[None]))
        for a, b, c, s in waves
    )


@pytest.mark.parametrize("size", [5, 6, 9, 13, 16, 17])
@pytest.mark.parametrize("new_size", [5, 6, 11, 12, 20])
def test_band_limited_images_are_resampled_exactly(size, new_size, device):
    image = device.asarray(band_limited(size, 2)[None], dtype=np.float32)
    resized = to_host(fourier_resize(image, new_size))
    assert resized.shape == (1, new_size, new_size) and resized.dtype == np.float32
    np.testing.assert_allclose(resized[0], band_limited(new_size, 2), atol=1e-4)


def test_detail_beyond_the_new_band_is_removed():
    image = np.cos(2 * np.pi * 6 * np.arange(16) / 16)[None, None, :] * np.ones((1, 16, 1))
    assert np.abs(fourier_resize(image.astype(np.float32), 8)).max() < 1e-6


@pytest.mark.parametrize("size, new_size", [(12, 12), (12, 18), (13, 20), (16, 9), (15, 10), (10, 15)])
def test_resampling_over_the_same_field_of_view_crops_or_pads_the_spectrum(size, new_size, device):
    images = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    expected = fourier_resize(images, new_size)
    got = to_host(resample_images(device.asarray(images), size / new_size, new_size))
    assert got.dtype == np.float32
    inner = (slice(None), slice(1, -1), slice(1, -1))  # at the rim, a new pixel may lie beyond the last old one
    np.testing.assert_allclose(got[inner], expected[inner], atol=2e-5)


@pytest.mark.parametrize("ratio, size", [(1.0, 21), (0.73, 40), (1.31, 17), (2.5, 9), (0.4, 15)])
def test_resampling_keeps_the_physical_scale_and_the_origin(ratio, size):
    def image(box, pixel):
        axis = (np.arange(box) - box // 2) * pixel
        x, y = axis[None], axis[:, None]
        return np.exp(-((x - 2.0) ** 2 + (y + 3.0) ** 2) / 18) + 0.5 * np.exp(-((x + 2) ** 2 + y**2) / 18) + 4

    got = resample_images(image(33, 1.0)[None], ratio, size)[0]
    np.testing.assert_allclose(got, image(size, ratio), atol=6e-3)


def test_resampled_images_continue_with_the_level_of_their_border():
    image = np.full((1, 8, 8), 7.0)
    np.testing.assert_allclose(resample_images(image, 1.0, 14), 7.0, rtol=1e-6)
    image[0, 4, 4] = 9
    padded = resample_images(image, 1.0, 14)[0]
    np.testing.assert_allclose(padded[3:11, 3:11], image[0], rtol=1e-6)
    np.testing.assert_allclose(padded[0], 7.0, rtol=1e-6)
