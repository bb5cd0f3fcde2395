"""Passes over the pixels of frames, in float64: the oracle of the frame kernels."""

from __future__ import annotations

import numpy as np


def clean_frames(raw, frames, dark, gain, window, level, index, sources):
    """As `xmipp_accel.kernels.cpu.frames.clean_frames`."""
    y0, x0, height, width = window
    out = []
    for t in frames:
        image = raw[t].astype(np.float64) - (0 if dark is None else dark)
        image *= 1 if gain is None else gain
        image.flat[index] = image.flat[sources[t % len(sources)]]
        out.append(image[y0 : y0 + height, x0 : x0 + width] - level)
    return np.array(out)


def sum_frames(raw, frames, dark, gain, index, sources):
    """As `xmipp_accel.kernels.cpu.frames.sum_frames`."""
    return clean_frames(raw, frames, dark, gain, (0, 0, *raw.shape[1:]), 0.0, index, sources).sum(axis=0)


def gather(images, rows, columns):
    """As `xmipp_accel.kernels.cpu.frames.gather`."""
    return np.stack([image[np.ix_(row, column)] for image, row, column in zip(images, rows, columns)])


def turn_phases(spectra, ey, ex):
    """As `xmipp_accel.kernels.cpu.frames.turn_phases`, returning the result."""
    return np.asarray(spectra, dtype=np.complex128) * ey[:, :, None] * ex[:, None, :]


def add_frames(total, power, frames, which, weights, noise):
    """As `xmipp_accel.kernels.cpu.frames.add_frames`, returning both sums."""
    if weights is None:
        return total + frames[which].sum(axis=0, dtype=np.complex128), power
    weights = weights[which].astype(np.float64)
    added = (weights * frames[which]).sum(axis=0)
    return total + added, power + (weights**2 * np.asarray(noise)[:, None, None]).sum(axis=0)
