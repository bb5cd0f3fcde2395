"""Passes over the pixels of frames, in float64: the oracle of the frame kernels."""

from __future__ import annotations

import numpy as np


def clean_frames(raw, frames, dark, gain, window, index, sources):
    """As `xmipp_accel.kernels.cpu.frames.clean_frames`."""
    y0, x0, height, width = window
    out = []
    for t in frames:
        image = raw[t].astype(np.float64) - (0 if dark is None else dark)
        image *= 1 if gain is None else gain
        image.flat[index] = image.flat[sources[t % len(sources)]]
        out.append(image[y0 : y0 + height, x0 : x0 + width])
    return np.array(out)


def turn_phases(spectrum, ey, ex):
    """As `xmipp_accel.kernels.cpu.frames.turn_phases`, returning the result."""
    return np.asarray(spectrum, dtype=np.complex128) * np.outer(ey, ex)


def add_weighted(total, power, spectrum, weight, noise):
    """As `xmipp_accel.kernels.cpu.frames.add_weighted`, returning both sums."""
    weight = np.asarray(weight, dtype=np.float64)
    return total + weight * spectrum, power + weight**2 * noise
