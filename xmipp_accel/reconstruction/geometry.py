"""Grids of a reconstruction: those of padded images and their slices, and that of the Fourier volume."""

from __future__ import annotations

import dataclasses
import math

from xmipp_accel.backend import good_fft_size
from xmipp_accel.errors import ParameterError
from xmipp_accel.reconstruction.gridding import Gridding

SMALLEST_BOX = 4


@dataclasses.dataclass(frozen=True)
class VolumeGrid:
    """The Fourier volume.

    Attributes
    ----------
    box : int
        Edge of the map, px.
    sampling_rate : float
        A/px.
    padded : int
        Edge of the padded map, even.
    radius : float
        Farthest sample from the origin, voxels.
    centre : int
        Largest frequency of the sums, voxels.
    """

    box: int
    sampling_rate: float
    padded: int
    radius: float
    centre: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the sums: (z, y, x, record)."""
        return (2 * self.centre + 1, 2 * self.centre + 1, self.centre + 1, 4)

    @property
    def finest(self) -> float:
        """Finest frequency, 1/A."""
        return self.radius / (self.padded * self.sampling_rate)


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Images of one box and pixel size, and their slices.

    Attributes
    ----------
    box : int
        Edge, px.
    sampling_rate : float
        A/px.
    padded : int
        Edge of the padded images, even.
    rows, columns : int
        Shape of a slice; row ``rows // 2`` and column 0 are the origin.
    limit : float
        Largest squared radius of a used sample, in samples.
    scale : float
        Voxels of the volume for each sample.
    gain : float
        What transforms are multiplied with, the squared ratio of the image's pixel size to the map's: pixels of
        all sizes hold the same line integrals, as those of a resampled image do, and a transform is their sum
        times the pixel's area. RELION's transforms are means over the image instead, which is the same for images
        of one extent. Sums over the voxels of a volume, as :meth:`~xmipp_accel.simulate.phantom.Phantom.project`
        makes them, are line integrals divided by the pixel size.
    """

    box: int
    sampling_rate: float
    padded: int
    rows: int
    columns: int
    limit: float
    scale: float
    gain: float

    @property
    def step(self) -> float:
        """Distance of samples, 1/A."""
        return 1 / (self.padded * self.sampling_rate)


def plan_volume(parameters, gridding: Gridding, box: int, sampling_rate: float) -> VolumeGrid:
    """Grid for a map of `box` px at `sampling_rate` A/px.

    Raises
    ------
    ParameterError
        The box or the pixel size is too small, or the wanted resolution leaves nothing to reconstruct.
    """
    _check(box, sampling_rate)
    finest = 0.5
    if parameters.max_resolution > 0:
        finest = min(0.5, sampling_rate / parameters.max_resolution)
    padded = _padded(box, parameters.padding_volume, gridding)
    radius = padded * finest
    if radius < 2:
        raise ParameterError(
            f"max_resolution: expected finer than {box * sampling_rate / 2:.1f} A, "
            f"found {parameters.max_resolution}"
        )
    # One voxel more for the outer neighbours of the last samples; Xmipp cuts there.
    centre = _conserved(padded, finest) if gridding.as_xmipp else math.ceil(radius - 1e-6 + gridding.reach)
    return VolumeGrid(box, float(sampling_rate), padded, radius, centre)


def plan_images(parameters, gridding: Gridding, volume: VolumeGrid, box: int, sampling_rate: float, stretch=1.0):
    """`ImageGrid` of images of `box` px at `sampling_rate` A/px.

    Parameters
    ----------
    stretch : float
        By how much an anisotropic magnification moves samples outwards at most.
    """
    _check(box, sampling_rate)
    padding = parameters.padding_volume if gridding.as_xmipp else parameters.padding_images
    padded = _padded(box, padding, gridding)
    size = padded * sampling_rate
    if gridding.as_xmipp:
        columns = volume.centre
        rows, limit = 2 * columns, volume.radius**2
    else:
        columns = 1 + min(padded // 2, int(volume.finest * size / stretch + 1e-6))
        rows, limit = 2 * columns - 1, float((columns - 1) ** 2)
    return ImageGrid(
        box=box,
        sampling_rate=float(sampling_rate),
        padded=padded,
        rows=rows,
        columns=columns,
        limit=limit,
        scale=volume.padded * volume.sampling_rate / size,
        gain=(sampling_rate / volume.sampling_rate) ** 2,
    )


def _check(box, sampling_rate):
    if box < SMALLEST_BOX or not 0 < sampling_rate < math.inf:
        raise ParameterError(
            f"particles: expected a box of {SMALLEST_BOX} px or more and a pixel size, "
            f"found {box}, {sampling_rate}"
        )


def _padded(box, padding, gridding):
    if gridding.as_xmipp:
        size = int(box * padding)
        return size + size % 2
    return good_fft_size(math.ceil(box * padding - 1e-6))


def _conserved(padded, finest):
    return math.ceil(math.ceil(2 * padded * finest - 1e-6) / 2)
