"""How the samples of images become voxels of a Fourier volume."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.blob import blob_apodisation, blob_table
from xmipp_accel.reconstruction.conjugate import BLOB


@dataclasses.dataclass(frozen=True)
class Gridding:
    """A way of gridding.

    Attributes
    ----------
    kernel : {"trilinear", "blob", "nearest"}
    as_xmipp : bool
        With the peculiarities of Xmipp's programs: shifts by splines, samples of ``kx = 0`` that count twice,
        weights of samples that are not there, and a second correction of the map's apodisation.
    radius, alpha : float
    order : int
        Of the blob.
    how : str
        The only insertion on a GPU, see :mod:`xmipp_accel.reconstruction.insert`; empty where others will do.
    """

    kernel: str
    as_xmipp: bool
    radius: float
    order: int
    alpha: float
    how: str

    @property
    def reach(self) -> float:
        """How far beyond the last sample the volume is filled, voxels."""
        return {"trilinear": 1.0, "blob": self.radius, "nearest": 0.0}[self.kernel]

    @property
    def spreads_at_the_end(self) -> bool:
        """Whether the sums are convolved with the blob once, as ``--fast`` does."""
        return self.as_xmipp and self.kernel == "nearest"

    @functools.cached_property
    def table(self):
        """Blob by squared distance, see :func:`~.blob.blob_table`."""
        return blob_table(self.radius, self.order, self.alpha)

    def insert(self, sums, first, slices, matrices, curvature, images, reach, how=""):
        """Add slices to sums; see :mod:`xmipp_accel.kernels.reference.insert`.

        On a GPU `how` says by which kernel, where :attr:`how` does not; empty for the one that mostly is fastest.
        """
        volume = sums, first, slices, matrices
        chosen = self.how or how
        how = {"how": chosen} if chosen else {}
        if self.kernel == "trilinear":
            insert.insert_trilinear(*volume, curvature, images, **how)
        elif self.kernel == "blob":
            insert.insert_blob(*volume, curvature, images, self.table, self.radius, reach, **how)
        else:
            insert.insert_nearest(*volume, images, reach)

    def apodisation(self, r, padded):
        """By how much a map is damped at distances `r` (px) from its centre: along each axis, or a blob's."""
        if self.is_separable:
            return np.sinc(np.asarray(r) / padded) ** (2 if self.kernel == "trilinear" else 1)
        return blob_apodisation(r, padded, self.radius, self.order, self.alpha)

    @property
    def is_separable(self) -> bool:
        """Whether the apodisation is a product over the axes."""
        return self.kernel == "trilinear" or (self.kernel == "nearest" and not self.as_xmipp)


def plan_gridding(parameters) -> Gridding:
    """The gridding that the parameters ask for."""
    how = insert.REPEATABLE if parameters.deterministic else ""
    if parameters.refine_iterations:
        return Gridding("blob", False, *BLOB, how)
    kernels = {"xmipp": "blob", "xmipp_fast": "nearest"}
    return Gridding(
        kernel=kernels.get(parameters.method, parameters.method),
        as_xmipp=parameters.method in kernels,
        radius=parameters.blob_radius,
        order=parameters.blob_order,
        alpha=parameters.blob_alpha,
        how=how,
    )
