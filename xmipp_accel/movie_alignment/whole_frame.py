"""Alignment of whole frames: all pairs first, then every frame against the sum of the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, from_host, inverse_into, on_all_cores, to_host, trim_heap
from xmipp_accel.movie_alignment import correlate, solve
from xmipp_accel.movie_alignment.frame_kernels import frames_at_a_time
from xmipp_accel.movie_alignment.others import (
    aligned_sum,
    correlation_moments,
    doubled,
    newton_step,
    shift_information,
    slopes,
    weighting_of,
)
from xmipp_accel.movie_alignment.spectra import (
    HALF_AMPLITUDE,
    SignalSpectrum,
    crop_half_plane,
    gaussian,
    moving_phases,
    squared,
)

COARSE_RESOLUTION = 30.0
# Cross-spectra at a time: in the cache of a CPU, few launches on a GPU.
HOST_BYTES, DEVICE_BYTES = 2 << 20, 1 << 30
CONVERGED = 0.01
MAX_ROUNDS = 12
# The rounds at full resolution keep the frequencies that hold this part of the information.
INFORMATION = 0.99
# They must be less than this part of all frequencies to be worth leaving the others out.
WORTH_LEAVING = 0.7
LONGEST_STEP = 1.0
# Standard deviations of noise; the largest of noise in a search is below it.
LOST = 7.0


@dataclasses.dataclass(frozen=True)
class WholeFrameAlignment:
    """Shifts of frames.

    Attributes
    ----------
    shifts, errors : ndarray, shape (n, 2)
        Translations to apply and their standard errors, px of the movie; the mean shift is zero.
    significance : ndarray, shape (n,)
        Correlation of each frame with the sum of the others, in standard deviations of what noise gives.
    spectrum : SignalSpectrum
        Of the aligned frames.
    last_change : float
        Largest change of a shift in the last round, px.
    pairs_trusted : float
        Mean robust weight of the pairs.
    at_limit : float
        Fraction of the pairs whose maximum lies at the border of the search range.
    """

    shifts: np.ndarray
    errors: np.ndarray
    significance: np.ndarray
    spectrum: SignalSpectrum
    last_change: float
    pairs_trusted: float = 0.0
    at_limit: float = 0.0

    @property
    def lost(self):
        """Frames (n,) that correlate with the others no more than the best of many places in noise does."""
        return self.significance < LOST


def align_whole_frames(spectra, sampling_rate, max_shift, max_resolution=0.0):
    """Find the translation of each frame.

    Parameters
    ----------
    spectra : Spectra
    sampling_rate : float
        A/px of the movie.
    max_shift : float
        Between any two frames, A.
    max_resolution : float
        Half amplitude of the low-pass, A; 0 for none.

    Returns
    -------
    WholeFrameAlignment
    """
    coarse = max(COARSE_RESOLUTION, max_resolution)
    shifts, trusted, at_limit = _from_all_pairs(spectra, sampling_rate, max_shift, coarse)
    # Pairs leave frames astray where electrons are few; the sum of all others shows more than any one of them.
    for resolution in (coarse, coarse, coarse / 2):
        weight, grid = _gaussian_weight(resolution, sampling_rate), _within(spectra, resolution, sampling_rate)
        shifts = _search_against_others(spectra, grid, shifts, weight, max_shift / sampling_rate)
    grid = spectra.grid_within(AlignedFrames(spectra, spectra.grid, shifts).spectrum.limit(INFORMATION))
    if np.prod(grid.shape) >= WORTH_LEAVING * np.prod(spectra.shape):
        grid = spectra.grid
    refined = _refine(spectra, grid, shifts, sampling_rate, max_resolution)
    lost = refined.lost
    if lost.any() and not lost.all():
        weight = combined_weight(refined.spectrum, sampling_rate, max_resolution)
        which = np.flatnonzero(lost)
        shifts = between_known(refined.shifts[~lost], np.flatnonzero(~lost), len(lost))
        shifts = _search_against_others(spectra, grid, shifts, weight, max_shift / sampling_rate, which)
        refined = _refine(spectra, grid, shifts, sampling_rate, max_resolution)
    return dataclasses.replace(refined, pairs_trusted=trusted, at_limit=at_limit)


def _refine(spectra, grid, shifts, sampling_rate, max_resolution):
    """Newton steps of all frames, each weighted by what the last one leaves, until they rest."""
    change, power, low_pass = np.inf, None, None
    if max_resolution:
        low_pass = gaussian(grid.radius(array_module(spectra.data)), max_resolution, sampling_rate)
    for _ in range(MAX_ROUNDS):
        frames = AlignedFrames(spectra, grid, shifts, power)
        power = frames.power
        step, information, significance = frames.newton_step(low_pass)
        del frames  # before the next ones are there
        new = shifts + step
        new -= new.mean(axis=0)
        change = float(np.abs(new - shifts).max())
        shifts = new
        if change < CONVERGED:
            break
    spectrum = AlignedFrames(spectra, grid, shifts, power).spectrum
    return WholeFrameAlignment(shifts, standard_errors(information), significance, spectrum, change)


def between_known(values, known, n):
    """Values (n, 2) of all frames, from those (k, 2) of the frames `known` and linear in time between them."""
    return np.stack([np.interp(np.arange(n), known, column) for column in values.T], axis=1)


def combined_weight(spectrum, sampling_rate, max_resolution):
    """Make the function of frequency that weights cross-spectra, from the measured spectrum and a limit."""
    table = spectrum.weights()

    def weight(radius):
        xp = array_module(radius)
        values = from_host(table, xp, np.float32)[spectrum.rings(radius)]
        if max_resolution:
            values = values * gaussian(radius, max_resolution, sampling_rate)
        return values

    return weight


def standard_errors(information):
    """Square roots of the diagonal of the inverse information (n, 2, 2); infinite where there is none."""
    determinant = np.linalg.det(information)
    known = determinant > 0
    inverse = np.linalg.inv(np.where(known[:, None, None], information, np.eye(2)))
    diagonal = np.stack([inverse[:, 0, 0], inverse[:, 1, 1]], axis=1)
    return np.where(known[:, None], np.sqrt(np.abs(diagonal)), np.inf)


@dataclasses.dataclass(frozen=True)
class FramePower:
    """What is the same for frames however they are shifted.

    Attributes
    ----------
    rings : array of int32, shape (ky, kx)
        Ring of each frequency, on the spectra's device.
    sums, count : ndarray, shape (n_rings + 1,)
        Sums over rings of the frames' power, and of the frequencies that have any.
    """

    rings: Any
    sums: np.ndarray
    count: np.ndarray


class AlignedFrames:
    """Frames translated by `shifts` (n, 2), their sum, and the signal and noise in them.

    Parameters
    ----------
    spectra : Spectra
    grid : Grid
        Of the frequencies that count.
    shifts : ndarray, shape (n, 2)
    power : FramePower, optional
        That of the same spectra and grid with other shifts, which do not change it.

    Attributes
    ----------
    spectrum : SignalSpectrum
    power : FramePower
    total : ndarray, shape (n_rings + 1,)
        Sums over rings of the power of the frames' sum.
    """

    def __init__(self, spectra, grid, shifts, power=None):
        self._spectra, self._grid, xp = spectra, grid, array_module(spectra.data)
        self.spectrum = SignalSpectrum(len(spectra.data), max(8, min(spectra.extent) // 16))
        rings = self.spectrum.rings(grid.radius(xp)) if power is None else power.rings
        self._phases = moving_phases(shifts[None], grid.fy, grid.fx, xp)
        self._total, of_frames = aligned_sum(spectra.data[None], self._phases)
        if power is None:
            sums = self.spectrum.sum_rings(of_frames[0], rings)
            xp.sign(of_frames, out=of_frames)
            power = FramePower(rings, sums, self.spectrum.sum_rings(of_frames[0], rings))
        del of_frames  # before the next array is there
        self.power, self.total = power, self.spectrum.sum_rings(squared(self._total[0]), rings)
        self.spectrum.add_rings(self.total, power.sums, power.count)

    def newton_step(self, low_pass):
        """Step (n, 2) of every frame towards the sum of the others, its information (n, 2, 2), and how significant
        (n,) the frame's correlation was before it. `low_pass` (ky, kx), if any, multiplies the spectrum's weights.
        """
        spectra = self._spectra
        weighting = weighting_of(self._weights(low_pass), self._grid.fy, self._grid.fx)
        # A few numbers for each frame are faster done with on the host.
        found = slopes(to_host(correlation_moments(spectra.data[None], self._total, weighting, self._phases)[0]))
        step, definite = newton_step(found.gradient, found.curvature)
        information = shift_information(found.curvature, found.variance)
        # All frames step at once, and with them the sum of the others.
        step *= (len(step) - 1) / len(step)
        # No step leads farther than the finest waves allow; the next round goes on from there.
        length = np.hypot(step[:, 0], step[:, 1])
        step = step * np.minimum(1.0, LONGEST_STEP / np.maximum(length, 1e-12))[:, None]
        return step, np.where(definite[:, None, None], information, 0.0), found.significance

    def _weights(self, low_pass):
        rings, xp = self.power.rings, array_module(self.power.rings)
        table = from_host(self.spectrum.weights(), xp, np.float32)
        weights = xp.empty(rings.shape, dtype=xp.float32)
        # NumPy looks up with indices of eight bytes, of which it makes a copy.
        for rows in _batches(len(rings), 8 * rings.shape[1], xp):
            weights[rows] = table[rings[rows]]
        if low_pass is not None:
            weights *= low_pass
        return weights


def low_pass_limit(resolution, sampling_rate):
    """Frequency where the squared Gaussian has fallen to 0.2 %, cycles per px."""
    return min(0.5, 2.5 * HALF_AMPLITUDE * sampling_rate / resolution)


def _gaussian_weight(resolution, sampling_rate):
    return lambda radius: gaussian(radius, resolution, sampling_rate)


def _within(spectra, resolution, sampling_rate):
    return spectra.grid_within(low_pass_limit(resolution, sampling_rate))


def _from_all_pairs(spectra, sampling_rate, max_shift, resolution):
    grid = _within(spectra, resolution, sampling_rate)
    xp = array_module(spectra.data)
    root = _root_weights(grid, _gaussian_weight(resolution, sampling_rate), xp)
    data = crop_half_plane(spectra.data, spectra.shape, grid.shape)
    data *= root
    power = xp.sqrt(squared(data).sum(axis=(1, 2)))
    data /= xp.maximum(power, 1e-30)[:, None, None]
    n = len(data)
    i, j = solve.frame_pairs(n)

    def search(part):
        cross = data[from_host(j[part], xp)]
        xp.conjugate(cross, out=cross)
        cross *= data[from_host(i[part], xp)]
        start, at_limit = correlate.window_maximum(cross, grid.fy, grid.fx, max_shift / sampling_rate, grid.pixel)
        shifts, curvature = correlate.newton(cross, grid.fy, grid.fx, start, 1, reach=2 * max(grid.pixel))
        return shifts, np.trace(curvature, axis1=1, axis2=2), at_limit

    found, sharpness, touching = map(np.concatenate, zip(*_each(search, _batches(len(i), data[0].nbytes, xp), xp)))
    certainty = (sharpness / max(sharpness.max(initial=0.0), 1e-300)) ** 2
    certainty = np.where(touching, 1e-3 * certainty, certainty) + 1e-9
    shifts, trusted = solve.shifts_from_pairs(i, j, found, certainty, n)
    return shifts, float(trusted.mean()), float(touching.mean())


def _search_against_others(spectra, grid, shifts, weight, radius, which=None):
    """Shifts (n, 2), those of the frames `which` such that each is where it fits the sum of the others best.

    The frequencies of `grid` count.
    """
    xp = array_module(spectra.data)
    ey, ex = moving_phases(shifts, grid.fy, grid.fx, xp)
    total, _ = aligned_sum(spectra.data[None], (ey[None], ex[None]))
    root = _root_weights(grid, weight, xp)
    total *= root

    def search(part):
        frames = part if which is None else which[part]
        moved = crop_half_plane(spectra.data[frames], spectra.shape, grid.shape)
        moved *= ey[frames][:, :, None]
        moved *= ex[frames][:, None, :]
        moved *= root
        cross = total - moved
        xp.conjugate(cross, out=cross)
        cross *= moved
        start, _ = correlate.window_maximum(cross, grid.fy, grid.fx, radius, grid.pixel)
        return correlate.newton(cross, grid.fy, grid.fx, start, 1, reach=3 * max(grid.pixel))[0]

    found, chosen = np.array(shifts), slice(None) if which is None else which
    parts = _batches(len(found[chosen]), total.nbytes, xp)
    found[chosen] += np.concatenate(_each(search, parts, xp))
    return found


def _root_weights(grid, weight, xp):
    """Square roots of cross-spectra's weights (ky, kx): both of the factors are multiplied by them."""
    return xp.sqrt(doubled(weight(grid.radius(xp))))


