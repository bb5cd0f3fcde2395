"""What maps of parts of the particles say: standard errors, and resolution against the number of particles."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module
from xmipp_accel.numerics.fsc import half_transform, shell_sums


@dataclasses.dataclass(frozen=True)
class StandardErrors:
    """How far a map would vary with other particles.

    Attributes
    ----------
    map : (n, n, n) float32 array
        Standard error of each voxel, in the units of the map; on the device of the parts.
    relative : (n // 2 + 1,) float64 array
        Of each shell: root of the power of the error over the power of the map. The ratio of signal to noise is
        ``1 / relative^2 - 1``.
    """

    map: object
    relative: np.ndarray


def jackknife(parts, total, volume, to_map) -> StandardErrors:
    """Standard error of a map by leaving out one group of particles at a time.

    With the K maps M_g that lack one group each, it is ``sqrt((K - 1) / K sum (M_g - mean)^2)`` (Efron and
    Stein, Ann. Statist. 9 (1981), 586). Mean and squares are updated with each map (Welford, Technometrics 4
    (1962), 419), so that close maps lose no precision and, besides the map at hand, two volumes and one array of
    sums are needed whatever K. Each map is transformed once.

    Parameters
    ----------
    parts : sequence of arrays
        Joined sums of each group, of about equal numbers of particles.
    total : array
        Their sum.
    volume : (n, n, n) array
        ``to_map(total)``.
    to_map : callable
        Map of joined sums, which it does not change.
    """
    xp = array_module(volume)
    mean, squares = xp.zeros_like(volume), xp.zeros_like(volume)
    powers = np.zeros(volume.shape[0] // 2 + 1)
    for number, part in enumerate(parts):
        deviation = to_map(total - part) - mean
        mean += deviation / (number + 1)
        share = number / (number + 1)
        squares += share * deviation * deviation
        if number:
            powers += share * _power(deviation)
    scale, signal = (len(parts) - 1) / len(parts), _power(volume)
    return StandardErrors(xp.sqrt(scale * squares), np.sqrt(scale * powers / np.where(signal > 0, signal, 1.0)))


def _power(volume):
    transform = half_transform(volume)
    return shell_sums(transform, transform)[1]


@dataclasses.dataclass(frozen=True)
class Growth:
    """Resolution against the number of particles.

    Attributes
    ----------
    particles : list of int
    resolutions : list of float
        A.
    b_factor : float
        A^2, see :func:`fit_b_factor`; 0 where no line could be fitted.
    """

    particles: list[int]
    resolutions: list[float]
    b_factor: float


def resolution_by_number(parts, counts, to_map, resolution_of, last, finest) -> Growth:
    """Resolution of the first 1, 2, 4, ... groups of both half sets, and at last of all.

    Parameters
    ----------
    parts : two sequences of arrays
        Joined sums of the groups of each half set.
    counts : two sequences of int
        Their numbers of particles.
    to_map : callable
        Map of joined sums, which it does not change.
    resolution_of : callable
        Resolution in A of two half maps.
    last : float
        A, of all groups.
    finest : float
        A; what reaches it is limited by the sampling rate and not fitted.
    """
    groups, resolutions, sums = len(parts[0]), [], [None, None]
    steps = [1 << power for power in range(groups.bit_length()) if 1 << power < groups]
    for begin, stop in zip([0, *steps], steps):
        for half, own in enumerate(parts):
            for part in own[begin:stop]:
                if sums[half] is None:
                    sums[half] = part.copy()
                else:
                    sums[half] += part
        resolutions.append(float(resolution_of(*map(to_map, sums))))
    steps, resolutions = [*steps, groups], [*resolutions, float(last)]
    particles = [int(sum(sum(own[:step]) for own in counts)) for step in steps]
    return Growth(particles, resolutions, fit_b_factor(particles, resolutions, finest))


def fit_b_factor(particles, resolutions, finest=0.0) -> float:
    """B factor in A^2 of the line ``1 / d^2 = a + (2 / B) ln N`` through resolutions d of N particles.

    Rosenthal and Henderson, J. Mol. Biol. 333 (2003), 721: amplitudes fall with ``exp(-B / (4 d^2))``, so that the
    particles needed grow with ``exp(B / (2 d^2))``.

    Parameters
    ----------
    particles, resolutions : (m,) array_like
        Resolutions in A.
    finest : float
        A; points that reach it are left out.

    Returns
    -------
    float
        0 if fewer than two points are left, or the resolution does not improve with their number.
    """
    particles, resolutions = np.asarray(particles, dtype=float), np.asarray(resolutions, dtype=float)
    used = resolutions > 1.001 * finest
    if len(np.unique(particles[used])) < 2:
        return 0.0
    slope = np.polyfit(np.log(particles[used]), 1 / resolutions[used] ** 2, 1)[0]
    return float(2 / slope) if slope > 0 else 0.0
