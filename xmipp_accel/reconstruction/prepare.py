"""From images to slices: padding, transform, shift, CTF and weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, fft_module, from_host, on_all_cores, to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.kernels.reference.insert import DECAY, FACTORS, OFFSET, OVERLAP, SHIFT, WEIGHT
from xmipp_accel.numerics.aberrations import even_phase, odd_phase, volume_axes
from xmipp_accel.numerics.ctf import electron_wavelength
from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.geometry import ImageGrid, plan_images
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.shift import shift_bspline

CPU_CHUNK = 8  # images whose transforms stay in a core's cache
CTF_MODES = {"none": 0, "weight": 1, "phase_flipped": 2, "premultiplied": 3}


class Room:
    """Memory on the host that grows with what is asked for: pages new to a process cost as much as a copy."""

    def __init__(self):
        self._memory = np.empty(0, np.float32)

    def array(self, shape):
        """Array of that shape, with whatever values; the one of the last call is then no longer to be used."""
        size = int(np.prod(shape, dtype=np.int64))
        if self._memory.size < size:
            self._memory = np.empty(size, np.float32)
        return self._memory[:size].reshape(shape)


@dataclasses.dataclass(frozen=True)
class SlicePlan:
    """What the slices of images of one optics group have in common.

    Attributes
    ----------
    grid : ImageGrid
    gridding : Gridding
    mode : int
        Of `CTF_MODES`.
    magnification : (2, 2) float64 array
        Takes frequencies of the image to those of the specimen.
    table : (rows, columns, 3) float32 array, optional
        Of aberrations and weights, on the host; see :mod:`xmipp_accel.kernels.reference.insert`.
    """

    grid: ImageGrid
    gridding: Gridding
    mode: int
    magnification: np.ndarray
    table: Any = None

    def axes(self, matrices) -> np.ndarray:
        """Steps of samples and viewing direction in the volume, (n, 3, 3), of rotations (n, 3, 3)."""
        return volume_axes(matrices, self.magnification, self.grid.scale)

    def factors(self, views, particle_diameter: float) -> np.ndarray:
        """Factors (n, 12) float32 of :func:`xmipp_accel.kernels.reference.insert.prepare_slices`.

        Parameters
        ----------
        views : Views
        particle_diameter : float
            A, which tells how far apart the two Ewald spheres are the same.
        """
        factors = np.zeros((len(views), FACTORS), np.float32)
        factors[:, WEIGHT] = views.weights
        factors[:, DECAY] = 0.25 * views.decays * self.grid.step**2
        factors[:, SHIFT] = views.shifts
        if self.mode:
            if views.optics is None:
                raise ParameterError("ctf: expected the optics of every image, found none")
            phase = views.optics.phase_coefficients(len(views), self.grid.step, self.magnification)
            factors[:, : OFFSET + 1] = phase
            wavelength = electron_wavelength(views.optics.voltage)
            factors[:, OVERLAP] = wavelength * particle_diameter * self.grid.step**2
        return factors

    def curvature(self, views, volume) -> np.ndarray:
        """Voxels along the viewing direction for each squared sample, (n,) float32, of the Ewald sphere.

        The sphere of radius ``1 / lambda`` leaves the plane by ``lambda k^2 / 2`` (DeRosier, Ultramicroscopy 81
        (2000), 83).
        """
        wavelength = np.broadcast_to(electron_wavelength(views.optics.voltage), len(views))
        voxels = volume.padded * volume.sampling_rate
        return (0.5 * wavelength * self.grid.step**2 * voxels).astype(np.float32)

    def slices(self, images, factors, sideband=0, room=None):
        """Records of images.

        Parameters
        ----------
        images : (n, box, box) float32 array
        factors : (n, 12) float32 array
            Of :meth:`factors`, on the same device.
        sideband : {0, 1, -1}
        room : Room, optional
            Memory for the result on the CPU, used again by the next call.

        Returns
        -------
        (n, rows, columns, 4) float32 array on the same device
        """
        xp = array_module(images)
        if self.gridding.as_xmipp:
            images, factors = shift_bspline(images, to_host(factors[:, SHIFT])), factors.copy()
            factors[:, SHIFT] = 0
        if xp is not np:
            return self._slices(images, factors, sideband)
        slices = (room or Room()).array((len(images), self.grid.rows, self.grid.columns, 4))

        def fill(first):
            part = slice(first, first + CPU_CHUNK)
            self._slices(images[part], factors[part], sideband, slices[part])

        on_all_cores(fill, range(0, len(images), CPU_CHUNK))
        return slices

    def _slices(self, images, factors, sideband, out=None):
        grid, xp = self.grid, array_module(images)
        table = xp.zeros((0, 0, 3), xp.float32) if self.table is None else from_host(self.table, xp)
        inside_only = not self.gridding.as_xmipp
        # A voxel that takes one sample only cannot take one twice.
        once = inside_only and self.gridding.kernel != "nearest"
        sizes = (grid.rows, grid.columns), grid.box // 2, grid.gain, grid.limit
        choices = self.mode, sideband, inside_only, once
        arrays = _transforms(images, grid), factors, table
        return insert.prepare_slices(*arrays, *sizes, *choices, out)


def _transforms(images, grid):
    """Transforms (n, padded, c) complex64 of padded images, of at least the columns of the grid."""
    fft = fft_module(images, workers=1)
    if array_module(images) is not np:
        return fft.rfft2(insert.pad_images(images, grid.padded))
    # The zero padding is transformed only where it must be.
    half = np.ascontiguousarray(fft.rfft(images, n=grid.padded, axis=2)[:, :, : grid.columns])
    return fft.fft(half, n=grid.padded, axis=1).astype(np.complex64, copy=False)


def plan_slices(parameters, gridding: Gridding, volume, group, optics=None, noise=None) -> SlicePlan:
    """Plan for the images of an optics group.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
    gridding : Gridding
    volume : VolumeGrid
    group : xmipp_accel.io.optics_groups.OpticsGroup
        With its box and sampling rate.
    optics : ParticleOptics, optional
        Of one or more of its particles; beam tilt needs voltage and Cs.
    noise : (box // 2 + 1,) array, optional
        Power of the noise of a pixel by ring of the image, see :func:`~.noise.noise_power`; the weights of
        samples are divided by what it is in the units of the map.

    Raises
    ------
    ParameterError
        A beam tilt has no lens, or images that are multiplied by their CTF are to be put on the Ewald sphere or
        to be weighted by their noise, which is that of the CTF's squares, too.
    """
    magnification = np.asarray(group.magnification)
    stretch = float(np.linalg.norm(magnification, 2))
    grid = plan_images(parameters, gridding, volume, group.box, group.sampling_rate, stretch)
    mode = CTF_MODES[parameters.ctf]
    if group.premultiplied and mode:
        mode = CTF_MODES["premultiplied"]
    if mode == CTF_MODES["premultiplied"] and (parameters.ewald != "none" or noise is not None):
        choice = "noise_weights" if noise is not None else "ewald"
        raise ParameterError(
            f"{choice}: expected images without their CTF, found them multiplied in optics group {group.name!r}"
        )
    weights = None
    if noise is not None:
        weights = (volume.box / (grid.gain * grid.box)) ** 2 / np.asarray(noise)
    return SlicePlan(grid, gridding, mode, magnification, _table(grid, group, optics, weights))


def _table(grid, group, optics, weights):
    """Phases and weights of all samples; None if there are none. `weights` are those of the image's rings."""
    aberrated = any(group.beam_tilt) or group.odd_zernike or group.even_zernike
    if not aberrated and weights is None:
        return None
    ky, kx = np.meshgrid(np.arange(grid.rows) - grid.rows // 2, np.arange(grid.columns), indexing="ij")
    x, y = kx * grid.step, ky * grid.step
    table = np.zeros((*kx.shape, 3), np.float32)
    table[..., 2] = 1.0
    if aberrated:
        lens = {} if optics is None else dict(voltage=np.mean(optics.voltage), cs=np.mean(optics.cs))
        if any(group.beam_tilt) and not lens:
            raise ParameterError(f"beam tilt: expected voltage and Cs of optics group {group.name!r}, found none")
        tilt = dict(beam_tilt=group.beam_tilt, magnification=group.magnification)
        table[..., 0] = -even_phase(x, y, group.even_zernike, group.magnification)
        table[..., 1] = odd_phase(x, y, group.odd_zernike, **tilt, **lens)
    if weights is not None:
        rings = np.hypot(kx, ky) * (grid.box / grid.padded)
        table[..., 2] = np.interp(rings, np.arange(len(weights)), weights)
    return table
