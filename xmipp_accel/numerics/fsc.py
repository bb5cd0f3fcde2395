"""Fourier shell and ring correlation, the resolution read from them, and the soft mask that goes with them.

The correlation of shell ``s`` is ``sum(A conj(B)) / sqrt(sum|A|^2 sum|B|^2)`` over the Fourier samples whose
radius rounds to ``s`` (Harauz and van Heel 1986).
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, chunks, cuda_kernel, fft_module, mean, to_host
from xmipp_accel.errors import ParameterError

THREADS = 256
ROWS = 32  # of a plane that share a block, and so one addition to global memory for each shell


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
    return correlation_curve(shell_sums(half_transform(a, mask), half_transform(b, mask)))


def half_transform(volume, mask=None):
    """``rfftn`` of a map without its mean, complex64, times `mask` first.

    Without its mean a map loses only shell 0, and single precision keeps the weak outer shells.
    """
    xp = array_module(volume)
    if mask is not None:
        volume = volume * mask
    return fft_module(volume).rfftn((volume - mean(volume)).astype(xp.float32, copy=False))


def shell_sums(a, b) -> np.ndarray:
    """Sums over shells of two :func:`half_transform` results of equal edge, each read once.

    Returns
    -------
    (3, n // 2 + 1) float64 array on the host
        ``sum(Re a conj(b))``, ``sum(|a|^2)`` and ``sum(|b|^2)``.
    """
    xp, n = array_module(a), a.shape[-2]
    a, b = (array.reshape((-1,) + array.shape[-2:]) for array in (a, b))
    if xp is np:
        from xmipp_accel.kernels.cpu.shells import correlate_shells

        return correlate_shells(a, b, n)
    out = xp.zeros((3, n // 2 + 1))
    arguments = xp.ascontiguousarray(a), xp.ascontiguousarray(b), out, np.int32(n)
    blocks = (-(-n // ROWS), len(a))
    cuda_kernel("shells", "correlate_shells")(blocks, (THREADS,), arguments, shared_mem=out.nbytes)
    return to_host(out)


def correlation_curve(sums) -> np.ndarray:
    """Correlation of each shell from :func:`shell_sums`; 1 in shell 0, and 0 where there is nothing to compare."""
    cross, power = sums[0], sums[1] * sums[2]
    curve = np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0)
    curve[0] = 1.0
    return curve


def randomise_phases(transform, shell, seed):
    """Give every sample from `shell` on a random phase, in place; the amplitudes stay.

    Each phase is turned by the hash of its place, so that a seed gives the same phases on every device. Opposite
    samples are turned opposite ways, so that the transform remains that of a real map.

    Parameters
    ----------
    transform : (n, n, n // 2 + 1) complex64 array
    shell : int
    seed : int or sequence of int
    """
    xp, n = array_module(transform), transform.shape[0]
    columns = transform.shape[2]
    key = np.random.SeedSequence(seed).generate_state(1, np.uint32)[0]
    full, half = (xp.fft.fftfreq(n) * n) ** 2, xp.arange(columns) ** 2.0
    own = xp.asarray([0, n // 2][: 2 - n % 2])  # columns that hold both of opposite samples
    opposite = xp.asarray(-np.arange(n) % n)
    for planes in chunks(xp, n, n * columns):
        place = _places(xp.arange(n)[planes], xp.arange(n), xp.arange(columns), n, columns)
        cycles = _hashed(place, key, xp)
        mate = _places(opposite[planes], opposite, own, n, columns)
        cycles[:, :, own] -= _hashed(mate, key, xp)
        outside = full[planes, None, None] + full[None, :, None] + half > shell * (shell - 1)
        transform[planes] *= xp.exp(xp.complex64(2j * np.pi) * cycles * outside)


def _places(z, y, x, n, columns):
    return ((z[:, None, None] * n + y[None, :, None]) * columns + x).astype(np.uint32)


def _hashed(place, key, xp):
    """Numbers from 0 to 1, float32, by the 32-bit mixing function "lowbias32" of C. Wellons (2018)."""
    x = (place + np.uint32(1)) * np.uint32(0x9E3779B9) ^ key
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x.astype(xp.float32) * xp.float32(2.0**-32)


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
