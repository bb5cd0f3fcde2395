import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.numerics.filters import fourier_resize


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
