"""Numbers and spectra by which the alignment of a movie can be judged."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module, from_host
from xmipp_accel.movie_alignment.frame_grid import FrameGrid
from xmipp_accel.movie_alignment.spectra import ring_sums

# RELION's division of the motion into early and late.
EARLY_EXPOSURE = 4.0
ROUNDING = 1e-6
# Even against odd averages: rings up to Nyquist, range of resolution in A, standard deviations of noise.
N_RINGS = 100
FRC_BAND = (30.0, 3.0)
SIGNIFICANCE = 3.0


def motion_summary(shifts, sampling_rate, exposures, received=0.0):
    """Lengths of the path of the whole frame, in A.

    Parameters
    ----------
    shifts : array_like, shape (n, 2)
    sampling_rate : float
        A/px.
    exposures : array_like, shape (n,)
        Of each of these frames, e/A^2; zeros if unknown.
    received : float
        By the specimen before, e/A^2.

    Returns
    -------
    dict
        ``total_motion``, and of this ``early_motion``, up to the last frame that ends by 4 e/A^2 as RELION counts,
        or up to the fourth frame where the dose is unknown, and ``late_motion``, the rest.
    """
    steps = np.hypot(*np.diff(np.asarray(shifts), axis=0).T) * sampling_rate
    early = 3
    if np.any(exposures):
        ends = received + np.cumsum(exposures)
        early = int((ends[1:] <= EARLY_EXPOSURE + ROUNDING).sum())
    return {
        "total_motion": float(steps.sum()),
        "early_motion": float(steps[:early].sum()),
        "late_motion": float(steps[early:].sum()),
    }


def local_summary(result_field, shifts, shape, n_frames):
    """Extent of the local motion in px: its largest size and its 2.5 and 97.5 percentiles over the field.

    Parameters
    ----------
    result_field : callable
        As `MovieAlignmentResult.field`.
    shifts : ndarray, shape (n, 2)
    shape : (int, int)
    n_frames : int
    """
    t, y, x = np.meshgrid(
        np.arange(n_frames), np.linspace(0, shape[0] - 1, 9), np.linspace(0, shape[1] - 1, 9), indexing="ij"
    )
    size = np.linalg.norm(result_field(y, x, t) - np.asarray(shifts)[:, None, None], axis=-1)
    low, high = np.percentile(size, [2.5, 97.5])
    return {"local_motion": float(size.max()), "local_motion_2.5": float(low), "local_motion_97.5": float(high)}


def even_odd_frc(corrected, initial, shape, sampling_rate):
    """How much better the averages of even and of odd frames agree with the correction than without.

    The Fourier rings between 30 and 3 A, or Nyquist, count where the correlation is significant (three standard
    deviations of noise) with or without correction. Both halves share the alignment and the pixels' fixed pattern,
    which correlates in frames that were not moved: the numbers compare, they are no resolution.

    Parameters
    ----------
    corrected, initial : Halves
        Averages of the frames with and without correction.
    shape : (int, int)
        Of the frames.
    sampling_rate : float
        A/px of the frames.

    Returns
    -------
    dict of str to float
        ``even_odd_frc`` and ``even_odd_frc_initial``, the mean correlations over these rings;
        ``even_odd_frc_gain``, their difference; ``even_odd_frc_rings``, how many rings count. All are zero where
        there is no such ring, or no even or no odd frame.
    """
    n_rings = min(N_RINGS, min(shape) // 2)
    frequency = (np.arange(n_rings) + 0.5) / (2 * n_rings * sampling_rate)
    band = (frequency > 1 / FRC_BAND[0]) & (frequency < 1 / FRC_BAND[1])
    before = after = count = np.zeros(n_rings)
    if corrected.complete:
        xp = array_module(corrected.odd.total)
        grid = FrameGrid(shape)
        ring = _ring_numbers(grid, n_rings, xp)
        count = ring_sums(xp.ones(ring.shape, xp.float32), ring, n_rings + 1)[:n_rings]
        before, after = (_ring_correlation(halves, grid, ring, n_rings) for halves in (initial, corrected))
    rings = band & (np.maximum(before, after) > SIGNIFICANCE / np.sqrt(2.0 * np.maximum(count, 1)))
    means = [float(curve[rings].mean()) if rings.any() else 0.0 for curve in (after, before)]
    return {
        "even_odd_frc": means[0],
        "even_odd_frc_initial": means[1],
        "even_odd_frc_gain": means[0] - means[1],
        "even_odd_frc_rings": float(rings.sum()),
    }


def _ring_numbers(grid, n_rings, xp):
    """Ring of each coefficient of a half plane, int32; `n_rings` for those beyond Nyquist and on the axes.

    The axes hold the jump at the frame's border and the lines of its readout, which all frames share.
    """
    fy, fx = (from_host(f, xp, np.float32) for f in grid.frequencies)
    ring = (xp.hypot(fy[:, None], fx[None]) * xp.float32(2 * n_rings)).astype(xp.int32)
    ring[0], ring[:, 0] = n_rings, n_rings
    return xp.minimum(ring, n_rings)


def _ring_correlation(halves, grid, ring, n_rings):
    """Correlation (n_rings,) of the averages of even and of odd frames."""
    a, b = (grid.spectrum(half.mean()) for half in (halves.even, halves.odd))

    def total(p, q):
        return ring_sums(p.real * q.real + p.imag * q.imag, ring, n_rings + 1)[:n_rings]

    cross, power = total(a, b), np.sqrt(total(a, a) * total(b, b))
    return np.divide(cross, power, out=np.zeros(n_rings), where=power > 0)


def power_spectrum(image, size=512):
    """Mean amplitude spectrum of half-overlapping tiles, centred, for estimating the CTF.

    Parameters
    ----------
    image : array, shape (ny, nx)
    size : int
        Edge of the tiles, at most that of the image.

    Returns
    -------
    array of float32, shape (size, size)
        On the device of `image`; zero frequency at ``size // 2``, its own value is zero.
    """
    xp, fft = array_module(image), fft_module(image)
    size = min(size, *image.shape)
    line = np.sin(np.pi * (np.arange(size) + 0.5) / size)
    window = xp.asarray((line[:, None] * line).astype(np.float32))
    step = max(1, size // 2)
    columns = range(0, image.shape[1] - size + 1, step)
    rows = range(0, image.shape[0] - size + 1, step)
    total = xp.zeros((size, size // 2 + 1), dtype=xp.float64)
    for y in rows:
        tiles = xp.stack([image[y : y + size, x : x + size] for x in columns])
        tiles = (tiles - tiles.mean(axis=(1, 2), keepdims=True)) * window
        total += (abs(fft.rfft2(tiles)) ** 2).sum(axis=0)
    total[0, 0] = 0
    amplitude = xp.sqrt(total / (len(rows) * len(columns)))
    # The other half has the amplitudes of the opposite frequencies.
    opposite = xp.roll(amplitude[::-1], 1, axis=0)[:, (size - 1) // 2 : 0 : -1]
    whole = xp.concatenate([amplitude, opposite], axis=1)
    return xp.fft.fftshift(whole).astype(xp.float32)
