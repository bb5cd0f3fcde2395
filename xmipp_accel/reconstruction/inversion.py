"""Two ways from samples to maps: sums divided by their weights, and least squares.

The sums of a half set or a group are a *part*: a list of arrays, the first of which holds records. An inversion
says which arrays these are, adds slices to them, joins what symmetry relates, and makes maps. Joined parts can be
added and subtracted.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, good_fft_size
from xmipp_accel.reconstruction.conjugate import (
    add_prior,
    adjoint_image,
    solve,
    toeplitz_spectrum,
    weights_shape,
)
from xmipp_accel.reconstruction.coverage import Coverage, measure_coverage, sample_weights, summarise_coverage
from xmipp_accel.reconstruction.finish import join_sides, make_map
from xmipp_accel.reconstruction.geometry import VolumeGrid
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.regularise import signal_to_noise
from xmipp_accel.reconstruction.symmetry import join_weights
from xmipp_accel.reconstruction.weights import insert_weights

# Times a shell's mean: such shells keep a twentieth, and steeper priors take several times as many iterations.
LARGEST_PRIOR = 20.0


@dataclasses.dataclass(frozen=True)
class DirectInversion:
    """Division of the sums by their weights; a part is its records, joined or not.

    Attributes
    ----------
    gridding : Gridding
    volume : VolumeGrid
    permutations : (h, 3, 3) int64 array
        Symmetry operators that are applied to sums.
    wiener : float
        Fraction of a shell's mean weight that is added to its weights.
    """

    gridding: Gridding
    volume: VolumeGrid
    permutations: np.ndarray
    wiener: float

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the arrays of a part."""
        return [self.volume.shape]

    def bands(self, planes) -> list[tuple[int, int]]:
        """The range of planes of each array that goes with `planes` of the records."""
        whole = self.volume.shape[0]
        return [tuple(round(edge * shape[0] / whole) for edge in planes) for shape in self.shapes]

    def finish_bytes(self, groups: int) -> int:
        """Bytes that the most demanding moment of making maps takes besides the parts."""
        voxels = int(np.prod(self.volume.shape[:3], dtype=np.int64))
        return voxels * ((44 if len(self.permutations) > 1 else 16) + (64 if groups > 1 else 0))

    def insert(self, part, bands, slices, matrices, curvature, images, reach, how=""):
        """Add slices to the `bands` of a part; see :meth:`Gridding.insert`."""
        self.gridding.insert(part[0], bands[0][0], slices, matrices, curvature, images, reach, how)

    def join(self, part):
        """What a part says with its symmetry; uses it up."""
        return join_sides(part[0], self.gridding, self.permutations)

    def solve(self, joined, fsc=None) -> tuple[Any, list[float]]:
        """Map of a joined part, which stays as it is.

        Parameters
        ----------
        fsc : (box // 2 + 1,) array_like, optional
            Of the half maps; if given, the map is regularised by it.

        Returns
        -------
        map : (box, box, box) float32 array
        residuals : list of float
            After each iteration, if there are any.
        """
        return make_map(joined, self.volume, self.gridding, self.wiener, fsc), []

    def coverage(self, joined) -> Coverage:
        """Coverage by the weights of a joined part."""
        return measure_coverage(joined, self.volume)


@dataclasses.dataclass(frozen=True)
class NormalEquations:
    """A joined part for least squares.

    Attributes
    ----------
    right : (box, box, box) float32 array
    spectrum : (m, m, m // 2 + 1) float32 array
        See :mod:`xmipp_accel.reconstruction.conjugate`.
    weights : (s, d) float64 array
        Of :func:`~.coverage.sample_weights`.
    """

    right: Any
    spectrum: Any
    weights: np.ndarray

    def __add__(self, other):
        return self._combined(operator.add, other)

    def __sub__(self, other):
        return self._combined(operator.sub, other)

    def copy(self) -> NormalEquations:
        """The same, since nothing changes equations in place."""
        return self

    def _combined(self, operation, other):
        return NormalEquations(
            operation(self.right, other.right),
            operation(self.spectrum, other.spectrum),
            operation(self.weights, other.weights),
        )


@dataclasses.dataclass(frozen=True)
class LeastSquares(DirectInversion):
    """Conjugate gradients; a part is its records and the weights on a grid of twice their resolution.

    Attributes
    ----------
    iterations : int
    support : (box, box, box) array, optional
        Mask that maps are confined to.
    """

    iterations: int
    support: Any = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the records and the weights."""
        return [self.volume.shape, weights_shape(self.volume.radius)]

    def finish_bytes(self, groups: int) -> int:
        """Bytes that the most demanding moment of making maps takes besides the parts."""
        weights = 4 * int(np.prod(self.shapes[1], dtype=np.int64))
        cube = 4 * good_fft_size(2 * self.volume.box) ** 3
        # Grids are joined, and then transformed, while those of other parts wait; equations are half a cube.
        return (3 if len(self.permutations) > 1 else 0) * weights + 4 * cube + 2 * groups * cube

    def insert(self, part, bands, slices, matrices, curvature, images, reach, how=""):
        """Add slices, and their weights once more on the finer grid."""
        super().insert(part, bands, slices, matrices, curvature, images, reach, how)
        # Doubled matrices move the whole sample, along a curved sphere too.
        kernel = self.gridding.table, self.gridding.radius
        insert_weights(part[1], bands[1][0], slices, 2 * matrices, curvature, images, *kernel)

    def join(self, part) -> NormalEquations:
        """The equations of a part; uses it up."""
        box, period = self.volume.box, self.volume.padded
        spectrum = toeplitz_spectrum(join_weights(part.pop(), self.permutations), box, period)
        records = super().join(part)
        return NormalEquations(adjoint_image(records, box, period), spectrum, sample_weights(records, self.volume))

    def within(self, support) -> LeastSquares:
        """The same with maps confined to a mask."""
        return dataclasses.replace(self, support=support)

    def solve(self, joined, fsc=None) -> tuple[Any, list[float]]:
        """Map and residuals; `fsc` makes the prior the reciprocal of each shell's signal-to-noise ratio."""
        band = self.volume.radius * self.volume.box / self.volume.padded
        fractions = self.wiener if fsc is None else np.minimum(1 / signal_to_noise(fsc), LARGEST_PRIOR)
        spectrum, support = joined.spectrum, self.support
        if np.any(fractions):
            spectrum = spectrum.copy()
            add_prior(spectrum, self.volume.box, band, fractions)
        if support is not None:
            support = array_module(spectrum).asarray(support)
        return solve(joined.right, spectrum, band, self.iterations, support)

    def coverage(self, joined) -> Coverage:
        """Coverage by the weights of the part's records."""
        return summarise_coverage(joined.weights)


def plan_inversion(parameters, gridding: Gridding, volume: VolumeGrid, permutations) -> DirectInversion:
    """The inversion that the parameters ask for."""
    wiener = parameters.wiener_constant if parameters.regularisation == "constant" else 0.0
    direct = gridding, volume, permutations, wiener
    if parameters.refine_iterations:
        return LeastSquares(*direct, parameters.refine_iterations)
    return DirectInversion(*direct)
