"""Numbers by which the alignment of a movie can be judged, from its result alone."""

from __future__ import annotations

import numpy as np

# RELION's division of the motion into early and late.
EARLY_EXPOSURE = 4.0


def motion_summary(shifts, sampling_rate, exposures):
    """Lengths of the path of the whole frame, in A.

    Parameters
    ----------
    shifts : ndarray, shape (n, 2)
    sampling_rate : float
        A/px.
    exposures : ndarray, shape (n,)
        Of each frame, e/A^2; zeros if unknown.

    Returns
    -------
    dict
        ``total_motion``, ``early_motion`` and ``late_motion``: steps that begin before or after 4 e/A^2, or the
        first three where exposures are unknown.
    """
    steps = np.hypot(*np.diff(np.asarray(shifts), axis=0).T) * sampling_rate
    before = np.cumsum(exposures) - exposures
    early = int(np.searchsorted(before, EARLY_EXPOSURE)) if np.any(exposures) else 3
    return {
        "total_motion": float(steps.sum()),
        "early_motion": float(steps[:early].sum()),
        "late_motion": float(steps[early:].sum()),
    }


def local_summary(result_field, shifts, shape, n_frames):
    """Extent of the local motion in px: its largest size and its 2.5 and 97.5 percentiles over the field.

    Parameters
    ----------
    result_field : callable
        As `MovieAlignmentResult.field`.
    shifts : ndarray, shape (n, 2)
    shape : (int, int)
    n_frames : int
    """
    t, y, x = np.meshgrid(
        np.arange(n_frames), np.linspace(0, shape[0] - 1, 9), np.linspace(0, shape[1] - 1, 9), indexing="ij"
    )
    size = np.linalg.norm(result_field(y, x, t) - np.asarray(shifts)[:, None, None], axis=-1)
    low, high = np.percentile(size, [2.5, 97.5])
    return {"local_motion": float(size.max()), "local_motion_2.5": float(low), "local_motion_97.5": float(high)}


def power_spectrum(image, size=512):
    """Mean amplitude spectrum of half-overlapping tiles, centred, for estimating the CTF.

    Parameters
    ----------
    image : ndarray, shape (ny, nx)
    size : int
        Edge of the tiles, at most that of the image.

    Returns
    -------
    ndarray of float32, shape (size, size)
        Zero frequency at ``size // 2``; its own value is zero.
    """
    size = min(size, *image.shape)
    total = np.zeros((size, size))
    count = 0
    line = np.sin(np.pi * (np.arange(size) + 0.5) / size)
    for y in range(0, image.shape[0] - size + 1, max(1, size // 2)):
        for x in range(0, image.shape[1] - size + 1, max(1, size // 2)):
            tile = image[y : y + size, x : x + size]
            total += abs(np.fft.fft2((tile - tile.mean()) * line[:, None] * line)) ** 2
            count += 1
    total[0, 0] = 0
    return np.fft.fftshift(np.sqrt(total / count)).astype(np.float32)