def _each(function, parts, xp):
    """Results of `function` for all parts; on the CPU each core takes one at a time."""
    if xp is not np:
        return [function(part) for part in parts]
    results = on_all_cores(function, parts)
    trim_heap(xp)
    return results


def _batches(count, each, xp):
    """Slices of `count` cross-spectra of `each` bytes that are worked on together."""
    together = max(1, (HOST_BYTES if xp is np else DEVICE_BYTES) // each)
    return [slice(first, first + together) for first in range(0, count, together)]


def frames_on_grid(spectra, limit):
    """Real images (n, my, mx) of the spectra up to `limit` in cycles per px, float32."""
    images = array_module(spectra.data).empty((len(spectra.data), *spectra.shape_within(limit)), dtype=np.float32)
    _fill(images, spectra, keep=True)
    return images


def turned_into_images(spectra, limit):
    """As :func:`frames_on_grid`, in the memory of the spectra, which are lost."""
    data, shape = spectra.data, (len(spectra.data), *spectra.shape_within(limit))
    used = shape[0] * shape[1] * shape[2]
    # No image is larger than its spectrum: each is written over spectra that have been read.
    _fill(data.reshape(-1).view(np.float32)[:used].reshape(shape), spectra, keep=False)
    if array_module(data) is np and data.flags.owndata:
        data.resize(-(-used // 2), refcheck=False)  # the rest goes back to the system
    return data.reshape(-1).view(np.float32)[:used].reshape(shape)


def _fill(images, spectra, keep):
    """Transform the spectra back, those beyond the images' grid left out; `keep` them or not."""
    shape = images.shape[1:]
    together = frames_at_a_time(shape, array_module(spectra.data))
    whole = shape == spectra.shape

    def cut(part):
        return spectra.data[part] if whole else crop_half_plane(spectra.data[part], spectra.shape, shape)

    for first in range(0, len(images), together):
        part = slice(first, first + together)
        inverse_into(images[part], cut(part), overwrite=not (whole and keep))
