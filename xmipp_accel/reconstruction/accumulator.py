"""The streaming heart of a reconstruction: images go in, in any order and number, and maps come out."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np

from xmipp_accel.backend import Device, to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.kernels.reference.insert import FACTORS, OFFSET, WEIGHT
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction.finish import join_sides, make_map
from xmipp_accel.reconstruction.geometry import plan_images, plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.prepare import CTF_MODES, SlicePlan
from xmipp_accel.reconstruction.symmetry import factorise

logger = logging.getLogger(__name__)

LARGEST_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Maps:
    """Maps (box, box, box) float32 on the accumulator's device; the halves are None without half maps."""

    full: Any
    half1: Any
    half2: Any


class FourierAccumulator:
    """Sums of inserted images on one device; one set of sums for each half.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`: ``"auto"`` is decided by whoever knows the particles.
    device : Device
    box : int
        Edge of the map, px.
    sampling_rate : float
        Of the map, A/px.

    Raises
    ------
    ParameterError
        The parameters do not fit the box.
    ProcessingError
        The device has too little memory for the sums.
    """

    def __init__(self, parameters, device: Device, box: int, sampling_rate: float):
        if parameters.ctf not in CTF_MODES:
            raise ParameterError(f"ctf: expected one of {', '.join(CTF_MODES)}, found {parameters.ctf!r}")
        self.parameters = parameters
        self.device = device
        self.gridding = plan_gridding(parameters)
        self.volume = plan_volume(parameters, self.gridding, box, sampling_rate)
        group = symmetry_matrices(parameters.symmetry)
        # --fast convolves the sums before opposite sides are joined, which moving voxels would not commute with.
        splits = (np.eye(3, dtype=int)[None], group) if self.gridding.spreads_at_the_end else factorise(group)
        self._permutations: np.ndarray = splits[0]
        self._operators: np.ndarray = splits[1]
        self._plans: dict[Any, SlicePlan] = {}
        self._check_memory()
        self.counts = [0, 0] if parameters.halves else [0]
        with device.activate():
            self._sums: Any = [self._zeros() for _ in self.counts]

    def _zeros(self):
        return self.device.xp.zeros(self.volume.shape, dtype=np.float32)

    def _check_memory(self):
        if self.device.kind == "cpu":
            return  # what the page cache would give back is not known
        needed, free = self.footprint(), self.device.free_memory()
        if needed > free:
            raise ProcessingError(
                f"{self.device}: expected {needed / 1e9:.1f} GB of free memory for a box of "
                f"{self.volume.box} px, found {free / 1e9:.1f} GB (padding and max_resolution change it)"
            )

    def footprint(self) -> int:
        """Bytes that the sums and the most demanding moment of finishing take."""
        voxels = int(np.prod(self.volume.shape[:3], dtype=np.int64))
        sums = 16 * (2 if self.parameters.halves else 1) * voxels
        return sums + voxels * (44 if len(self._permutations) > 1 else 16)

    def plan(self, box=None, sampling_rate=None) -> SlicePlan:
        """How images of `box` px at `sampling_rate` A/px, those of the map by default, become slices."""
        key = box or self.volume.box, sampling_rate or self.volume.sampling_rate
        if key not in self._plans:
            grid = plan_images(self.parameters, self.gridding, self.volume, *key)
            self._plans[key] = SlicePlan(grid, self.gridding, CTF_MODES[self.parameters.ctf])
        return self._plans[key]

    def batch_size(self) -> int:
        """How many images one call of :meth:`insert` should get."""
        if self.parameters.batch_size > 0:
            return self.parameters.batch_size
        g = self.plan().grid
        image = 4 * g.box * (g.box + g.padded) + 16 * g.columns * (g.padded + g.box) + 16 * g.rows * g.columns
        budget = 0.2 * self.device.free_memory() if self.device.kind == "cuda" else 5e8
        return int(np.clip(budget / image, 1, LARGEST_BATCH))

    def insert(
        self, images, matrices, shifts, *, weights=None, optics=None, flips=None, halves=None, sampling_rate=None
    ):
        """Add a batch of images.

        Parameters
        ----------
        images : (n, box, box) array
            On the host or on the device.
        matrices : (n, 3, 3) array_like
            Of :func:`xmipp_accel.numerics.rotations.euler_to_matrix`.
        shifts : (n, 2) array_like
            To apply, (y, x) in px.
        weights : (n,) array_like, optional
        optics : ParticleOptics, optional
            Needed unless the parameter `ctf` is ``"none"``.
        flips : (n,) bool array_like, optional
            True where the image is to be mirrored in x before its shift and angles apply, which is how Scipion
            reads Xmipp's column ``flip``.
        halves : (n,) array_like of 1 and 2, optional
            Needed with half maps.
        sampling_rate : float, optional
            Of the images, A/px; the map's by default.
        """
        count = len(images)
        plan = self.plan(images.shape[1], sampling_rate)
        matrices = np.array(matrices, dtype=np.float64).reshape(count, 3, 3)
        shifts = np.array(shifts, dtype=np.float64).reshape(count, 2)
        if flips is not None:
            # The image as it is shows the same object from the other side.
            flips = np.asarray(flips, dtype=bool)
            matrices[flips] *= np.array([-1.0, 1.0, -1.0])[:, None]
            shifts[flips, 1] *= -1
        if len(self._sums) == 1:
            halves = np.ones(count, dtype=int)
        elif halves is None or not np.isin(halves, (1, 2)).all():
            raise ParameterError("halves: expected half set 1 or 2 for every image, since half maps are on")
        matrices[:, :2] *= plan.grid.scale
        factors = self._factors(plan, optics, weights, count)
        with self.device.activate():
            self._insert_fitting(plan, images, shifts, factors, matrices, np.asarray(halves))

    def _factors(self, plan, optics, weights, count):
        factors = np.zeros((count, FACTORS), np.float32)
        factors[:, WEIGHT] = 1.0 if weights is None else weights
        if plan.mode:
            if optics is None:
                raise ParameterError("ctf: expected the optics of every image, found none")
            phase = optics.phase_coefficients(count, plan.grid.step)
            factors[:, :3], factors[:, 3], factors[:, OFFSET] = phase[:, :3], np.sqrt(phase[:, 3]), phase[:, 4]
        return factors

    def _insert_fitting(self, plan, *arrays):
        """Insert a batch, in parts where the device has no room for all of it."""
        images, shifts, factors, matrices, halves = arrays
        count = len(images)
        try:
            slices = plan.slices(self.device.asarray(images, np.float32), shifts, factors)
        except MemoryError:
            if count < 2:
                raise
            logger.warning(
                "%s: too little memory for %d images at a time, trying half of them", self.device, count
            )
            for part in (slice(None, count // 2), slice(count // 2, None)):
                self._insert_fitting(plan, *(array[part] for array in arrays))
            return
        matrices = np.ascontiguousarray(np.einsum("nij,gkj->ngik", matrices, self._operators))
        curvature = np.zeros(count, np.float32)
        reach = (plan.grid.columns if self.gridding.as_xmipp else self.volume.radius) + self._beyond
        for number, sums in enumerate(self._sums):
            members = np.flatnonzero(halves == number + 1)
            self.gridding.insert(sums, 0, slices, matrices, curvature, members, reach)
            self.counts[number] += len(members)

    @property
    def _beyond(self):
        return 0.0 if self.gridding.kernel == "nearest" else self.gridding.reach

    def export(self):
        """Sums and counts on the host, for :meth:`merge` elsewhere: (list of arrays, list of int), one a half."""
        self._check_unfinished()
        return [to_host(sums).copy() for sums in self._sums], list(self.counts)

    def merge(self, sums, counts):
        """Add what another accumulator of equal parameters, box and pixel size exported.

        Raises
        ------
        ParameterError
            The sums have another number or shape.
        """
        self._check_unfinished()
        found, expected = [part.shape for part in sums], [part.shape for part in self._sums]
        if found != expected:
            raise ParameterError(f"merge: expected sums of shapes {expected}, found {found}")
        with self.device.activate():
            for own, other in zip(self._sums, sums):
                own += self.device.asarray(other)
        self.counts = [own + other for own, other in zip(self.counts, counts)]

    def _check_unfinished(self):
        if self._sums is None:
            raise ProcessingError("reconstruction: the sums are used up, this accumulator is finished")

    def finish(self) -> Maps:
        """Maps of everything inserted so far; the sums are used up.

        Raises
        ------
        ProcessingError
            No image, or none in one of the halves, was inserted.
        """
        self._check_unfinished()
        if min(self.counts) == 0:
            raise ProcessingError(f"reconstruction: expected images in every half, found {self.counts}")
        sums, self._sums = self._sums, None
        with self.device.activate():
            sums = [join_sides(part, self.gridding, self._permutations) for part in sums]
            maps = [self._map(part) for part in sums]
            if len(sums) == 1:
                return Maps(maps[0], None, None)
            sums[0] += sums.pop()
            return Maps(self._map(sums[0]), *maps)

    def _map(self, sums):
        return make_map(sums, self.volume, self.gridding, self.parameters.wiener)
