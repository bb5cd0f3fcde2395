"""Optics groups: what the particles of one microscope session share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# Relative; pixel sizes that differ by less count as one.
SAMPLING_TOLERANCE = 1e-3
IDENTITY = ((1.0, 0.0), (0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class OpticsGroup:
    """Pixels, box and aberrations of some particles, in RELION's conventions (:mod:`..numerics.aberrations`).

    Attributes
    ----------
    name : str
    sampling_rate : float
        A/px, 0 if unknown.
    box : int
        Side of the images in px, 0 if unknown.
    magnification : 2 x 2 tuple of float
        What takes a frequency (x, y) of the image to that of the specimen.
    beam_tilt : (float, float)
        (x, y), mrad.
    odd_zernike, even_zernike : tuple of float
        Coefficients of the antisymmetric and symmetric aberrations, radians.
    premultiplied : bool
        Whether the images are multiplied by their CTF already.
    """

    name: str
    sampling_rate: float = 0.0
    box: int = 0
    magnification: tuple[tuple[float, float], tuple[float, float]] = IDENTITY
    beam_tilt: tuple[float, float] = (0.0, 0.0)
    odd_zernike: tuple[float, ...] = ()
    even_zernike: tuple[float, ...] = ()
    premultiplied: bool = False

    def __post_init__(self):
        # Groups that come from arrays or JSON compare equal to others.
        rows = tuple(tuple(map(float, row)) for row in self.magnification)
        object.__setattr__(self, "magnification", rows)
        for name in ("beam_tilt", "odd_zernike", "even_zernike"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))


def join_groups(
    groups: Mapping[int, OpticsGroup], others: Mapping[int, OpticsGroup]
) -> tuple[dict[int, OpticsGroup], dict[int, int]]:
    """Groups of two sets of particles under distinct numbers.

    Returns
    -------
    dict of int to OpticsGroup
        `groups` as they are, and those of `others` that are not among them.
    dict of int to int
        New number of each of `others`: its own where that is free or stands for an equal group.
    """
    joined, numbers = dict(groups), {}
    for number, group in others.items():
        free = joined.get(number, group) == group
        numbers[number] = number if free else max([*joined, *others]) + 1
        joined[numbers[number]] = group
    return joined, numbers
