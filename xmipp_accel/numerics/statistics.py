"""Statistics of images."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, to_host


def normalise_background(images, radius):
    """Give each image mean 0 and standard deviation 1 outside a circle around its origin.

    Parameters
    ----------
    images : (n, N, N) float array
    radius : float
        Px; the pixels farther from pixel ``N // 2`` are the background.

    Returns
    -------
    (n, N, N) float32 array
        An image with a constant background only loses its mean.
    """
    xp = array_module(images)
    axis = xp.arange(images.shape[-1]) - images.shape[-1] // 2
    background = xp.hypot(axis[:, None], axis[None]) > radius
    values = images[:, background].astype(np.float64)
    mean, deviation = values.mean(axis=1), values.std(axis=1)
    deviation = xp.where(deviation > 1e-12, deviation, 1.0)
    return ((images - mean[:, None, None]) / deviation[:, None, None]).astype(np.float32)


def usable_rows(images) -> np.ndarray:
    """Which images can be compared: those whose pixels are all finite and not all the same.

    Parameters
    ----------
    images : (n, N, N) float array
        NumPy or CuPy.

    Returns
    -------
    (n,) bool NumPy array
    """
    low, high = (to_host(part).astype(np.float64) for part in (images.min(axis=(1, 2)), images.max(axis=(1, 2))))
    finite = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(finite, low, 0.0), np.where(finite, high, 0.0)
    return finite & (high - low > 1e-6 * np.maximum(np.abs(low), np.abs(high)))
