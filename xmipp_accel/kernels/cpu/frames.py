"""Passes over the pixels of frames, on the CPU. The oracle is :mod:`xmipp_accel.kernels.reference.frames`."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(parallel=True, cache=True)
def _clean(raw, frames, dark, gain, y0, x0, out):
    height, width = out.shape[1:]
    for job in numba.prange(len(frames) * height):
        k, y = job // height, job % height
        source, target = raw[frames[k], y0 + y, x0 : x0 + width], out[k, y]
        for x in range(width):
            value = np.float32(source[x])
            if dark is not None:
                value -= dark[y0 + y, x0 + x]
            if gain is not None:
                value *= gain[y0 + y, x0 + x]
            target[x] = value


def clean_frames(raw, frames, dark, gain, window, index, sources):
    """Subtract dark, apply gain and replace bad pixels.

    Parameters
    ----------
    raw : ndarray, shape (n, ny, nx)
    frames : ndarray of int32, shape (b,)
        Which of them.
    dark, gain : ndarray of float32, shape (ny, nx), or None
        The gain multiplies.
    window : (int, int, int, int)
        First row and column, height and width of the part that is wanted.
    index : ndarray of int64, shape (m,)
        Flat indices of the bad pixels.
    sources : ndarray of int64, shape (s, m)
        Flat indices of the pixels that replace them; frame t uses row t % s.

    Returns
    -------
    ndarray of float32, shape (b, height, width)
    """
    y0, x0, height, width = window
    out = np.empty((len(frames), height, width), dtype=np.float32)
    _clean(raw, frames, dark, gain, y0, x0, out)
    y, x = index // raw.shape[2] - y0, index % raw.shape[2] - x0
    inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    for t, image in zip(frames, out):
        source = sources[t % len(sources), inside]
        values = raw[t].reshape(-1)[source].astype(np.float32)
        if dark is not None:
            values -= dark.reshape(-1)[source]
        if gain is not None:
            values *= gain.reshape(-1)[source]
        image[y[inside], x[inside]] = values
    return out


@numba.njit(parallel=True, fastmath=True, cache=True)
def turn_phases(spectrum, ey, ex):
    """Multiply `spectrum` (ky, kx) by ``ey[:, None] * ex``, in place."""
    for y in numba.prange(len(ey)):
        for x in range(len(ex)):
            spectrum[y, x] *= ey[y] * ex[x]


@numba.njit(parallel=True, fastmath=True, cache=True)
def add_weighted(total, power, spectrum, weight, noise):
    """Add ``weight * spectrum`` to `total` and ``weight**2 * noise`` to `power` (ky, kx), in place."""
    for y in numba.prange(len(total)):
        for x in range(total.shape[1]):
            w = weight[y, x]
            total[y, x] += w * spectrum[y, x]
            power[y, x] += w * w * noise
