"""Where images go: what their insertion needs besides their pixels, computed for many of them at once.

While images are inserted many threads read and copy, and each of NumPy's calls may have to wait for Python's lock.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.errors import ParameterError
from xmipp_accel.kernels.reference.insert import WEIGHT

LIKE = 0.1  # of directions: six degrees


@dataclasses.dataclass(frozen=True)
class Placement:
    """Of n images of one optics group; arrays on the host.

    Attributes
    ----------
    factors : (n, 12) float32 array
        Of :meth:`~.prepare.SlicePlan.factors`.
    axes : (n, 3, 3) float64 array
        Of :meth:`~.prepare.SlicePlan.axes`.
    curvature : (n,) float32 array
        Of the Ewald sphere, 0 without it.
    parts : (n,) int64 array
        Which part of the sums each image goes to.
    directions : (n,) int64 array
        Numbers that are near to each other for like viewing directions, which reach the same voxels.
    signs : (n,) int64 array
        1, -1 for images that are taken out again, 0 for those that are left out.
    """

    factors: np.ndarray
    axes: np.ndarray
    curvature: np.ndarray
    parts: np.ndarray
    directions: np.ndarray
    signs: np.ndarray

    def __len__(self):
        return len(self.factors)

    def take(self, rows) -> Placement:
        """Of the images at `rows`, a slice or numbers from 0."""
        return Placement(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def without(self, left_out) -> Placement:
        """The same, with the images left out where the (n,) bool array `left_out` says so."""
        factors = self.factors.copy()
        factors[left_out, WEIGHT] = 0
        return dataclasses.replace(self, factors=factors, signs=np.where(left_out, 0, self.signs))

    def order(self, parts: int) -> tuple[np.ndarray, list[int]]:
        """Numbers of the images by part, those of like direction following each other, and the parts' edges.

        Returns
        -------
        (n,) int64 array
        list of int
            Edges of so many parts.
        """
        order = np.lexsort((self.directions, self.parts))
        return order, np.searchsorted(self.parts[order], range(parts + 1)).tolist()


def place(plan, views, volume, parameters) -> Placement:
    """Place the images of an optics group.

    Parameters
    ----------
    plan : SlicePlan
    views : Views
    volume : VolumeGrid
    parameters : ReconstructFourierParameters

    Raises
    ------
    ParameterError
        Half sets, groups or optics are missing.
    """
    diameter = parameters.mask_diameter or 0.8 * volume.box * volume.sampling_rate
    curved = parameters.ewald != "none"
    axes = plan.axes(views.matrices)
    return Placement(
        plan.factors(views, diameter),
        axes,
        plan.curvature(views, volume) if curved else np.zeros(len(views), np.float32),
        _parts(views, parameters.halves, max(1, parameters.error_groups)),
        _cells(axes[:, 2]),
        np.sign(views.weights).astype(np.int64),
    )


def _parts(views, with_halves, number):
    halves, groups = views.halves, views.groups
    if not with_halves:
        halves = np.ones(len(views), dtype=int)
    elif halves is None or not np.isin(halves, (1, 2)).all():
        raise ParameterError("halves: expected half set 1 or 2 for every image, since half maps are on")
    if number == 1:
        groups = np.zeros(len(views), dtype=int)
    elif groups is None or not np.isin(groups, range(number)).all():
        raise ParameterError(f"groups: expected 0 to {number - 1} for every image, since error_groups is on")
    return (np.asarray(halves, dtype=np.int64) - 1) * number + np.asarray(groups, dtype=np.int64)


def _cells(directions):
    """Numbers of cells of the hemisphere, by the axis nearest to the direction, then z, y and x."""
    axis = np.abs(directions).argmax(axis=1)
    along = np.take_along_axis(directions, axis[:, None], axis=1)
    half = int(np.ceil(1 / LIKE))
    cells = np.rint(directions / np.where(along < 0, -LIKE, LIKE)).astype(np.int64) + half
    return np.ravel_multi_index((axis, *cells.T[::-1]), (3, *(2 * half + 1,) * 3))
