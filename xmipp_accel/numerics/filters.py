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
