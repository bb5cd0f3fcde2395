"""Grids of a reconstruction: padded images, their slices, and the Fourier volume."""

from __future__ import annotations

import dataclasses
import math

from xmipp_accel.backend import good_fft_size
from xmipp_accel.errors import ParameterError


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes that follow from the box and the parameters.

    Attributes
    ----------
    box : int
        Edge of images and map, px.
    sampling_rate : float
        A/px.
    padded : int
        Edge of the padded images and of the Fourier grid, even.
    rows, columns : int
        Shape of a slice; row ``rows // 2`` and column 0 are the origin.
    limit : float
        Largest squared radius of a used sample, in steps of ``1 / padded`` cycles/px.
    centre : int
        Largest frequency of the accumulator, whose shape is ``(2 centre + 1, 2 centre + 1, centre + 1, 4)``.
    """

    box: int
    sampling_rate: float
    padded: int
    rows: int
    columns: int
    limit: float
    centre: int

    @property
    def accumulator_shape(self):
        """(z, y, x, record)."""
        return (2 * self.centre + 1, 2 * self.centre + 1, self.centre + 1, 4)


def plan_geometry(parameters, box: int, sampling_rate: float) -> Geometry:
    """Sizes for particles of `box` px at `sampling_rate` A/px.

    Raises
    ------
    ParameterError
        The box or the pixel size is not positive, or the wanted resolution leaves nothing to reconstruct.
    """
    if box < 2 or not sampling_rate > 0:
        raise ParameterError(
            f"particles: expected a box of 2 px or more and a pixel size, found {box}, {sampling_rate}"
        )
    finest = 0.5
    if parameters.max_resolution > 0:
        finest = min(0.5, sampling_rate / parameters.max_resolution)
    if parameters.method == "direct":
        padded = good_fft_size(math.ceil(box * parameters.padding - 1e-6))
        radius = int(padded * finest + 1e-6)
        rows, columns, limit = 2 * radius + 1, radius + 1, float(radius**2)
    else:
        padded = int(box * parameters.padding)
        padded += padded % 2
        radius = math.ceil(math.ceil(2 * padded * finest - 1e-6) / 2)
        rows, columns, limit = 2 * radius, radius, (padded * finest) ** 2
    if radius < 2:
        raise ParameterError(
            f"max_resolution: expected finer than {box * sampling_rate / 2:.1f} A, "
            f"found {parameters.max_resolution}"
        )
    # One voxel more than a direct slice's radius, for the outer neighbours of its samples; Xmipp cuts there.
    return Geometry(
        box=box,
        sampling_rate=float(sampling_rate),
        padded=padded,
        rows=rows,
        columns=columns,
        limit=limit,
        centre=columns,
    )
