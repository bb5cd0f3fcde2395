"""Alignment of whole frames: all pairs first, then every frame against the sum of the others."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module, fft_module
from xmipp_accel.movie_alignment import correlate, solve
from xmipp_accel.movie_alignment.spectra import SignalSpectrum, gaussian, phases

COARSE_RESOLUTION = 30.0
BATCH_BYTES = 64 << 20
CONVERGED = 0.003
MAX_ROUNDS = 12


@dataclasses.dataclass(frozen=True)
class WholeFrameAlignment:
    """Shifts of frames.

    Attributes
    ----------
    shifts, errors : ndarray, shape (n, 2)
        Translations to apply and their standard errors, px of the movie; the mean shift is zero.
    spectrum : SignalSpectrum
        Of the aligned frames.
    pairs_trusted : float
        Mean robust weight of the pairs.
    at_limit : float
        Fraction of the pairs whose maximum lies at the border of the search range.
    last_change : float
        Largest change of a shift in the last round, px.
    """

    shifts: np.ndarray
    errors: np.ndarray
    spectrum: SignalSpectrum
    pairs_trusted: float
    at_limit: float
    last_change: float


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
    for resolution in (coarse, coarse / 2):
        shifts, _ = _against_others(
            spectra.crop(_band(resolution, sampling_rate)),
            shifts,
            _gaussian_weight(resolution, sampling_rate),
            search=2 * resolution / sampling_rate / 3,
        )
    change = np.inf
    for _ in range(MAX_ROUNDS):
        spectrum = measure_spectrum(spectra, shifts)
        weight = combined_weight(spectrum, sampling_rate, max_resolution)
        new, information = _against_others(spectra, shifts, weight)
        new -= new.mean(axis=0)
        change = float(np.abs(new - shifts).max())
        shifts = new
        if change < CONVERGED:
            break
    return WholeFrameAlignment(
        shifts, standard_errors(information), measure_spectrum(spectra, shifts), trusted, at_limit, change
    )


def combined_weight(spectrum, sampling_rate, max_resolution):
    """Make the function of frequency that weights cross-spectra, from the measured spectrum and a limit."""
    table = spectrum.weights()

    def weight(radius):
        xp = array_module(radius)
        values = xp.asarray(table.astype(np.float32))[spectrum.rings(radius)]
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


def measure_spectrum(spectra, shifts):
    """Signal and noise of frames translated by `shifts`."""
    n = len(spectra.data)
    spectrum = SignalSpectrum(n, max(8, min(spectra.extent) // 16))
    total, power = _aligned_sum(spectra, shifts)
    spectrum.add(abs(total) ** 2, power, spectrum.rings(spectra.radius))
    return spectrum


def _aligned_sum(spectra, shifts):
    xp = array_module(spectra.data)
    ey, ex = phases(spectra.fy, spectra.fx, shifts, xp)
    total = xp.zeros(spectra.data.shape[1:], dtype=xp.complex64)
    power = xp.zeros(spectra.data.shape[1:], dtype=xp.float32)
    for t, frame in enumerate(spectra.data):
        total += frame * ey[t] * ex[t]
        power += frame.real**2 + frame.imag**2
    return total, power


def _band(resolution, sampling_rate):
    """Frequency where the squared Gaussian has fallen to 0.2 %, cycles per px."""
    return min(0.5, 2.5 * 0.8493 * sampling_rate / resolution)


def _gaussian_weight(resolution, sampling_rate):
    return lambda radius: gaussian(radius, resolution, sampling_rate)


def _half_plane_weight(spectra, weight):
    """Weights doubled for the frequencies that stand for their conjugates too; all columns but the first."""
    values = 2 * weight(spectra.radius)
    values[:, 0] *= 0.5
    return values


def _from_all_pairs(spectra, sampling_rate, max_shift, resolution):
    spectra = spectra.crop(_band(resolution, sampling_rate))
    xp = array_module(spectra.data)
    weight = _half_plane_weight(spectra, _gaussian_weight(resolution, sampling_rate))
    power = xp.sqrt((weight * (spectra.data.real**2 + spectra.data.imag**2)).sum(axis=(1, 2)))
    data = spectra.data / xp.maximum(power, 1e-30)[:, None, None]
    n = len(data)
    i, j = solve.frame_pairs(n)
    step = tuple(e / s for e, s in zip(spectra.extent, spectra.shape))
    found, weights, limit = [], [], []
    batch = max(1, BATCH_BYTES // data[0].nbytes)
    for first in range(0, len(i), batch):
        a, b = xp.asarray(i[first : first + batch]), xp.asarray(j[first : first + batch])
        cross = data[a] * data[b].conj() * weight
        start, at_limit = correlate.window_maximum(cross, spectra.fy, spectra.fx, max_shift / sampling_rate, step)
        shifts, curvature = correlate.newton(cross, spectra.fy, spectra.fx, start, reach=2 * max(step))
        found.append(shifts)
        weights.append(np.trace(curvature, axis1=1, axis2=2))
        limit.append(at_limit)
    sharpness, touching = np.concatenate(weights), np.concatenate(limit)
    certainty = (sharpness / max(sharpness.max(initial=0.0), 1e-300)) ** 2
    certainty = np.where(touching, 1e-3 * certainty, certainty) + 1e-9
    shifts, trusted = solve.shifts_from_pairs(i, j, np.concatenate(found), certainty, n)
    return shifts, float(trusted.mean()), float(touching.mean())


def _against_others(spectra, shifts, weight, search=0.0):
    """One round: each frame against the sum of the others; returns new shifts and their information."""
    xp = array_module(spectra.data)
    n = len(spectra.data)
    fy, fx = spectra.fy, spectra.fx
    weights = _half_plane_weight(spectra, weight)
    total, _ = _aligned_sum(spectra, shifts)
    ey, ex = phases(fy, fx, shifts, xp)
    step = tuple(e / s for e, s in zip(spectra.extent, spectra.shape))
    new, information = np.array(shifts), np.zeros((n, 2, 2))
    batch = max(1, BATCH_BYTES // spectra.data[0].nbytes)
    for first in range(0, n, batch):
        rows = slice(first, min(n, first + batch))
        moved = spectra.data[rows] * ey[rows] * ex[rows]
        others = total - moved
        cross = moved * others.conj() * weights
        start = np.zeros((len(cross), 2))
        if search:
            start, _ = correlate.window_maximum(cross, fy, fx, search, step)
        delta, curvature = correlate.newton(cross, fy, fx, start, reach=3 * max(step))
        variance = correlate.gradient_variance(cross.real**2 + cross.imag**2, fy, fx)
        new[rows] += delta
        information[rows] = correlate.shift_information(curvature, variance)
    return new, information


def frames_on_grid(spectra, shape):
    """Real images (n, my, mx) of the spectra on their grid, float32."""
    fft = fft_module(spectra.data)
    xp = array_module(spectra.data)
    images = xp.empty((len(spectra.data), *shape), dtype=xp.float32)
    for t, frame in enumerate(spectra.data):
        images[t] = fft.irfft2(frame, s=shape)
    return images
