"""Passes over the pixels of frames, on the CPU. The oracle is :mod:`xmipp_accel.kernels.reference.frames`."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(parallel=True, cache=True)
def _clean(raw, frames, dark, gain, y0, x0, level, out):
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
            target[x] = value - level


def clean_frames(raw, frames, dark, gain, window, level, index, sources):
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
    level : float
        Subtracted from the clean pixels.
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
    _clean(raw, frames, dark, gain, y0, x0, np.float32(level), out)
    y, x = index // raw.shape[2] - y0, index % raw.shape[2] - x0
    inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    for t, image in zip(frames, out):
        source = sources[t % len(sources), inside]
        image[y[inside], x[inside]] = _clean_pixels(raw[t], source, dark, gain) - np.float32(level)
    return out


def _clean_pixels(frame, places, dark, gain):
    """Values (m,) of one frame at flat indices."""
    values = frame.reshape(-1)[places].astype(np.float32)
    if dark is not None:
        values -= dark.reshape(-1)[places]
    if gain is not None:
        values *= gain.reshape(-1)[places]
    return values


@numba.njit(parallel=True, cache=True)
def _sum(raw, frames, dark, gain, out):
    ny, nx = out.shape
    for y in numba.prange(ny):
        row = out[y]
        row[:] = 0
        for t in frames:
            for x in range(nx):
                row[x] += np.float32(raw[t, y, x])
        for x in range(nx):
            if dark is not None:
                row[x] -= np.float32(len(frames)) * dark[y, x]
            if gain is not None:
                row[x] *= gain[y, x]


def sum_frames(raw, frames, dark, gain, index, sources):
    """Sum of the listed frames as :func:`clean_frames` gives them, float32 of shape (ny, nx)."""
    out = np.empty(raw.shape[1:], dtype=np.float32)
    _sum(raw, frames, dark, gain, out)
    out.reshape(-1)[index] = 0
    for t in frames:
        out.reshape(-1)[index] += _clean_pixels(raw[t], sources[t % len(sources)], dark, gain)
    return out


def continued(images, padded, shifts):
    """Images continued by their mirror images to a larger grid that repeats itself.

    What the far side would bring in when an image is moved is the mirror image too.

    Parameters
    ----------
    images : ndarray of float32, shape (b, ny, nx)
        They are overwritten, and are the result, where the grid is not larger.
    padded : (int, int)
        The grid.
    shifts : array_like, shape (b, 2)
        By which each image will be moved, px.

    Returns
    -------
    ndarray of float32, shape (b, *padded)
    """
    out = images
    if images.shape[1:] != tuple(padded):
        out = np.empty((len(images), *padded), dtype=np.float32)
        out[:, : images.shape[1], : images.shape[2]] = images
    for image, shift in zip(out, np.asarray(shifts)):
        row, column = map(_sources, images.shape[1:], padded, shift)
        moved = np.flatnonzero(row != np.arange(len(row)))
        image[moved] = image[row[moved]]
        moved = np.flatnonzero(column != np.arange(len(column)))
        image[:, moved] = image[:, column[moved]]
    return out


def _sources(length, period, shift):
    """Which of `length` pixels stand at the places (period,) of a grid whose content is to be moved by `shift`."""
    sources = np.arange(period)
    sources[length:] = np.maximum(0, 2 * (length - 1) - sources[length:])
    width = max(0, min(int(np.ceil(abs(shift))), length // 2 - 1))
    if shift > 0:
        sources[period - width :] = np.arange(width, 0, -1)
    elif shift < 0:
        beyond = np.arange(length, length + width)
        sources[beyond % period] = 2 * (length - 1) - beyond
    return sources


@numba.njit(parallel=True, fastmath=True, cache=True)
def turn_phases(spectra, ey, ex):
    """Multiply `spectra` (b, ky, kx) by ``ey[:, :, None] * ex[:, None, :]``, in place."""
    ky = spectra.shape[1]
    for job in numba.prange(len(spectra) * ky):
        k, y = job // ky, job % ky
        for x in range(spectra.shape[2]):
            spectra[k, y, x] *= ey[k, y] * ex[k, x]


@numba.njit(parallel=True, fastmath=True, cache=True)
def add_frames(total, power, frames, which, weights, noise):
    """Add frames to a sum, in place.

    Parameters
    ----------
    total : ndarray of float32 or complex64, shape (ny, nx)
        To this ``weights * frames``.
    power : ndarray of float32, shape (ny, nx), or None
        To this ``weights**2 * noise``; None without weights.
    frames : ndarray, shape (b, ny, nx)
        Of the type of `total`.
    which : ndarray of int32, shape (m,)
        Which of them.
    weights : ndarray of float32, shape (b, ny, nx), or None
        1 by default.
    noise : ndarray of float32, shape (m,)
    """
    for y in numba.prange(len(total)):
        for k, place in enumerate(which):
            for x in range(total.shape[1]):
                if weights is None:
                    total[y, x] += frames[place, y, x]
                else:
                    w = weights[place, y, x]
                    total[y, x] += w * frames[place, y, x]
                    power[y, x] += w * w * noise[k]
