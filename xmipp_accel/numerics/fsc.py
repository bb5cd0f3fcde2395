"""Fourier shell and ring correlation, the resolution read from them, and the soft mask that goes with them.

The correlation of shell ``s`` is ``sum(A conj(B)) / sqrt(sum|A|^2 sum|B|^2)`` over the Fourier samples whose
radius rounds to ``s`` (Harauz and van Heel 1986).
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.errors import ParameterError


def fourier_shell_correlation(a, b, mask=None) -> np.ndarray:
    """Correlate two volumes shell by shell.

    Parameters
    ----------
    a, b : (n, n, n) array
        On the same device.
    mask : (n, n, n) array, optional
        Multiplies both first.

    Returns
    -------
    (n // 2 + 1,) float64 array on the host; element ``s`` belongs to the frequency ``s / n`` cycles/px.

    Raises
    ------
    ParameterError
        The arrays differ in shape or are not cubes.
    """
    return _correlation(a, b, mask, 3)


def fourier_ring_correlation(a, b, mask=None) -> np.ndarray:
    """Correlate two images (n, n) ring by ring; as :func:`fourier_shell_correlation` otherwise."""
    return _correlation(a, b, mask, 2)


def _correlation(a, b, mask, dimensions):
    if a.shape != b.shape or a.ndim != dimensions or len(set(a.shape)) != 1:
        raise ParameterError(
            f"correlation: expected two equal cubes of {dimensions} dimensions, found {a.shape} and {b.shape}"
        )
    xp, fft = array_module(a), fft_module(a)
    n = a.shape[0]
    if mask is not None:
        a, b = a * mask, b * mask
    # Without its mean a map loses only shell 0, and single precision keeps the weak outer shells.
    fa, fb = fft.rfftn(a - a.mean()), fft.rfftn(b - b.mean())
    shells = shell_numbers(n, dimensions, xp).ravel()
    inside = shells <= n // 2
    shells = shells[inside]

    def total(values):
        return xp.bincount(shells, (values * _multiplicity(n, xp)).ravel()[inside], n // 2 + 1)

    cross = total((fa * fb.conj()).real.astype(xp.float64))
    power = total(_power(fa, xp)) * total(_power(fb, xp))
    curve = to_host(xp.where(power > 0, cross / xp.sqrt(xp.where(power > 0, power, 1)), 0.0))
    curve[0] = 1.0
    return curve


def _power(transform, xp):
    return transform.real.astype(xp.float64) ** 2 + transform.imag.astype(xp.float64) ** 2


def _multiplicity(n, xp):
    """How many samples of the full transform each column of the half transform stands for."""
    count = xp.full(n // 2 + 1, 2.0)
    count[0] = 1
    if n % 2 == 0:
        count[-1] = 1
    return count


def shell_numbers(n: int, dimensions: int = 3, xp=np):
    """Rounded radius of every sample of an ``rfftn`` of edge `n`, int64, in units of ``1 / n`` cycles/px."""
    full, half = xp.fft.fftfreq(n) * n, xp.fft.rfftfreq(n) * n
    squares = half**2
    for _ in range(dimensions - 1):
        shape = (n,) + (1,) * squares.ndim
        squares = (full**2).reshape(shape) + squares[None]
    return xp.rint(xp.sqrt(squares)).astype(xp.int64)


def frequencies(box: int, sampling_rate: float) -> np.ndarray:
    """Frequency in 1/A of each element of a correlation curve of a box of `box` px of `sampling_rate` A/px."""
    return np.arange(box // 2 + 1) / (box * sampling_rate)


def resolution_at(curve, threshold: float, sampling_rate: float, box: int) -> float:
    """Resolution in A where `curve` first falls below `threshold`, interpolated linearly between shells.

    A curve that never falls gives Nyquist, one that falls at once gives the box edge: no map shows more or less.

    Parameters
    ----------
    curve : (box // 2 + 1,) array_like
    threshold : float
        Usually 0.143 between half maps and 0.5 against a known map.
    sampling_rate : float
        A/px.
    box : int
        Edge in px.
    """
    curve = np.asarray(curve, dtype=np.float64)
    below = np.flatnonzero(~(curve[1:] >= threshold)) + 1
    if below.size == 0:
        return 2.0 * sampling_rate
    shell = int(below[0])
    before, after = curve[shell - 1], curve[shell]
    fraction = (before - threshold) / (before - after) if before > after else 0.0
    return float(box * sampling_rate / max(shell - 1 + fraction, 1.0))


def soft_sphere(n: int, radius: float, edge: float, xp=np):
    """Sphere of 1 around the centre ``n // 2`` that falls to 0 by a raised cosine.

    Parameters
    ----------
    n : int
        Edge of the cube in px.
    radius, edge : float
        px; the mask is 1 up to `radius`, one half at ``radius + edge / 2`` and 0 from ``radius + edge`` on.

    Returns
    -------
    (n, n, n) float32 array
    """
    axis = (xp.arange(n) - n // 2).astype(xp.float32) ** 2
    distance = xp.sqrt(axis[:, None, None] + axis[None, :, None] + axis[None, None, :])
    fall = xp.clip((distance - radius) / max(edge, 1e-6), 0, 1)
    return (0.5 + 0.5 * xp.cos(np.pi * fall)).astype(xp.float32)
