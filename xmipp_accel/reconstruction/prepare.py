"""From images to slices: padding, transform, shift, CTF and weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, fft_module, from_host, on_all_cores
from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.geometry import ImageGrid
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.shift import shift_bspline

CPU_CHUNK = 8  # images whose transforms stay in a core's cache
CTF_MODES = {"none": 0, "weight": 1, "phase_flipped": 2, "premultiplied": 3}


@dataclasses.dataclass(frozen=True)
class SlicePlan:
    """What the slices of images of one optics group have in common.

    Attributes
    ----------
    grid : ImageGrid
    gridding : Gridding
    mode : int
        Of `CTF_MODES`.
    table : (rows, columns, 3) float32 array, optional
        Of aberrations and weights, on the device; see :mod:`xmipp_accel.kernels.reference.insert`.
    """

    grid: ImageGrid
    gridding: Gridding
    mode: int
    table: Any = None

    def slices(self, images, shifts, factors, sideband=0):
        """Records of images.

        Parameters
        ----------
        images : (n, box, box) float32 array
        shifts : (n, 2) float64 array
            To apply, (y, x) in px.
        factors : (n, 10) float32 array
            On the host.
        sideband : {0, 1, -1}

        Returns
        -------
        (n, rows, columns, 4) float32 array on the same device
        """
        xp = array_module(images)
        if self.gridding.as_xmipp:
            images, shifts = shift_bspline(images, shifts), np.zeros_like(shifts)
        if xp is not np:
            return self._slices(images, shifts, factors, sideband)
        slices = np.empty((len(images), self.grid.rows, self.grid.columns, 4), np.float32)

        def fill(first):
            part = slice(first, first + CPU_CHUNK)
            slices[part] = self._slices(images[part], shifts[part], factors[part], sideband)

        on_all_cores(fill, range(0, len(images), CPU_CHUNK))
        return slices

    def _slices(self, images, shifts, factors, sideband):
        grid, xp, fft = self.grid, array_module(images), fft_module(images, workers=1)
        # The zero padding is transformed only where it must be.
        half = xp.ascontiguousarray(fft.rfft(images, n=grid.padded, axis=2)[:, :, : grid.columns])
        transforms = fft.fft(half, n=grid.padded, axis=1).astype(xp.complex64, copy=False)
        offset = 2j * np.pi * (grid.box // 2 - shifts) / grid.padded
        ramp_y = grid.gain * np.exp(offset[:, :1] * (np.arange(grid.rows) - grid.rows // 2))
        ramp_x = np.exp(offset[:, 1:] * np.arange(grid.columns))
        ramps = tuple(from_host(ramp.astype(np.complex64), xp) for ramp in (ramp_y, ramp_x))
        table = xp.zeros((0, 0, 3), xp.float32) if self.table is None else self.table
        inside_only = not self.gridding.as_xmipp
        # A voxel that takes one sample only cannot take one twice.
        once = inside_only and self.gridding.kernel != "nearest"
        choices = grid.rows, grid.limit, self.mode, sideband, inside_only, once
        arguments = [transforms, *ramps, from_host(factors, xp), table, *choices]
        return insert.prepare_slices(*arguments)
