"""Sums of shifted frames, and derivatives of their correlation, in float64: the oracle of the kernels.

A frame's transform F_t moved by its shift correlates with the sum of the others as
``sum over f of w(f) Re(z)``, ``z = G_t conj(sum of the other G)``, ``G_t = F_t exp(-2 pi i f . shift_t)``.
"""

from __future__ import annotations

import numpy as np


def moved_frames(spectra, shifts, fy, fx):
    """Transforms (b, n, ky, kx) translated by `shifts` (b, n, 2), in px."""
    phase = shifts[..., 0, None, None] * fy[:, None] + shifts[..., 1, None, None] * fx
    return np.asarray(spectra, dtype=np.complex128) * np.exp(-2j * np.pi * phase)


def aligned_sum(spectra, shifts, fy, fx):
    """As `xmipp_accel.kernels.cpu.others.aligned_sum`, from shifts instead of phases."""
    moved = moved_frames(spectra, shifts, fy, fx)
    return moved.sum(axis=1), (abs(moved) ** 2).sum(axis=1)


def correlation_moments(spectra, weights, shifts, fy, fx):
    """As `xmipp_accel.kernels.cpu.others.correlation_moments`, from shifts instead of phases."""
    moved = moved_frames(spectra, shifts, fy, fx)
    others = moved.sum(axis=1, keepdims=True) - moved
    z = weights * moved * others.conj()
    y, x = np.broadcast_arrays(np.asarray(fy)[:, None], np.asarray(fx))
    power = abs(z) ** 2
    terms = (
        y * z.imag, x * z.imag, y * y * z.real, x * x * z.real, x * y * z.real,
        y * y * power, x * x * power, x * y * power, z.real, power,
    )  # fmt: skip
    return np.stack([term.sum(axis=(-2, -1)) for term in terms], axis=-1)
