"""The streaming heart of a reconstruction: images go in, in any order and number, and maps come out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from xmipp_accel.backend import Device, array_module, from_host_at_once, to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction.fastest import plan_insertion
from xmipp_accel.reconstruction.finish import join_sides, make_map
from xmipp_accel.reconstruction.geometry import plan_images, plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.inversion import plan_inversion
from xmipp_accel.reconstruction.maps import Maps, make_maps
from xmipp_accel.reconstruction.placement import Placement, place
from xmipp_accel.reconstruction.prepare import CTF_MODES, Room, SlicePlan, plan_slices
from xmipp_accel.reconstruction.symmetry import factorise

logger = logging.getLogger(__name__)

# Of images: page-locking memory for larger batches takes longer than they save.
LARGEST_BATCH, LARGEST_BYTES = 2048, 1 << 27
SIDEBANDS = {"none": ((0, 0),), "standard": ((1, 1), (-1, -1)), "reversed": ((1, -1), (-1, 1))}


class FourierAccumulator:
    """Sums of inserted images on one device: a part for each half set and, within it, each group.

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

    Attributes
    ----------
    ways : FastestInsertion or UsualInsertion
        Told how many images to expect, it tries ways of insertion on some of them.

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
        self._inversion = plan_inversion(parameters, self.gridding, self.volume, self._permutations)
        self._bands = self._inversion.bands(self.planes)
        self._plans: dict[Any, SlicePlan] = {}
        self._room = Room()
        self._reference: VolumeSpectrum | None = None
        self.groups = max(1, parameters.error_groups)
        self.counts = [0] * ((2 if parameters.halves else 1) * self.groups)
        problem = self.volume, self.planes, len(self._operators)
        self.ways = plan_insertion(parameters, device, self.gridding, *problem)
        with device.activate():
            self._parts: Any = [self._new_part() for _ in self.counts]

    def _new_part(self):
        part = []
        for (first, last), shape in zip(self._bands, self._inversion.shapes):
            # Not zeros(): only what NumPy allocates as empty gets large pages, of which far fewer are looked up.
            part.append(self.device.xp.empty((last - first, *shape[1:]), dtype=np.float32))
            part[-1].fill(0)
        return part

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
        """Arrays of all parts, on the device, of the layout of :mod:`xmipp_accel.kernels.reference.insert`.

        For least squares each is followed by one of :mod:`xmipp_accel.kernels.reference.weights`.
        """
        self._check_unfinished()
        return [array for part in self._parts for array in part]

    def plane_bytes(self) -> int:
        """Bytes of a plane of all sums, with what goes with it."""
        part = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in self._inversion.shapes)
        return -(-len(self.counts) * part // self.volume.shape[0])

    def finish_bytes(self) -> int:
        """Bytes that the most demanding moment of making maps takes besides the sums."""
        return self._inversion.finish_bytes(self.groups)

    def batch_size(self, box=None) -> int:
        """How many images one call of :meth:`insert` should get.

        Parameters
        ----------
        box : int, optional
            Of the images, px; the map's by default.
        """
        if self.parameters.batch_size > 0:
            return self.parameters.batch_size
        sizes = box or self.volume.box, self.volume.sampling_rate
        g = plan_images(self.parameters, self.gridding, self.volume, *sizes)
        # Itself, padded, transformed with as much to work in, and cut to records.
        image = 4 * g.box**2 + 4 * g.padded**2 + 16 * g.padded * (g.padded // 2 + 1) + 16 * g.rows * g.columns
        budget = 5e8
        # What is free differs from run to run, and with the batches the order of additions.
        if self.device.kind == "cuda" and not self.parameters.deterministic:
            budget = 0.2 * self.device.free_memory()
        return int(max(1, min(budget / image, LARGEST_BATCH, LARGEST_BYTES / (4 * g.box**2))))

    def place(self, views, group: OpticsGroup | None = None) -> Placement:
        """Where images of an optics group, by default of the map's box and pixels, go; see :class:`Placement`.

        It holds for all accumulators of equal parameters, box and pixel size.
        """
        return place(self.plan(group, views.optics), views, self.volume, self.parameters)

    def insert(self, images, views, group: OpticsGroup | None = None):
        """Add a batch of images.

        Parameters
        ----------
        images : (n, box, box) array
            On the host or on the device, of one optics group, with finite values.
        views : Views or Placement
            Negative weights take images out again; of weight 0 are those that are left out.
        group : OpticsGroup, optional
            With box and sampling rate; by default those of the map.
        """
        placement = views if isinstance(views, Placement) else self.place(views, group)
        plan = self.plan(group)
        expected = len(placement), plan.grid.box, plan.grid.box
        if images.shape != expected:
            raise ParameterError(f"insert: expected images of shape {expected}, found {images.shape}")
        with self.device.activate():
            self._insert_fitting(plan, images, placement)
        for number, sign in zip(placement.parts.tolist(), placement.signs.tolist()):
            self.counts[number] += sign

    def _insert_fitting(self, plan, images, placement):
        """Insert a batch, in parts where the device has no room for all of it."""
        count = len(images)
        if array_module(images) is not self.device.xp or images.dtype != np.float32:
            images = self.device.asarray(images, np.float32)  # which waits for what the device does
        factors, matrices, curvature, order, edges = self._geometry(placement, array_module(images))
        for sideband, bend in SIDEBANDS[self.parameters.ewald]:
            try:
                slices = plan.slices(images, factors, sideband, self._room)
                self._subtract(slices, placement.axes, plan.grid)
            except MemoryError:
                if count < 2 or sideband == -1:
                    raise
                logger.warning(
                    "%s: too little memory for %d images at a time, trying half of them", self.device, count
                )
                for part in (slice(None, count // 2), slice(count // 2, None)):
                    self._insert_fitting(plan, images[part], placement.take(part))
                return
            self._insert(slices, matrices, bend * curvature if bend else curvature, order, edges, plan.grid)

    def _geometry(self, placement, xp):
        """Factors, matrices, curvature and order of images on the device, and the order's edges between parts."""
        matrices = np.ascontiguousarray(np.einsum("nij,gkj->ngik", placement.axes, self._operators))
        order, edges = placement.order(len(self._parts))
        if xp is not np:
            matrices, order = matrices.astype(np.float32), order.astype(np.int32)
        return *from_host_at_once([placement.factors, matrices, placement.curvature, order], xp), edges

    def _subtract(self, slices, axes, grid):
        """Take the reference's projections from records: a weight is that of a value with the CTF once more."""
        if self._reference is None:
            return
        xp = array_module(slices)
        ky, kx = np.meshgrid(np.arange(grid.rows) - grid.rows // 2, np.arange(grid.columns), indexing="ij")
        # The spectrum ends where the samples do, not at the corners of the slices.
        inside = ky**2 + kx**2 <= grid.limit
        samples = np.stack([kx, ky], axis=-1) * inside[..., None] * (self.volume.box / self.volume.padded)
        inside = xp.asarray(inside)
        for record, steps in zip(slices, axes[:, :2]):
            value = self._reference.sample(xp.asarray((samples @ steps).astype(np.float32))) * inside
            record[..., 0] -= record[..., 2] * value.real
            record[..., 1] -= record[..., 2] * value.imag

    def _insert(self, slices, matrices, curvature, order, edges, grid):
        reach = self.gridding.reach + (grid.columns if self.gridding.as_xmipp else self.volume.radius)
        for part, first, last in zip(self._parts, edges, edges[1:]):
            with self.ways.choose(grid, last - first) as how:
                arguments = slices, matrices, curvature, order[first:last], reach, how
                self._inversion.insert(part, self._bands, *arguments)

    def export(self):
        """Sums and counts on the host, for :meth:`merge` elsewhere: (list of arrays, list of int)."""
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
        into = self.sums
        if planes:
            bands = self._inversion.bands(planes) * len(self._parts)
            into = [own[first:last] for own, (first, last) in zip(into, bands)]
        found, expected = [other.shape for other in sums], [own.shape for own in into]
        if found != expected:
            raise ParameterError(f"merge: expected sums of shapes {expected}, found {found}")
        with self.device.activate():
            for own, other in zip(into, sums):
                own += self.device.asarray(other)
        self.counts = [own + other for own, other in zip(self.counts, counts)]

    def _check_unfinished(self):
        if self._parts is None:
            raise ProcessingError("reconstruction: the sums are used up, this accumulator is finished")

    def preview(self):
        """Map (box, box, box) of all sums as they are, by division, on the device; they are not used up."""
        self._check_unfinished()
        with self.device.activate():
            total = sum((part[0] for part in self._parts[1:]), start=self._parts[0][0].copy())
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
        sums, self._parts = self._parts, None
        with self.device.activate():
            joined = [self._inversion.join(sums.pop(0)) for _ in self.counts]
            parts, counts = (
                [values[i : i + self.groups] for i in range(0, len(values), self.groups)]
                for values in (joined, self.counts)
            )
            del joined
            return make_maps(parts, counts, self._inversion, self.parameters, mask)
