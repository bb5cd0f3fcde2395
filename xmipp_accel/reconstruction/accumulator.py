"""The streaming heart of a reconstruction: images go in, in any order and number, and maps come out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from xmipp_accel.backend import Device, array_module, to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction.finish import join_sides, make_map
from xmipp_accel.reconstruction.geometry import plan_images, plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.maps import Maps, make_maps
from xmipp_accel.reconstruction.prepare import CTF_MODES, SlicePlan, plan_slices
from xmipp_accel.reconstruction.symmetry import factorise

logger = logging.getLogger(__name__)

LARGEST_BATCH = 1024
SIDEBANDS = {"none": ((0, 0),), "standard": ((1, 1), (-1, -1)), "reversed": ((1, -1), (-1, 1))}


class FourierAccumulator:
    """Sums of inserted images on one device: one array for each half set and, within it, each group.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`: ``"auto"`` is decided by whoever knows the particles.
    device : Device
    box : int
        Edge of the map, px.
    sampling_rate : float
        Of the map, A/px.
    planes : (int, int), optional
        Only these planes of the volume, the end excluded; what falls on others is left out.

    Raises
    ------
    ParameterError
        The parameters do not fit the box.
    """

    def __init__(self, parameters, device: Device, box: int, sampling_rate: float, planes=None):
        if parameters.ctf not in CTF_MODES:
            raise ParameterError(f"ctf: expected one of {', '.join(CTF_MODES)}, found {parameters.ctf!r}")
        self.parameters = parameters
        self.device = device
        self.gridding = plan_gridding(parameters)
        self.volume = plan_volume(parameters, self.gridding, box, sampling_rate)
        self.planes = (0, self.volume.shape[0]) if planes is None else planes
        group = symmetry_matrices(parameters.symmetry)
        # --fast convolves the sums before opposite sides are joined, which moving voxels would not commute with.
        splits = (np.eye(3, dtype=int)[None], group) if self.gridding.spreads_at_the_end else factorise(group)
        self._permutations: np.ndarray = splits[0]
        self._operators: np.ndarray = splits[1]
        self._plans: dict[Any, SlicePlan] = {}
        self._reference: VolumeSpectrum | None = None
        self.groups = max(1, parameters.error_groups)
        self.counts = [0] * ((2 if parameters.halves else 1) * self.groups)
        with device.activate():
            shape = (self.planes[1] - self.planes[0], *self.volume.shape[1:])
            self._sums: Any = [device.xp.zeros(shape, dtype=np.float32) for _ in self.counts]

    def subtract_from_now_on(self, volume):
        """Take the projections of `volume` (box, box, box) from the images that are inserted from now on."""
        frequency = self.volume.radius * self.volume.box / self.volume.padded
        with self.device.activate():
            self._reference = VolumeSpectrum(self.device.asarray(volume, np.float32), frequency)

    def plan(self, group: OpticsGroup | None = None, optics=None, noise=None) -> SlicePlan:
        """How the images of an optics group become slices; without, images of the map's box and pixels.

        The first call for a group fixes its plan: `optics` of one of its particles, and `noise`, see
        :func:`~.prepare.plan_slices`.
        """
        group = group or OpticsGroup("", self.volume.sampling_rate, self.volume.box)
        if group not in self._plans:
            self._plans[group] = plan_slices(self.parameters, self.gridding, self.volume, group, optics, noise)
        return self._plans[group]

    @property
    def sums(self) -> list:
        """Arrays of the layout of :mod:`xmipp_accel.kernels.reference.insert`, on the device."""
        self._check_unfinished()
        return self._sums

    def plane_bytes(self) -> int:
        """Bytes of a plane of all sums."""
        return 16 * len(self.counts) * self.volume.shape[1] * self.volume.shape[2]

    def finish_bytes(self) -> int:
        """Bytes that the most demanding moment of making maps takes besides the sums."""
        voxels = int(np.prod(self.volume.shape[:3], dtype=np.int64))
        return voxels * ((44 if len(self._permutations) > 1 else 16) + (64 if self.parameters.error_groups else 0))

    def batch_size(self, box=None) -> int:
        """How many images of `box` px, the map's by default, one call of :meth:`insert` should get."""
        if self.parameters.batch_size > 0:
            return self.parameters.batch_size
        sizes = box or self.volume.box, self.volume.sampling_rate
        g = plan_images(self.parameters, self.gridding, self.volume, *sizes)
        image = 4 * g.box * (g.box + g.padded) + 16 * g.columns * (g.padded + g.box) + 16 * g.rows * g.columns
        budget = 5e8
        # What is free differs from run to run, and with the batches the order of additions.
        if self.device.kind == "cuda" and not self.parameters.deterministic:
            budget = 0.2 * self.device.free_memory()
        return int(np.clip(budget / image, 1, LARGEST_BATCH))

    def insert(self, images, views, group: OpticsGroup | None = None):
        """Add a batch of images.

        Parameters
        ----------
        images : (n, box, box) array
            On the host or on the device, of one optics group, with finite values.
        views : Views
            Negative weights take images out again; of weight 0 are those that are left out.
        group : OpticsGroup, optional
            With box and sampling rate; by default those of the map.
        """
        plan = self.plan(group, views.optics)
        if images.shape[1:] != (plan.grid.box,) * 2:
            raise ParameterError(f"insert: expected images of {plan.grid.box} px, found shape {images.shape[1:]}")
        diameter = self.parameters.mask_diameter or 0.8 * self.volume.box * self.volume.sampling_rate
        curved = self.parameters.ewald != "none"
        curvature = plan.curvature(views, self.volume) if curved else np.zeros(len(views), np.float32)
        arrays = images, views.shifts, plan.factors(views, diameter), plan.axes(views.matrices), curvature
        with self.device.activate():
            self._insert_fitting(plan, *arrays, self._sets(views))
        sets, signs = self._sets(views), np.sign(views.weights).astype(np.int64)
        self.counts = [count + int(signs[sets == number].sum()) for number, count in enumerate(self.counts)]

    def _sets(self, views):
        """Which of the sums each image goes to."""
        halves, groups = views.halves, views.groups
        if not self.parameters.halves:
            halves = np.ones(len(views), dtype=int)
        elif halves is None or not np.isin(halves, (1, 2)).all():
            raise ParameterError("halves: expected half set 1 or 2 for every image, since half maps are on")
        if self.groups == 1:
            groups = np.zeros(len(views), dtype=int)
        elif groups is None or not np.isin(groups, range(self.groups)).all():
            raise ParameterError(
                f"groups: expected 0 to {self.groups - 1} for every image, since error_groups is on"
            )
        return (np.asarray(halves) - 1) * self.groups + np.asarray(groups)

    def _insert_fitting(self, plan, *arrays):
        """Insert a batch, in parts where the device has no room for all of it."""
        images, shifts, factors, axes, curvature, sets = arrays
        count = len(images)
        images = self.device.asarray(images, np.float32)
        for sideband, bend in SIDEBANDS[self.parameters.ewald]:
            try:
                slices = plan.slices(images, shifts, factors, sideband)
                self._subtract(slices, axes, plan.grid)
            except MemoryError:
                if count < 2 or sideband == -1:
                    raise
                logger.warning(
                    "%s: too little memory for %d images at a time, trying half of them", self.device, count
                )
                for part in (slice(None, count // 2), slice(count // 2, None)):
                    self._insert_fitting(plan, *(array[part] for array in arrays))
                return
            self._insert(slices, axes, bend * curvature, sets, plan.grid)

    def _subtract(self, slices, axes, grid):
        """Take the reference's projections from records: a weight is that of a value with the CTF once more."""
        if self._reference is None:
            return
        xp = array_module(slices)
        ky, kx = np.meshgrid(np.arange(grid.rows) - grid.rows // 2, np.arange(grid.columns), indexing="ij")
        inside = np.flatnonzero(kx**2 + ky**2 <= grid.limit)
        samples = np.stack([kx, ky], axis=-1).reshape(-1, 2)[inside] * (self.volume.box / self.volume.padded)
        inside = xp.asarray(inside)
        for record, steps in zip(slices.reshape(len(slices), -1, 4), axes[:, :2]):
            value = self._reference.sample(xp.asarray((samples @ steps).astype(np.float32)))
            record[inside, 0] -= record[inside, 2] * value.real
            record[inside, 1] -= record[inside, 2] * value.imag

    def _insert(self, slices, axes, curvature, sets, grid):
        matrices = np.ascontiguousarray(np.einsum("nij,gkj->ngik", axes, self._operators))
        reach = self.gridding.reach + (grid.columns if self.gridding.as_xmipp else self.volume.radius)
        for number, sums in enumerate(self._sums):
            members = np.flatnonzero(sets == number)
            self.gridding.insert(sums, self.planes[0], slices, matrices, curvature, members, reach)

    def export(self):
        """Sums and counts on the host, for :meth:`merge` elsewhere: (list of arrays, list of int), one a set."""
        return [to_host(sums) for sums in self.sums], list(self.counts)

    def merge(self, sums, counts, planes=None):
        """Add what another accumulator of equal parameters, box and pixel size holds.

        Parameters
        ----------
        sums, counts
            As :meth:`export` returns them; the sums may lie on any device.
        planes : (int, int), optional
            Those of this accumulator's sums that they belong to; all by default.

        Raises
        ------
        ParameterError
            The sums have another number or shape.
        """
        self._check_unfinished()
        part = slice(*planes) if planes else slice(None)
        found, expected = [other.shape for other in sums], [own[part].shape for own in self._sums]
        if found != expected:
            raise ParameterError(f"merge: expected sums of shapes {expected}, found {found}")
        with self.device.activate():
            for own, other in zip(self._sums, sums):
                own[part] += self.device.asarray(other)
        self.counts = [own + other for own, other in zip(self.counts, counts)]

    def _check_unfinished(self):
        if self._sums is None:
            raise ProcessingError("reconstruction: the sums are used up, this accumulator is finished")

    def preview(self):
        """Map (box, box, box) of all sums as they are, on the device; they are not used up."""
        with self.device.activate():
            total = sum(self.sums[1:], start=self.sums[0].copy())
            joined = join_sides(total, self.gridding, self._permutations)
            return make_map(joined, self.volume, self.gridding)

    def finish(self, mask=None) -> Maps:
        """Maps of everything inserted so far; the sums are used up.

        Parameters
        ----------
        mask : (box, box, box) array, optional
            For the comparison of half maps, in place of a sphere.

        Raises
        ------
        ProcessingError
            No image, or none in one of the halves or groups, was inserted.
        """
        self._check_unfinished()
        if min(self.counts) <= 0:
            which = "half" if self.groups == 1 else "group"
            raise ProcessingError(f"reconstruction: expected images in every {which}, found {self.counts}")
        sums, self._sums = self._sums, None
        with self.device.activate():
            sums = [join_sides(part, self.gridding, self._permutations) for part in sums]
            parts, counts = (
                [values[i : i + self.groups] for i in range(0, len(values), self.groups)]
                for values in (sums, self.counts)
            )
            del sums
            return make_maps(parts, counts, self.volume, self.gridding, self.parameters, mask)
