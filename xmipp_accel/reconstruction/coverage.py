"""How well the particles' views cover Fourier space, from the weights alone."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.numerics.sphere import geodesic_directions, perturb_directions
from xmipp_accel.reconstruction.geometry import VolumeGrid

STEP = 4.0  # degrees between the directions that are reported
EMPTY = 1e-3  # of a shell's mean: the voxels with less are damped when the map is made
SPARSE = 0.1  # of the mean: directions with less count as empty, being mostly the blurred border of such ones


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Weights by shell and by direction, on the host.

    Attributes
    ----------
    mean, minimum, empty : (s,) float64 array
        Of shells 0 to s - 1 of the box: mean and least weight of samples in all directions, in the units of the
        sums, and the fraction of samples with less than a thousandth of the mean.
    directions : (d,) float64 array
        Weight in the :func:`hemisphere` directions, averaged over the outer half of the shells and a few degrees
        around, over its mean.
    scf : float
        Sampling compensation factor, see :func:`sampling_compensation`.
    empty_directions : float
        Fraction of the directions that hold less than a tenth of the mean.
    weakest : (float, float)
        Rot and tilt in degrees of the direction in the middle of what is covered least.
    """

    mean: np.ndarray
    minimum: np.ndarray
    empty: np.ndarray
    directions: np.ndarray
    scf: float
    empty_directions: float
    weakest: tuple[float, float]


@functools.cache
def hemisphere() -> np.ndarray:
    """Directions (d, 3) of Fourier space in (x, y, z), one of each opposite pair, `STEP` degrees apart."""
    directions = geodesic_directions(STEP)
    x, y, z = np.round(directions, 9).T
    return directions[(z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))]


def sampling_compensation(coverage) -> float:
    """Sampling compensation factor of Baldwin and Lyumkis, Prog. Biophys. Mol. Biol. 150 (2020), 160.

    ``SCF = 1 / (<1 / s> <s>)`` over evenly spread directions of sampling s: the factor by which uneven views lower
    the signal-to-noise ratio of a shell, 1 for even ones and 8 / pi^2 = 0.81 for views around one axis. Empty
    directions, whose fraction is told apart, are left out of both means, so that it never exceeds 1; the authors'
    program leaves them out of the first one only.
    """
    coverage = np.asarray(coverage, dtype=np.float64)
    sampled = coverage[coverage > SPARSE * coverage.mean()]
    return float(1 / ((1 / sampled).mean() * sampled.mean())) if sampled.size else 0.0


def measure_coverage(sums, grid: VolumeGrid) -> Coverage:
    """Coverage by the weights of joined sums."""
    return summarise_coverage(sample_weights(sums, grid))


def sample_weights(sums, grid: VolumeGrid) -> np.ndarray:
    """Weights of joined sums by shell of the box and direction.

    Instead of the whole volume, one voxel is read for each direction and shell, at a random place in the
    direction's cell: some 1300 samples of each shell, of whatever size.

    Parameters
    ----------
    sums : (2 c + 1, 2 c + 1, c + 1, 4) float32 array
        Layout of :mod:`xmipp_accel.kernels.reference.insert`, opposite sides joined.
    grid : VolumeGrid

    Returns
    -------
    (s, d) float64 array
        On the host, of shells 0 to s - 1 and the :func:`hemisphere` directions.
    """
    box, padded = grid.box, grid.padded
    shells = min(box // 2, int(grid.radius * box / padded + 1e-6)) + 1
    directions = hemisphere()
    spread = perturb_directions(np.tile(directions, (shells, 1)), STEP / 4, np.random.default_rng(0))
    radii = np.repeat(np.arange(shells) * (padded / box), len(directions))
    return _weights_at(sums, np.rint(spread * radii[:, None]).astype(np.int64)).reshape(shells, -1)


def summarise_coverage(weights) -> Coverage:
    """Coverage from the weights of :func:`sample_weights`, which may be summed over parts of the images."""
    mean = weights.mean(axis=1)
    relative = weights / np.where(mean > 0, mean, 1.0)[:, None]
    by_direction = relative[len(relative) // 2 :].mean(axis=0).round(4)
    return Coverage(
        mean=mean,
        minimum=weights.min(axis=1),
        empty=(relative < EMPTY).mean(axis=1),
        directions=by_direction,
        scf=sampling_compensation(by_direction),
        empty_directions=float((by_direction < SPARSE * by_direction.mean()).mean()),
        weakest=_weakest(hemisphere(), by_direction),
    )


def _weights_at(sums, voxels):
    """Weights of `voxels` (n, 3) in (x, y, z) around the origin, on the host; 0 outside the volume."""
    xp, centre = array_module(sums), sums.shape[2] - 1
    voxels = np.where(voxels[:, :1] < 0, -voxels, voxels)
    inside = np.abs(voxels).max(axis=1) <= centre
    x, y, z = np.clip(voxels, -centre, centre).T
    # Numbers of records, since CuPy would copy all weights to index them by three axes.
    records = np.ravel_multi_index((z + centre, y + centre, x), sums.shape[:3])
    return to_host(sums.reshape(-1)[xp.asarray(4 * records + 2)]).astype(np.float64) * inside


def _weakest(directions, coverage):
    """Rot and tilt of the axis around which coverage is least: the middle of a missing cone."""
    lacking = np.maximum(coverage.mean() - coverage, 0.0)
    # Directions have no sign, so their mean is the main axis of their second moments.
    _, axes = np.linalg.eigh(np.einsum("d,di,dj->ij", lacking, directions, directions))
    x, y, z = axes[:, -1] * (1 if axes[2, -1] >= 0 else -1)
    return float(np.rad2deg(np.arctan2(y, x))), float(np.rad2deg(np.arccos(np.clip(z, -1.0, 1.0))))
