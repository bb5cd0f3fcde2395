"""Half sets, and what their maps say about resolution."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from xmipp_accel.backend import array_module, fft_module, mean
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.volumes import SPACING_TOLERANCE, read_volume
from xmipp_accel.numerics.fsc import (
    correlation_curve,
    frequencies,
    half_transform,
    randomise_phases,
    resolution_at,
    shell_sums,
    soft_sphere,
)

logger = logging.getLogger(__name__)

THRESHOLD = 0.143  # Rosenthal and Henderson, J. Mol. Biol. 333 (2003), 721
MASK_EDGE = 6.0  # px
MASK_TOLERANCE = 1e-3
RANDOMISE_BELOW = 0.8  # of the unmasked FSC; Chen et al. 2013 propose it


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
    halves, given = given_halves(given), np.asarray(given)
    if len(given) and given[0] in (1, 2) and not halves.any():
        logger.warning("All %d particles are of half set %d: splitting them at random", len(halves), given[0])
    free = np.flatnonzero(halves == 0)
    order = np.random.default_rng(seed).permutation(len(free))
    halves[free] = 1 + order % 2
    return halves


def given_halves(given) -> np.ndarray:
    """Half sets that particles must have, (n,) int64 array of 1 and 2, and 0 where it is free."""
    halves = np.array(given, dtype=np.int64)
    halves[(halves != 1) & (halves != 2)] = 0
    if len(halves) > 1 and (halves == halves[0]).all():
        halves[:] = 0
    return halves


def assign_groups(halves, number: int, seed: int) -> np.ndarray:
    """Random groups of equal size within each half set.

    Parameters
    ----------
    halves : (n,) array_like
        Half sets, or all alike.
    number : int
        Of groups.
    seed : int

    Returns
    -------
    (n,) int64 array of 0 to number - 1
    """
    halves, rng = np.asarray(halves), np.random.default_rng((seed, 1))
    groups = np.empty(len(halves), dtype=np.int64)
    for half in np.unique(halves):
        members = np.flatnonzero(halves == half)
        groups[members] = rng.permutation(len(members)) % number
    return groups


@dataclasses.dataclass(frozen=True)
class HalfMapAgreement:
    """Half-map FSC; curves on the host, see :class:`~.result.ReconstructFourierResult` for all fields."""

    frequencies: np.ndarray
    fsc_unmasked: np.ndarray
    fsc_masked: np.ndarray
    fsc_randomised: np.ndarray
    fsc_corrected: np.ndarray
    randomised_from: float
    resolution: float
    resolution_unmasked: float
    mask_diameter: float


def compare_halves(half1, half2, sampling_rate, mask_diameter=0.0, mask=None, seed=0) -> HalfMapAgreement:
    """FSC of two half maps: bare, masked, and masked with random phases, which tells what the mask itself adds.

    From the shell on where the unmasked FSC falls below 0.8, the phases of both maps are replaced by random ones.
    What then still correlates under the mask comes from the mask: two shells farther on, the corrected curve is
    ``(masked - randomised) / (1 - randomised)`` (Chen et al., Ultramicroscopy 135 (2013), 24).

    Six forward and two inverse transforms of ``n^3`` float32 are made, and two spectra are held at a time. Before
    each forward one there are at most three passes over a volume (mask, mean, difference); each of the three pairs
    of spectra is read once for its sums; the random phases take about ten passes over a spectrum, in chunks.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32 array
        On the same device.
    sampling_rate : float
        A/px.
    mask_diameter : float
        A, of a soft sphere; 0 takes 0.8 of the box.
    mask : (n, n, n) array, optional
        Values from 0 to 1, of :func:`read_mask`; used in place of the sphere.
    seed : int
        Of the random phases.
    """
    xp, box = array_module(half1), half1.shape[0]
    diameter = 0.0
    if mask is None:
        mask, diameter = sphere_mask(box, sampling_rate, mask_diameter, xp)
    mask = xp.asarray(mask)
    masked = correlation_curve(shell_sums(half_transform(half1, mask), half_transform(half2, mask)))
    spectra = [half_transform(half1), half_transform(half2)]
    unmasked = correlation_curve(shell_sums(*spectra))
    shell = int(np.append(unmasked < RANDOMISE_BELOW, True).argmax())
    randomised = masked
    if shell <= box // 2:
        levels = mean(half1), mean(half2)
        for number, level in enumerate(levels):
            spectra[number] = _with_random_phases(spectra[number], shell, (seed, number), level, mask)
        randomised = correlation_curve(shell_sums(*spectra))
    corrected = correct_fsc(masked, randomised, shell)
    return HalfMapAgreement(
        frequencies=frequencies(box, sampling_rate),
        fsc_unmasked=unmasked,
        fsc_masked=masked,
        fsc_randomised=randomised,
        fsc_corrected=corrected,
        randomised_from=box * sampling_rate / shell if shell <= box // 2 else 0.0,
        resolution=resolution_at(corrected, THRESHOLD, sampling_rate, box),
        resolution_unmasked=resolution_at(unmasked, THRESHOLD, sampling_rate, box),
        mask_diameter=float(diameter),
    )


def sphere_mask(box: int, sampling_rate: float, diameter=0.0, xp=np):
    """Soft sphere (box, box, box) float32 of `diameter` A, and that diameter; 0 takes 0.8 of the box."""
    diameter = diameter if diameter > 0 else 0.8 * box * sampling_rate
    return soft_sphere(box, diameter / sampling_rate / 2, MASK_EDGE, xp), diameter


def _with_random_phases(spectrum, shell, seed, level, mask):
    """Spectrum under the mask of a map of mean `level` whose `spectrum` gets random phases from `shell` on."""
    randomise_phases(spectrum, shell, seed)
    volume = fft_module(spectrum).irfftn(spectrum, s=mask.shape, overwrite_x=True)
    volume += level
    return half_transform(volume, mask)


def correct_fsc(masked, randomised, shell) -> np.ndarray:
    """FSC without what the mask adds, from the curves with true and with random phases from `shell` on.

    Two shells are left in between, since a mask mixes neighbouring ones.
    """
    corrected = np.array(masked, dtype=np.float64)
    beyond = np.arange(len(corrected)) >= shell + 2
    added = np.minimum(randomised[beyond], 1 - 1e-6)
    corrected[beyond] = np.clip((corrected[beyond] - added) / (1 - added), -1.0, 1.0)
    return corrected


def read_reference(path, box: int, sampling_rate: float, what="a map") -> np.ndarray:
    """Read a volume of `box` px at `sampling_rate` A/px.

    Raises
    ------
    InputFileError
        It has another size or sampling rate.
    """
    volume, rate = read_volume(path)
    if volume.shape != (box,) * 3:
        shape = " x ".join(map(str, volume.shape))
        raise InputFileError(path, f"{what} of {box} x {box} x {box} voxels", shape)
    if rate > 0 and abs(rate / sampling_rate - 1) > SPACING_TOLERANCE:
        raise InputFileError(path, f"{what} at {sampling_rate:g} A/px", f"{rate:g} A/px")
    return volume


def read_mask(path, box: int, sampling_rate: float) -> np.ndarray:
    """Read a mask for maps of `box` px at `sampling_rate` A/px.

    Returns
    -------
    (box, box, box) float32 array of values from 0 to 1

    Raises
    ------
    InputFileError
        The mask has another size or sampling rate, values outside 0 to 1, or keeps nothing.
    """
    mask = read_reference(path, box, sampling_rate, "a mask")
    low, high = float(mask.min()), float(mask.max())
    if low < -MASK_TOLERANCE or not 0 < high <= 1 + MASK_TOLERANCE:
        raise InputFileError(path, "a mask with values from 0 to 1", f"values from {low:g} to {high:g}")
    return np.clip(mask, 0, 1)
