"""Half sets, and what their maps say about resolution."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from xmipp_accel.backend import array_module, fft_module
from xmipp_accel.numerics.fsc import (
    fourier_shell_correlation,
    frequencies,
    resolution_at,
    shell_numbers,
    soft_sphere,
)

logger = logging.getLogger(__name__)

THRESHOLD = 0.143  # Rosenthal and Henderson, J. Mol. Biol. 333 (2003), 721
MASK_EDGE = 6.0  # px


def assign_halves(given, seed: int) -> np.ndarray:
    """Complete half sets: what `given` leaves at 0 is split at random into two sets of equal size.

    If all particles are given the same set, all are split: one set alone has no FSC.

    Parameters
    ----------
    given : (n,) array_like of 0, 1 and 2
    seed : int

    Returns
    -------
    (n,) int64 array of 1 and 2
    """
    halves = np.array(given, dtype=np.int64)
    if len(halves) > 1 and halves[0] in (1, 2) and (halves == halves[0]).all():
        logger.warning("All %d particles are of half set %d: splitting them at random", len(halves), halves[0])
        halves[:] = 0
    free = np.flatnonzero((halves != 1) & (halves != 2))
    order = np.random.default_rng(seed).permutation(len(free))
    halves[free] = 1 + order % 2
    return halves


@dataclasses.dataclass(frozen=True)
class HalfMapAgreement:
    """Half-map FSC; curves on the host, see :class:`~.result.ReconstructFourierResult`."""

    frequencies: np.ndarray
    fsc_unmasked: np.ndarray
    fsc_masked: np.ndarray
    resolution: float
    resolution_unmasked: float
    mask_diameter: float


def compare_halves(half1, half2, sampling_rate: float, mask_diameter: float) -> HalfMapAgreement:
    """FSC of two half maps (n, n, n), bare and under a soft sphere of `mask_diameter` A (0: 0.8 of the box)."""
    xp, box = array_module(half1), half1.shape[0]
    diameter = mask_diameter if mask_diameter > 0 else 0.8 * box * sampling_rate
    mask = soft_sphere(box, diameter / sampling_rate / 2, MASK_EDGE, xp)
    unmasked = fourier_shell_correlation(half1, half2)
    masked = fourier_shell_correlation(half1, half2, mask)
    return HalfMapAgreement(
        frequencies=frequencies(box, sampling_rate),
        fsc_unmasked=unmasked,
        fsc_masked=masked,
        resolution=resolution_at(masked, THRESHOLD, sampling_rate, box),
        resolution_unmasked=resolution_at(unmasked, THRESHOLD, sampling_rate, box),
        mask_diameter=float(diameter),
    )


def weigh_by_fsc(volume, curve):
    """Multiply a full map's shells by ``sqrt(2 FSC / (1 + FSC))``, the expected correlation with the true map.

    Parameters
    ----------
    volume : (n, n, n) array
    curve : (n // 2 + 1,) array_like
        Half-map FSC.
    """
    xp, fft = array_module(volume), fft_module(volume)
    fsc = np.clip(np.asarray(curve, dtype=np.float64), 0.0, 1.0)
    gain = np.append(np.sqrt(2 * fsc / (1 + fsc)), 0.0)  # the last one for the corners beyond Nyquist
    n = volume.shape[0]
    shells = xp.minimum(shell_numbers(n, 3, xp), n // 2 + 1)
    spectrum = fft.rfftn(volume) * xp.asarray(gain, dtype=xp.float32)[shells]
    return fft.irfftn(spectrum, s=volume.shape).astype(xp.float32)
