"""A pattern that stands still on the detector, as frames without the right gain show it.

It correlates between frames where nothing is shifted, and pulls the alignment towards no motion. With n frames at
positions d, signal power S and pattern power P, the cross-spectra of all pairs of frames add up to

    unshifted:   c S + m P          m = n (n - 1)
    aligned:     m S + c P          c = |sum over t of exp(2 pi i f d_t)|^2 - n

so that both powers follow where the motion makes c differ from m; the noise in the two sums has the same matrix as
covariance, times the noise power squared. Over a ring of frequencies c is its mean, a sum of Bessel functions. The
pattern is taken to be white, as that of pixels is. Where the field of view does not move as one, the unshifted sum
has another part of the signal than c S says: that too is fitted.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import j0

from xmipp_accel.backend import array_module, from_host
from xmipp_accel.movie_alignment.spectra import SignalSpectrum
from xmipp_accel.movie_alignment.whole_frame import AlignedFrames

# Part of the signal's power that is left without alignment, above which pattern and signal are not told apart.
MOST_COHERENT = 0.5
LEAST_RINGS = 5
# Standard deviations of noise.
SIGNIFICANT = 6.0
# Share of the frames' power. A gain with an error of one per cent leaves a third of it at one electron a pixel.
HARMFUL = 3e-4
# How equal the middle and the last third of a spectrum must be to be called white; a specimen's falls to a half.
WHITE = 0.8


@dataclasses.dataclass(frozen=True)
class FixedPattern:
    """What stands still.

    Attributes
    ----------
    fraction : float
        Share of it in the frames' power.
    significance : float
        In standard deviations of what noise gives; 0 where pattern and signal cannot be told apart.
    parts : ndarray, shape (n_rings + 1,)
        Part of the mean of the frames that has to be taken from each of them, over rings of frequency.
    among_motion : bool
        Whether it was told from a signal that moves; else the frames hardly move by the shifts given.
    """

    fraction: float
    significance: float
    parts: np.ndarray
    among_motion: bool

    @property
    def harmful(self) -> bool:
        """Whether it is there for sure, and strong enough to disturb an alignment."""
        return self.significance > SIGNIFICANT and self.fraction > HARMFUL

    def numbers(self) -> dict[str, float]:
        """For the result's quality."""
        return {"fixed_pattern": self.significance, "fixed_pattern_fraction": self.fraction}

    def warning(self) -> str:
        """What was found and what to do; empty if nothing."""
        if not self.harmful:
            return ""
        return (
            f"a pattern that stands still on the detector ({100 * self.fraction:.2g} % of the frames' power, "
            f"{self.significance:.0f} standard deviations above noise) was taken out for the alignment: "
            "check the gain reference"
        )


def find_fixed_pattern(spectra, shifts):
    """Measure what stands still in frames whose motion is known.

    Parameters
    ----------
    spectra : Spectra
        Of the frames, not shifted.
    shifts : ndarray, shape (n, 2)
        Translations that align them, px of the movie.

    Returns
    -------
    FixedPattern
    """
    n = len(shifts)
    unshifted = AlignedFrames(spectra, spectra.grid, np.zeros_like(shifts))
    still, of_frames, n_rings = unshifted.total, unshifted.power, unshifted.spectrum.n_rings
    del unshifted  # before the next sum of all frames is there
    aligned = AlignedFrames(spectra, spectra.grid, shifts, of_frames).total
    power, count = of_frames.sums, of_frames.count
    unit = np.where(count > 0, power, 1.0) * (n - 1)  # the excess of identical frames
    frequency = (np.arange(n_rings + 1) + 0.5) / (2 * n_rings)
    # Beyond the grid's edge rings are not complete.
    whole = (count > 0) & (frequency < min(s / e for s, e in zip(spectra.shape, spectra.extent)) / 2)
    still_excess, aligned_excess = (((total - power) / unit)[whole] for total in (still, aligned))
    coherent, count = coherence(shifts, frequency[whole]), count[whole]
    left = np.maximum(coherent * (n - 1) + 1, 0.0) / n
    told = left < MOST_COHERENT
    among_motion = int(told.sum()) >= LEAST_RINGS
    if among_motion:
        fraction, error = _beside_motion(still_excess, aligned_excess, coherent, left, told, count, n)
    else:
        fraction, error = _white(still_excess, count, n)
    share = np.divide(fraction * n * power, still, out=np.zeros_like(power), where=still > 0)
    return FixedPattern(fraction, fraction / error, 1.0 - np.sqrt(1.0 - np.clip(share, 0.0, 1.0)), among_motion)


def remove_fixed_pattern(spectra, pattern):
    """Take so much of the frames' mean from each that nothing correlates without shifts, in place.

    All of the mean would be too much: most of it is the frames' noise, and each would then repel the others.
    """
    xp = array_module(spectra.data)
    rings = SignalSpectrum(len(spectra.data), len(pattern.parts) - 1).rings(spectra.grid.radius(xp))
    mean = spectra.data.mean(axis=0) * from_host(pattern.parts, xp, np.float32)[rings]
    for frame in spectra.data:
        frame -= mean


def coherence(shifts, frequency):
    """Mean over directions of ``(|sum of exp(2 pi i f s)|^2 - n) / (n (n - 1))``, for each of the frequencies."""
    first, second = np.triu_indices(len(shifts), 1)
    apart = 2 * np.pi * np.linalg.norm(shifts[first] - shifts[second], axis=1)

    def mean(frequency):
        return np.array([j0(f * apart).mean() for f in frequency])

    # It is as smooth as its longest wave, so that a polynomial through fewer points is exact to rounding.
    half = np.max(frequency, initial=0.0) / 2
    waves = half * apart.max()
    degree = int(waves + 8 * np.cbrt(waves)) + 10
    if degree >= len(frequency):
        return mean(frequency)
    return chebyshev.chebval(
        frequency / half - 1, chebyshev.chebinterpolate(lambda x: mean(half * (x + 1)), degree)
    )


def _beside_motion(still, aligned, coherent, left, told, count, n):
    """Fraction of the power that stands still, and its standard error, from the rings that are `told`.

    Excesses are in units of those of identical frames; `left` of the signal's power remains without alignment.
    """
    apart = np.maximum(1.0 - coherent**2, 1e-9)
    pattern = (still - coherent * aligned) / apart
    signal = np.convolve(np.maximum((aligned - coherent * still) / apart, 0.0), [0.25, 0.5, 0.25], "same")
    deviation = (1 + n * signal * left) / np.sqrt(n * (n - 1) * apart * count)
    design = np.stack([np.ones_like(left), signal * left], axis=1)[told] / deviation[told, None]
    values = (pattern / deviation)[told]
    fit = np.linalg.lstsq(design, values, rcond=None)[0]
    misfit = ((values - design @ fit) ** 2).sum() / (told.sum() - 2)
    variance = np.linalg.pinv(design.T @ design)[0, 0] * max(1.0, misfit)
    return max(float(fit[0]), 0.0), float(np.sqrt(variance))


def _white(still, count, n):
    """The same for frames that hardly move: a signal falls with frequency, and what does not is a pattern.

    The error is infinite if there is none.
    """
    third = len(still) // 3
    if not third:
        return 0.0, np.inf
    bands = slice(-2 * third, -third), slice(-third, None)
    inner, outer = (np.average(still[band], weights=count[band]) for band in bands)
    if not min(inner, outer) > WHITE * max(inner, outer):
        return 0.0, np.inf
    return float(outer), float(1 / np.sqrt(n * (n - 1) * count[bands[1]].sum()))
