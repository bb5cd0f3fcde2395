"""What particles and references are compared on: rings, angles, mask and shifts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from xmipp_accel.errors import ParameterError
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.gallery import content_radius
from xmipp_accel.particle_alignment.search import shift_grid

EDGE = 3.0  # px, of the mask
_AUTOMATIC_RESOLUTION = 5.0  # A
_AUTOMATIC_NYQUIST_SHARE = 0.9
_MOST_RINGS = 48
_COARSE_RINGS = 16
_STEP = 0.56  # periods of the outermost ring between shifts: slightly over a half, the polish bridges the rest


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, once the automatic parameters are chosen.

    Attributes
    ----------
    grid, coarse : polar.PolarGrid
        Of the second and of the first stage; they share the angles.
    mask_radius : float
        Px.
    max_shift : float
        Px.
    shifts : (S, 2) array
        (y, x) px, of the first stage.
    offsets : (O, 2) array
        (y, x) px, of the second stage, around those of the first.
    resolution : float
        A; 0 if the sampling rate is unknown.
    """

    grid: polar.PolarGrid
    coarse: polar.PolarGrid
    mask_radius: float
    max_shift: float
    shifts: np.ndarray
    offsets: np.ndarray
    resolution: float

    @property
    def independent(self) -> float:
        """Number of independent real data in a masked image within the band of the first stage."""
        return math.pi**2 * (self.coarse.n_rings * self.mask_radius / self.grid.box) ** 2


def choose_comparison(references, box, sampling_rate, parameters) -> Comparison:
    """Fill in mask radius, band limit and shift grids.

    Raises
    ------
    ParameterError
        The mask does not fit in the box, or the resolution is beyond Nyquist or needs the sampling rate.
    """
    scale = references.relative_scale(box, sampling_rate)
    radius = parameters.mask_radius or content_radius(references) * box * scale
    radius = radius if parameters.mask_radius else min(radius, 0.45 * box)
    if radius > box / 2:
        raise ParameterError(f"mask_radius: expected at most half the box ({box / 2:g} px), found {radius:g}")
    rings = _number_of_rings(box, sampling_rate, parameters.max_resolution)
    rings = max(1, min(rings, int(references.box // 2 / scale)))  # the references hold nothing beyond
    max_shift = parameters.largest_shift(box, sampling_rate)
    grid = polar.polar_grid(box, rings, radius + EDGE / 2, max_shift)
    inner = min(rings, _COARSE_RINGS)
    harmonics = polar.polar_grid(box, inner, radius + EDGE / 2).n_harmonics
    step = _STEP * box / inner
    # The farthest that a shift can lie from the coarse hexagonal grid is its step over the square root of 3.
    offsets = shift_grid(min(step / math.sqrt(3), max_shift), _STEP * box / rings)
    return Comparison(
        grid=grid,
        coarse=dataclasses.replace(grid, n_rings=inner, n_harmonics=min(harmonics, grid.n_harmonics)),
        mask_radius=radius,
        max_shift=max_shift,
        shifts=shift_grid(max_shift, step),
        offsets=offsets,
        resolution=box * sampling_rate / rings if sampling_rate else 0.0,
    )


def _number_of_rings(box, sampling_rate, max_resolution):
    nyquist = box // 2
    if max_resolution == 0:
        rings = min(_AUTOMATIC_NYQUIST_SHARE * nyquist, _MOST_RINGS)
        if sampling_rate:
            rings = min(rings, box * sampling_rate / _AUTOMATIC_RESOLUTION)
        return max(4, int(rings))
    if not sampling_rate:
        raise ParameterError("max_resolution: the particles' sampling rate is unknown")
    rings = int(box * sampling_rate / max_resolution)
    if rings > nyquist:
        raise ParameterError(
            f"max_resolution: expected at least {2 * sampling_rate:g} A, found {max_resolution:g}"
        )
    return max(2, rings)
