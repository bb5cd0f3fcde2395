"""Passes over the pixels of frames, in float64: the oracle of the frame kernels."""

from __future__ import annotations

import math

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


def continued(images, padded, shifts):
    """As `xmipp_accel.kernels.cpu.frames.continued`."""
    sources = [[_sources(*along) for along in zip(images.shape[1:], padded, shift)] for shift in shifts]
    return np.stack([image[np.ix_(*source)] for image, source in zip(images, sources)])


def _sources(length, period, shift):
    width = max(0, min(math.ceil(abs(shift)), length // 2 - 1))  # of what the far side would bring in
    sources = []
    for place in range(period):
        if shift > 0 and place - period >= -width:
            place -= period
        elif shift < 0 and place + period < length + width:
            place += period
        sources.append(max(0, 2 * (length - 1) - place) if place >= length else abs(place))
    return sources


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
