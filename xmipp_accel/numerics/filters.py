"""Changes of images in Fourier space."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module


def fourier_resize(images, size):
    """Resample images to another number of pixels over the same field of view, by cropping or padding spectra.

    The origin, pixel ``n // 2``, stays the origin; values are kept, not sums.

    Parameters
    ----------
    images : (m, n, n) float32 array
    size : int
        New edge, px.

    Returns
    -------
    (m, size, size) float32 array
    """
    box = images.shape[-1]
    if size == box:
        return images
    xp, fft = array_module(images), fft_module(images)
    spectrum = fft.rfft2(fft.ifftshift(images, axes=(-2, -1)))
    common = min(box, size)
    low, high = (common + 1) // 2, common // 2
    resized = xp.zeros((len(images), size, size // 2 + 1), dtype=spectrum.dtype)
    resized[:, :low, : high + 1] = spectrum[:, :low, : high + 1]
    if high:
        resized[:, -high:, : high + 1] = spectrum[:, -high:, : high + 1]
    if common % 2 == 0:
        # The highest frequency of an even size has one sample for both signs: shared when padding, left out else.
        share = 0.5 if size > box else 0.0
        resized[:, -high] *= share
        if size > box:
            resized[:, high] = resized[:, -high]
        resized[:, :, high] *= share
    scale = np.float32((size / box) ** 2)
    return fft.fftshift(fft.irfft2(resized, s=(size, size)) * scale, axes=(-2, -1)).astype(np.float32)


def resample_images(images, ratio, size):
    """Images on a grid of another pixel size and another number of pixels, by their Fourier series.

    The origin, pixel ``n // 2``, stays the origin and values are kept. Coarser pixels lose the detail beyond their
    Nyquist frequency; pixels outside the old field of view get the mean of the image's border.

    Parameters
    ----------
    images : (m, n, n) float array
        NumPy or CuPy.
    ratio : float
        The new pixel size over the old one.
    size : int
        New edge, px.

    Returns
    -------
    (m, size, size) float32 array
    """
    xp, box = array_module(images), images.shape[-1]
    border = np.ones((box, box), bool)
    border[1:-1, 1:-1] = False
    level = images[:, xp.asarray(border)].mean(axis=1, dtype=np.float64)[:, None, None]
    matrix = xp.asarray(_series(box, ratio, size))
    return (matrix @ (images - level) @ matrix.T + level).astype(np.float32)


def _series(box, ratio, size):
    """(size, box) float64: values of the Fourier series of a line at the new pixels."""
    old, new = np.arange(box) - box // 2, (np.arange(size) - size // 2) * ratio
    waves = np.arange(box // 2 + 1)
    # Up to the new Nyquist frequency; the old one of an even box has a single sample for both signs.
    weights = np.where((waves == 0) | (2 * waves == box), 1.0, 2.0) / box
    weights *= (2 * waves * ratio < box - 1e-9) | ((2 * waves == box) & (ratio <= 1))
    here, there = (2 * np.pi / box * np.outer(axis, waves) for axis in (new, old))
    matrix = (np.cos(here) * weights) @ np.cos(there).T + (np.sin(here) * weights) @ np.sin(there).T
    inside = (new > old[0] - 0.5) & (new < old[-1] + 0.5)
    return matrix * inside[:, None]
