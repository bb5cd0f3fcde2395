"""Particles on disk, brought to the form that the classification compares, a batch at a time."""

from __future__ import annotations

import numpy as np

from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.numerics.statistics import usable_rows
from xmipp_accel.particle_alignment.classify2d_model import (
    PreparedParticles,
    background_power,
    join_particles,
    prepare_particles,
)
from xmipp_accel.particle_alignment.polar import polar_grid, soft_circle

_SHARE_OF_NYQUIST = 0.7  # of the outermost ring, where the user names no resolution
_MOST_RINGS = 32  # likewise: classes differ at low resolution, and the cost grows with the square
_LEAST_RINGS = 4
_NOISE_SAMPLE = 1000
_CHUNK_PIXELS = 1 << 22


class ParticleSource:
    """Reads and prepares particles.

    Parameters
    ----------
    particles : Particles
    parameters : Classify2DParameters
    device : Device

    Raises
    ------
    ParameterError
        The parameters do not suit the images.
    ProcessingError
        No image can be used.
    """

    def __init__(self, particles, parameters, device):
        self.particles, self.device = particles, device
        self.box = particles.box
        self.max_shift = parameters.max_shift / 100.0 * self.box
        self.mask_radius = parameters.mask_radius or 0.45 * self.box
        if self.mask_radius > self.box / 2:
            raise ParameterError(
                f"mask_radius: expected at most half the box, {self.box / 2:g} px, found {self.mask_radius:g}"
            )
        rings = self._rings(parameters.max_resolution)
        self.grid = polar_grid(self.box, rings, self.mask_radius, self.max_shift)
        self.uses_ctf = parameters.ctf == "weight" and particles.has_ctf
        self.chunk = int(np.clip(_CHUNK_PIXELS // self.box**2, 16, 512))
        self.mask = soft_circle(self.box, self.mask_radius, edge=min(4.0, self.mask_radius))
        self.usable = self._usable()
        if not len(self.usable):
            raise ProcessingError("2D classification: every image is constant or has pixels that are not numbers")
        sample = np.linspace(0, len(self.usable) - 1, min(len(self.usable), _NOISE_SAMPLE)).astype(int)
        self.noise = self._noise(self.usable[np.unique(sample)])

    def _rings(self, max_resolution) -> int:
        half = self.box // 2 - 1
        if max_resolution == 0:
            return max(1, min(int(_SHARE_OF_NYQUIST * self.box / 2), _MOST_RINGS, half))
        if not self.particles.sampling_rate:
            raise ParameterError("max_resolution: the particles' sampling rate is unknown, so it must be 0")
        rings = int(self.box * self.particles.sampling_rate / max_resolution)
        if rings < _LEAST_RINGS:
            coarsest = self.box * self.particles.sampling_rate / _LEAST_RINGS
            raise ParameterError(
                f"max_resolution: expected at most {coarsest:.1f} A for this box, found {max_resolution:g}"
            )
        return min(rings, half)

    def _usable(self) -> np.ndarray:
        """Rows of the images that can be compared."""
        chunks = self.chunks(np.arange(len(self.particles)))
        return np.flatnonzero(np.concatenate([usable_rows(self.particles.images(rows)) for rows in chunks]))

    def _noise(self, rows) -> np.ndarray:
        total = np.zeros(self.grid.n_rings)
        mask = self.device.asarray(self.mask)
        for part in self.chunks(rows):
            total += len(part) * background_power(self.images(part), mask, self.grid.n_rings)
        return total / len(rows)

    def chunks(self, rows):
        """Parts of `rows` whose images fit into memory."""
        return np.array_split(rows, max(1, -(-len(rows) // self.chunk)))

    def images(self, rows):
        """Images (m, N, N) float32 on the device."""
        return self.device.asarray(self.particles.images(rows))

    def optics(self, rows):
        """Arguments of `numerics.ctf` for some particles; None if the CTF is not used."""
        if not self.uses_ctf:
            return None
        names = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
        return {name: getattr(self.particles, name)[rows] for name in names}

    def prepare(self, rows) -> PreparedParticles:
        """Particles of some rows."""
        parts = [self._prepare(self.images(part), self.optics(part)) for part in self.chunks(rows)]
        return join_particles(parts)

    def prepare_references(self, images) -> PreparedParticles:
        """Reference images (C, N, N), which have no CTF."""
        images = np.asarray(images, dtype=np.float32)
        if images.ndim != 3 or images.shape[1:] != (self.box, self.box):
            raise ParameterError(
                f"initial references: expected images of {self.box} x {self.box} px, found shape {images.shape}"
            )
        return self._prepare(self.device.asarray(images), None)

    def _prepare(self, images, optics):
        mask = self.device.asarray(self.mask)
        return prepare_particles(images, mask, self.grid, self.noise, optics, self.particles.sampling_rate or 1.0)
