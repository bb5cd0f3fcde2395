"""Fourier transforms of frames, cut down to the frequencies that an alignment uses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from xmipp_accel.backend import (
    array_module,
    cuda_kernel,
    fft_module,
    from_host,
    good_fft_size,
    to_host,
    trim_heap,
)
from xmipp_accel.movie_alignment.frame_kernels import frames_at_a_time

RING_THREADS = PHASE_THREADS = 256
HALF_AMPLITUDE = np.sqrt(1.0 / (2.0 * np.log(2.0)))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Half plane of frequencies.

    Attributes
    ----------
    shape : (int, int)
        Grid (my, mx) in real space.
    extent : (int, int)
        Pixels of the movie that the grid spans.
    """

    shape: tuple[int, int]
    extent: tuple[int, int]

    @functools.cached_property
    def fy(self):
        """Frequencies along y, cycles per px of the movie, shape (my,)."""
        return np.fft.fftfreq(self.shape[0]) * self.shape[0] / self.extent[0]

    @functools.cached_property
    def fx(self):
        """Frequencies along x, cycles per px of the movie, shape (mx // 2 + 1,)."""
        return np.arange(self.shape[1] // 2 + 1) / self.extent[1]

    @property
    def pixel(self):
        """Size (y, x) of the grid's pixels, px of the movie."""
        return tuple(e / s for e, s in zip(self.extent, self.shape))

    def radius(self, xp):
        """Absolute frequency, float32 of shape (my, mx // 2 + 1), as an array of `xp`."""
        return xp.hypot(*(from_host(f, xp, np.float32) for f in (self.fy[:, None], self.fx[None])))


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Half-plane Fourier coefficients of frames.

    Attributes
    ----------
    data : array of complex64, shape (n, my, mx // 2 + 1)
        Unnormalised transforms; the first row and column (offset and axis cross) are zero.
    shape, extent : (int, int)
        As of their :class:`Grid`.
    """

    data: Any
    shape: tuple[int, int]
    extent: tuple[int, int]

    @functools.cached_property
    def grid(self):
        """The :class:`Grid` of the frequencies."""
        return Grid(self.shape, self.extent)

    def shape_within(self, limit):
        """Grid that holds the frequencies up to `limit`, in cycles per px of the movie."""
        return tuple(grid_size(e, limit, s) for e, s in zip(self.extent, self.shape))

    def grid_within(self, limit):
        """The :class:`Grid` of :meth:`shape_within`."""
        return Grid(self.shape_within(limit), self.extent)


def grid_size(extent, limit, largest):
    """Good FFT size that holds frequencies up to `limit` (cycles per px) of `extent` pixels."""
    return min(largest, good_fft_size(int(np.ceil(2 * limit * extent)) + 2))


def crop_half_plane(data, shape, new_shape, out=None):
    """Cut rfft2 coefficients (..., my, mx // 2 + 1) to a smaller even grid without its Nyquist row and column."""
    half = new_shape[0] // 2
    columns = new_shape[1] // 2 + 1
    if out is None:
        out = array_module(data).empty((*data.shape[:-2], new_shape[0], columns), dtype=data.dtype)
    out[..., :half, :] = data[..., :half, :columns]
    out[..., half:, :] = data[..., shape[0] - half :, :columns]
    if new_shape[0] < shape[0]:
        out[..., half, :] = 0
    if new_shape[1] < shape[1]:
        out[..., columns - 1] = 0
    return out


@functools.lru_cache
def smooth_size(n):
    """Largest even number up to `n` whose prime factors are all 2, 3, 5 or 7."""
    size = n - n % 2
    while good_fft_size(size) != size:
        size -= 2
    return size


def frame_spectra(movie, frames, limit):
    """Transform the given frames of a :class:`PreparedMovie`, up to `limit` in cycles per px.

    The frame is cropped around its centre to a size that transforms fast; frequencies are counted over that size,
    so shifts need no rescaling.
    """
    xp = movie.xp
    ny, nx = movie.shape[1:]
    extent = smooth_size(ny), smooth_size(nx)
    window = (ny - extent[0]) // 2, (nx - extent[1]) // 2, *extent
    shape = tuple(grid_size(e, limit, e) for e in extent)
    trim_heap(xp)  # of what preparing the frames has left
    data = xp.empty((len(frames), shape[0], shape[1] // 2 + 1), dtype=xp.complex64)
    fft = fft_module(data)
    # The offset is no signal, but would cost the others their precision.
    level = float(movie.frames(frames[:1], window).mean())
    together = frames_at_a_time(extent, xp)
    for first in range(0, len(frames), together):
        images = movie.frames(frames[first : first + together], window, level)
        full = fft.rfft2(images)
        crop_half_plane(full, extent, shape, out=data[first : first + together])
        del images, full  # before the next ones are there
    data[:, 0, :] = 0
    data[:, :, 0] = 0
    return Spectra(data, shape, extent)


def gaussian(radius, resolution, sampling_rate):
    """Low-pass with half amplitude at `resolution` (A), squared as for a product of two images."""
    sigma = sampling_rate * HALF_AMPLITUDE / resolution
    return array_module(radius).exp(-((radius / sigma) ** 2)).astype(radius.dtype)


def squared(values):
    """Squares of the absolute values, with one array beside the result."""
    power = values.real**2
    power += values.imag**2
    return power


def moving_phases(shifts, fy, fx, xp):
    """Phases (..., ky) and (..., kx), complex64 of `xp`, that translate by `shifts` (..., 2), in px.

    All that comes in is on the host.
    """
    shifts = np.asarray(shifts, dtype=np.float64)
    if xp is np:
        return _phases(shifts[..., :1] * fy), _phases(shifts[..., 1:] * fx)
    numbers = from_host(np.concatenate([shifts.ravel(), fy, fx]), xp)
    ey, ex = (xp.empty((*shifts.shape[:-1], len(f)), dtype=xp.complex64) for f in (fy, fx))
    count, blocks = shifts.size // 2, -(-(len(fy) + len(fx)) // PHASE_THREADS)
    arguments = numbers, ey, ex, np.int32(count), np.int32(len(fy)), np.int32(len(fx))
    cuda_kernel("others", "moving_phases")((count, blocks), (PHASE_THREADS,), arguments)
    return ey, ex


def _phases(turns):
    """``exp(-2 pi i turns)``, complex64."""
    angle = (2 * np.pi * (turns - np.rint(turns))).astype(np.float32)
    phases = np.empty(turns.shape, dtype=np.complex64)
    phases.real, phases.imag = np.cos(angle), -np.sin(angle)
    return phases


class SignalSpectrum:
    """Radial signal and noise power of frames, and the weights that follow.

    With signal power S and noise power N in each of n frames, the most likely shifts maximise the sum of
    ``S / (N (N + n S)) |sum of the shifted frames|**2``.

    Parameters
    ----------
    n_frames : int
    n_rings : int
        Rings up to 0.5 cycles per px of the movie.
    """

    def __init__(self, n_frames, n_rings):
        self.n_frames, self.n_rings = n_frames, n_rings
        self._sum_power = np.zeros(n_rings + 1)
        self._power = np.zeros(n_rings + 1)
        self._count = np.zeros(n_rings + 1)

    def rings(self, radius):
        """Ring of each frequency; those beyond 0.5 share the last one."""
        xp = array_module(radius)
        rings = (radius * (2 * self.n_rings)).astype(xp.int32)
        return xp.minimum(rings, self.n_rings, out=rings)

    def add(self, total_power, frame_power, rings, images=1):
        """Add |sum of frames|**2 and the sum of |frame|**2, both (ky, kx), themselves summed over `images`."""
        seen = (frame_power > 0).astype(frame_power.dtype) * images
        sums = [self.sum_rings(values, rings) for values in (total_power, frame_power, seen)]
        self.add_rings(*sums)

    def sum_rings(self, values, rings):
        """Sums (n_rings + 1,) of float32 `values` over `rings`, on the host."""
        return ring_sums(values, rings, self.n_rings + 1)

    def add_rings(self, total_power, frame_power, count):
        """As :meth:`add`, from sums over rings and the number of frequencies in each."""
        self._sum_power += total_power
        self._power += frame_power
        self._count += count

    def powers(self):
        """Signal and noise power (n_rings + 1,) of one frame; signal that is not significant is zero."""
        n = self.n_frames
        count = np.maximum(self._count, 1)
        power = self._power / count / n
        signal = (self._sum_power / count - n * power) / (n * (n - 1))
        error = power * np.sqrt(2.0 / (n * (n - 1) * count))
        signal = np.where(self._count > 0, signal, 0.0)
        smooth = _running_mean(signal, count)
        smooth = np.where(smooth > error, smooth, 0.0)
        smooth[-1] = 0.0
        noise = np.maximum(power - smooth, 0.05 * power)
        return smooth, noise

    def weights(self):
        """Weight (n_rings + 1,) of each ring's cross-spectra."""
        signal, noise = self.powers()
        safe = np.where(noise > 0, noise, 1.0)
        return np.where(noise > 0, signal / (safe * (safe + self.n_frames * signal)), 0.0)

    def limit(self, fraction):
        """Frequency (cycles per px) below which this fraction of the information about shifts lies."""
        signal, noise = self.powers()
        ratio = np.where(noise > 0, signal / np.where(noise > 0, noise, 1.0), 0.0)
        frequency = (np.arange(self.n_rings + 1) + 0.5) / (2 * self.n_rings)
        information = frequency**3 * self.n_frames * ratio**2 / (1 + self.n_frames * ratio)
        total = information.sum()
        if total == 0:
            return 0.5
        ring = int(np.searchsorted(np.cumsum(information) / total, fraction)) + 1
        return min(0.5, ring / (2 * self.n_rings))

    def detection(self):
        """Common signal of the frames in standard deviations of what noise alone would give."""
        n = self.n_frames
        rings = self._count > 0
        power = np.where(rings, self._power / np.maximum(self._count, 1) / n, 0.0)
        excess = np.where(rings, self._sum_power - self._power, 0.0)
        weight = self.weights()
        deviation = np.sqrt((weight**2 * self._count * 2 * n * (n - 1) * power**2).sum())
        return float((weight * excess).sum() / deviation) if deviation > 0 else 0.0


def ring_sums(values, rings, n_rings):
    """Sums (n_rings,) of float32 `values` (ky, kx) over int32 `rings` of that shape, float64 on the host."""
    xp = array_module(values)
    if xp is np:
        from xmipp_accel.kernels.cpu.others import ring_sums as cpu_sums

        return cpu_sums(values, rings, n_rings)
    out = xp.zeros(n_rings, dtype=xp.float64)
    blocks = min(1024, -(-values.size // RING_THREADS))
    arguments = (xp.ascontiguousarray(values), rings, out, np.int64(values.size), np.int32(n_rings))
    cuda_kernel("others", "ring_sums")((blocks,), (RING_THREADS,), arguments, shared_mem=4 * n_rings)
    return to_host(out)


def _running_mean(values, weights):
    kernel = np.array([1.0, 2.0, 1.0])
    return np.convolve(values * weights, kernel, "same") / np.maximum(np.convolve(weights, kernel, "same"), 1e-30)
