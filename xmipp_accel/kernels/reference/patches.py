"""Windowed patches of frames in float64: the oracle of the patch kernels."""

from __future__ import annotations

import numpy as np


def cut_patches(images, starts, window):
    """As `xmipp_accel.kernels.cpu.patches.cut_patches`."""
    images, window = np.asarray(images, dtype=np.float64), np.asarray(window, dtype=np.float64)
    size = len(window)
    out = np.empty((*starts.shape[:2], size, size))
    for p, t in np.ndindex(starts.shape[:2]):
        y, x = starts[p, t]
        patch = images[t, y : y + size, x : x + size]
        out[p, t] = (patch - patch.mean()) * window[:, None] * window
    return out
