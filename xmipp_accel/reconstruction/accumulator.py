"""The streaming heart of a reconstruction: images go in, in any order and number, and maps come out."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from xmipp_accel.backend import Device, fft_module, to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.blob import blob_table
from xmipp_accel.reconstruction.finish import join_sides
from xmipp_accel.reconstruction.geometry import plan_geometry
from xmipp_accel.reconstruction.maps import Maps, make_maps
from xmipp_accel.reconstruction.optics import CTF_MODES
from xmipp_accel.reconstruction.shift import shift_bspline
from xmipp_accel.reconstruction.symmetry import factorise

logger = logging.getLogger(__name__)

LARGEST_BATCH = 1024


class FourierAccumulator:
    """Sums of inserted images on one device: one array for each half set and, within it, each group.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`: ``"auto"`` is decided by whoever knows the particles.
    device : Device
    box : int
        Edge of the images, px.
    sampling_rate : float
        A/px.

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
        self.geometry = plan_geometry(parameters, box, sampling_rate)
        group = symmetry_matrices(parameters.symmetry)
        # --fast convolves the sums before opposite sides are joined, which moving voxels would not commute with.
        splits = factorise(group) if parameters.method != "xmipp_fast" else (np.eye(3, dtype=int)[None], group)
        self._permutations: np.ndarray = splits[0]
        self._operators: np.ndarray = splits[1]
        self._table = blob_table(parameters.blob_radius, parameters.blob_order, parameters.blob_alpha)
        self._check_memory()
        self.groups = max(1, parameters.error_groups)
        self.counts = [0] * ((2 if parameters.halves else 1) * self.groups)
        with device.activate():
            self._sums: Any = [self._zeros() for _ in self.counts]

    def _zeros(self):
        return self.device.xp.zeros(self.geometry.accumulator_shape, dtype=np.float32)

    def _check_memory(self):
        if self.device.kind == "cpu":
            return  # what the page cache would give back is not known
        needed, free = self.footprint(), self.device.free_memory()
        if needed > free:
            raise ProcessingError(
                f"{self.device}: expected {needed / 1e9:.1f} GB of free memory for a box of "
                f"{self.geometry.box} px, found {free / 1e9:.1f} GB (padding and max_resolution change it)"
            )

    def footprint(self) -> int:
        """Bytes that the sums and the most demanding moment of finishing take."""
        voxels = int(np.prod(self.geometry.accumulator_shape[:3], dtype=np.int64))
        sums = 16 * (2 if self.parameters.halves else 1) * voxels * max(1, self.parameters.error_groups)
        totals = 64 * voxels if self.parameters.error_groups else 0
        return sums + totals + voxels * (44 if len(self._permutations) > 1 else 16)

    def batch_size(self) -> int:
        """How many images one call of :meth:`insert` should get."""
        if self.parameters.batch_size > 0:
            return self.parameters.batch_size
        g = self.geometry
        image = 4 * g.box * (g.box + g.padded) + 16 * g.columns * (g.padded + g.box) + 16 * g.rows * g.columns
        budget = 0.2 * self.device.free_memory() if self.device.kind == "cuda" else 5e8
        return int(np.clip(budget / image, 1, LARGEST_BATCH))

    def insert(self, images, matrices, shifts, *, weights=None, optics=None, flips=None, halves=None, groups=None):
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
        groups : (n,) array_like of 0 to error_groups - 1, optional
            Needed with the parameter `error_groups`.
        """
        count = len(images)
        matrices = np.array(matrices, dtype=np.float64).reshape(count, 3, 3)
        shifts = np.array(shifts, dtype=np.float64).reshape(count, 2)
        if flips is not None:
            # The image as it is shows the same object from the other side.
            flips = np.asarray(flips, dtype=bool)
            matrices[flips] *= np.array([-1.0, 1.0, -1.0])[:, None]
            shifts[flips, 1] *= -1
        weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, dtype=np.float32)
        sets = self._sets(count, halves, groups)
        arrays = images, matrices, shifts, weights, self._coefficients(optics, count), sets
        with self.device.activate():
            self._insert_fitting(*arrays)

    def _sets(self, count, halves, groups):
        """Which of the sums each image goes to."""
        if not self.parameters.halves:
            halves = np.ones(count, dtype=int)
        elif halves is None or not np.isin(halves, (1, 2)).all():
            raise ParameterError("halves: expected half set 1 or 2 for every image, since half maps are on")
        if self.groups == 1:
            groups = np.zeros(count, dtype=int)
        elif groups is None or not np.isin(groups, range(self.groups)).all():
            raise ParameterError(
                f"groups: expected 0 to {self.groups - 1} for every image, since error_groups is on"
            )
        return (np.asarray(halves) - 1) * self.groups + np.asarray(groups)

    def _coefficients(self, optics, count):
        if self.parameters.ctf == "none":
            return np.zeros((count, 5), np.float32)
        if optics is None:
            raise ParameterError("ctf: expected the optics of every image, found none")
        return optics.phase_coefficients(count, 1 / (self.geometry.padded * self.geometry.sampling_rate))

    def _insert_fitting(self, *arrays):
        """Insert a batch, in parts where the device has no room for all of it."""
        images, matrices, shifts, weights, coefficients, sets = arrays
        count = len(images)
        try:
            slices = self._slices(self.device.asarray(images, np.float32), shifts, weights, coefficients)
        except MemoryError:
            if count < 2:
                raise
            logger.warning(
                "%s: too little memory for %d images at a time, trying half of them", self.device, count
            )
            for part in (slice(None, count // 2), slice(count // 2, None)):
                self._insert_fitting(*(array[part] for array in arrays))
            return
        matrices = np.ascontiguousarray(np.einsum("nij,gkj->ngik", matrices, self._operators))
        for number, sums in enumerate(self._sums):
            members = np.flatnonzero(sets == number)
            self._insert(sums, slices, matrices, members)
            self.counts[number] += len(members)

    def _slices(self, images, shifts, weights, coefficients):
        """Transform padded images and prepare their records."""
        g, xp, fft = self.geometry, self.device.xp, fft_module(images)
        exact = self.parameters.method == "direct"
        if not exact:
            images, shifts = shift_bspline(images, shifts), np.zeros_like(shifts)
        # The zero padding is transformed only where it must be.
        half = xp.ascontiguousarray(fft.rfft(images, n=g.padded, axis=2)[:, :, : g.columns])
        transforms = fft.fft(half, n=g.padded, axis=1).astype(xp.complex64, copy=False)
        offset = 2j * np.pi * (g.box // 2 - shifts) / g.padded
        ramp_y = np.exp(offset[:, :1] * (np.arange(g.rows) - g.rows // 2)).astype(np.complex64)
        ramp_x = np.exp(offset[:, 1:] * np.arange(g.columns)).astype(np.complex64)
        ramp_y, ramp_x, coefficients, weights = map(xp.asarray, (ramp_y, ramp_x, coefficients, weights))
        mode = CTF_MODES[self.parameters.ctf]
        return insert.prepare_slices(
            transforms, ramp_y, ramp_x, coefficients, weights, g.rows, g.limit, mode, not exact
        )

    def _insert(self, sums, slices, matrices, members):
        if self.parameters.method == "direct":
            insert.insert_trilinear(sums, slices, matrices, members)
        elif self.parameters.method == "xmipp":
            insert.insert_blob(sums, slices, matrices, members, self._table, self.parameters.blob_radius)
        else:
            insert.insert_nearest(sums, slices, matrices, members)

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
        if min(self.counts) == 0:
            which = "half" if self.groups == 1 else "group"
            raise ProcessingError(f"reconstruction: expected images in every {which}, found {self.counts}")
        sums, self._sums = self._sums, None
        with self.device.activate():
            sums = [join_sides(part, self.parameters, self._permutations) for part in sums]
            parts, counts = (
                [values[i : i + self.groups] for i in range(0, len(values), self.groups)]
                for values in (sums, self.counts)
            )
            del sums
            return make_maps(parts, counts, self.geometry, self.parameters, mask)
