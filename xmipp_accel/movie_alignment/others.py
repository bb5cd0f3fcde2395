"""Each frame against the sum of the others: one Gauss-Newton step for whole frames and for patches alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, from_host

# Weights below this part of the largest are left out.
NEGLIGIBLE = 1e-4
THREADS, ROWS, N_MOMENTS = 128, 32, 10


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Weights of cross-spectra on a half plane of frequencies.

    Attributes
    ----------
    fy, fx : array of float32, shapes (ky,) and (kx,)
        Cycles per px.
    values : array of float32, shape (ky, kx)
        Doubled where a frequency stands for its conjugate too.
    columns : array of int32, shape (ky,)
        Leading columns of each row that have any weight.
    """

    fy: Any
    fx: Any
    values: Any
    columns: Any


def make_weighting(fy, fx, weight, xp):
    """Evaluate ``weight(radius)`` on the half plane of frequencies `fy` and `fx` (cycles per px)."""
    fy, fx = from_host(fy, xp, np.float32), from_host(fx, xp, np.float32)
    return weighting_of(weight(xp.hypot(fy[:, None], fx[None])), fy, fx)


def weighting_of(weights, fy, fx):
    """Weighting from `weights` (ky, kx) at the frequencies `fy` and `fx`; those in float32 are overwritten."""
    xp = array_module(weights)
    values = doubled(weights)
    fy, fx = from_host(fy, xp, np.float32), from_host(fx, xp, np.float32)
    count = xp.where(values > NEGLIGIBLE * values.max(), xp.arange(1, len(fx) + 1, dtype=xp.int32), xp.int32(0))
    return Weighting(fy, fx, values, count.max(axis=1))


def doubled(weights):
    """Weights (ky, kx) twice where a frequency stands for its conjugate too; those in float32 are overwritten."""
    values = weights.astype(np.float32, copy=False)
    rest = values[:, 1:]  # by a name of its own, or CuPy copies it once more
    rest *= 2
    values[0, 0] = 0
    return values


def aligned_sum(spectra, phases):
    """Sums (b, ky, kx) of `spectra`, moved by `moving_phases`, and sums of their power.

    Frequencies of the spectra (b, n, rows, columns) above those of the phases, (b, n, ky) and (b, n, kx), are left
    out.
    """
    xp = array_module(spectra)
    if xp is np:
        from xmipp_accel.kernels.cpu.others import aligned_sum as cpu_sum

        return cpu_sum(spectra, *phases)
    n_sets, n, rows, columns = spectra.shape
    ky, kx = (phase.shape[2] for phase in phases)
    total, power = (xp.empty((n_sets, ky, kx), dtype=dtype) for dtype in (xp.complex64, xp.float32))
    blocks = (-(-kx // THREADS), ky, n_sets)
    sizes = [np.int32(s) for s in (n, ky, kx, rows, columns)]
    cuda_kernel("others", "aligned_sum")(blocks, (THREADS,), (spectra, *phases, total, power, *sizes))
    return total, power


def correlation_moments(spectra, total, weighting, phases):
    """Moments (b, n, 10) as `xmipp_accel.kernels.cpu.others` has them, on the spectra's device."""
    xp = array_module(spectra)
    arrays = weighting.values, weighting.columns, *phases, weighting.fy, weighting.fx
    if xp is np:
        from xmipp_accel.kernels.cpu.others import correlation_moments as cpu_moments

        return cpu_moments(spectra, total, *arrays)
    n_sets, n, rows, columns = spectra.shape
    ky, kx = weighting.values.shape
    parts = -(-ky // ROWS)
    out = xp.empty((n_sets, n, parts, N_MOMENTS), dtype=xp.float64)
    sizes = [np.int32(s) for s in (n, ky, kx, rows, columns)]
    kernel = cuda_kernel("others", "correlation_moments")
    kernel((n_sets * n, parts), (THREADS,), (spectra, total, *arrays, out, *sizes))
    return out.sum(axis=2)


@dataclasses.dataclass(frozen=True)
class Slopes:
    """What the correlation with the others says about each frame's remaining translation.

    Attributes
    ----------
    gradient : ndarray, shape (..., 2)
        Of the correlation, at no translation.
    curvature : ndarray, shape (..., 2, 2)
        Its negative Hessian.
    variance : ndarray, shape (..., 2, 2)
        Of the gradient, when the cross-spectra are noise.
    significance : ndarray, shape (...)
        The correlation itself, in standard deviations of what noise gives.
    """

    gradient: np.ndarray
    curvature: np.ndarray
    variance: np.ndarray
    significance: np.ndarray


def slopes(moments):
    """The correlation and its derivatives, from the moments (..., 10)."""
    circle = 2 * np.pi
    return Slopes(
        circle * moments[..., :2], circle**2 * _symmetric(moments[..., 2:5]),
        0.5 * circle**2 * _symmetric(moments[..., 5:8]),
        moments[..., 8] / np.sqrt(np.maximum(0.5 * moments[..., 9], 1e-300)),
    )  # fmt: skip


def _symmetric(yy_xx_xy):
    yy, xx, xy = (yy_xx_xy[..., k] for k in range(3))
    return np.stack([yy, xy, xy, xx], axis=-1).reshape(*yy.shape, 2, 2)


def newton_step(gradient, curvature):
    """Step (..., 2) to the maximum of the parabola and whether (...) there is one; else one along the gradient."""
    trace = curvature[..., 0, 0] + curvature[..., 1, 1]
    determinant = curvature[..., 0, 0] * curvature[..., 1, 1] - curvature[..., 0, 1] ** 2
    definite = (trace > 0) & (determinant > 1e-3 * trace**2)
    eye = np.eye(2) * np.maximum(np.abs(trace), 1e-30)[..., None, None]
    return _solve2(np.where(definite[..., None, None], curvature, eye), gradient), definite


def _solve2(matrix, right):
    """Solutions (..., 2) of symmetric systems (..., 2, 2)."""
    a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    y, x = right[..., 0], right[..., 1]
    return np.stack([d * y - b * x, a * x - b * y], axis=-1) / (a * d - b * b)[..., None]


def shift_information(curvature, variance):
    """Information H V^-1 H (..., 2, 2) of shifts, the inverse of their covariance; zero without noise."""
    p, q, r = curvature[..., 0, 0], curvature[..., 0, 1], curvature[..., 1, 1]
    a, b, d = variance[..., 0, 0], variance[..., 0, 1], variance[..., 1, 1]
    determinant = a * d - b * b
    known = determinant > 0
    # Written out, as products of many small matrices are slow.
    top, bottom = (p * d - q * b, q * a - p * b), (q * d - r * b, r * a - q * b)
    yy, xx, xy = top[0] * p + top[1] * q, bottom[0] * q + bottom[1] * r, top[0] * q + top[1] * r
    scale = np.where(known, 1.0 / np.where(known, determinant, 1.0), 0.0)
    return _symmetric(np.stack([yy * scale, xx * scale, xy * scale], axis=-1))
