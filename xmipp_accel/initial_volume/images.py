"""The images of an initial volume: those that can be used, and their spectra on rings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.numerics.filters import fourier_resize
from xmipp_accel.numerics.statistics import usable_rows
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.ring_samples import ring_samples
from xmipp_accel.particle_alignment.search import shift_grid

EDGE = 3.0  # px, of the mask
_BATCH = 256
_PIXELS = 2.6  # per period of the finest resolution: 2 would do, were it not for interpolation
_SHIFT_STEP = 0.56  # periods of the outermost ring, as in Align Significant


def read_usable(particles, size):
    """Read images, resampled over the same field of view; leave out those that are constant or not finite.

    Parameters
    ----------
    particles : Particles
    size : int
        Edge of the result in px, at most the box.

    Returns
    -------
    images : (m, size, size) float32 array
    usable : (n,) bool array
        Which m of the n particles they are.
    """
    chunks, usable = [], np.zeros(len(particles), bool)
    for start in range(0, len(particles), _BATCH):
        part = np.arange(start, min(start + _BATCH, len(particles)))
        images = particles.images(part)
        usable[part] = good = usable_rows(images)
        chunks.append(fourier_resize(images[good], size))
    return np.concatenate(chunks), usable


def working_size(box, sampling_rate, resolution) -> int:
    """Even edge in px that is enough for a resolution in A, at most the box."""
    return min(box, 2 * int(np.ceil(0.5 * _PIXELS * box * sampling_rate / resolution)))


@dataclasses.dataclass(frozen=True)
class RingImages:
    """Spectra of images on rings up to one resolution, so weighted that the images' mean power is white.

    Attributes
    ----------
    grid : polar.PolarGrid
    sampling_rate, mask_radius : float
        A/px and px of the grid's box.
    weights : (K,) float64 array
        w_k of the score: the ring's length over the images' mean power on it. Without that a correlation sees
        little but the lowest frequencies, which look alike from all sides.
    samples : (n, K, Phi / 2) complex64 array
        On the device; multiplied by the CTF, and divided by the norm of the image without.
    gain : (n, K) float32 array
        Mean square of the CTF on each ring; on the host.
    shifts : (S, 2) float64 array
        Translations (y, x) to try, px.
    """

    grid: polar.PolarGrid
    sampling_rate: float
    mask_radius: float
    weights: np.ndarray
    samples: Any
    gain: np.ndarray
    shifts: np.ndarray

    def __len__(self):
        return len(self.samples)

    @property
    def resolution(self) -> float:
        """A, of the outermost ring."""
        return self.grid.box * self.sampling_rate / self.grid.n_rings

    @property
    def independent(self) -> float:
        """Number of independent real data in a masked image within the band."""
        return np.pi**2 * (self.grid.n_rings * self.mask_radius / self.grid.box) ** 2

    def shifted_harmonics(self, rows):
        """Harmonics (m, S, K, Q) of some images after every shift."""
        xp = polar.array_module(self.samples)
        phases = polar.shift_phases(self.grid, self.shifts, xp)
        return polar.angular_coefficients(self.samples[rows][:, None] * phases, self.grid)


def ring_images(images, particles, resolution, mask_share, parameters, device) -> RingImages:
    """Prepare images for comparisons up to a resolution.

    Parameters
    ----------
    images : (n, N, N) float32 array
        At any sampling, over the particles' field of view.
    particles : Particles
        Their optics.
    resolution : float
        A.
    mask_share : float
        Radius of the soft mask over the box.
    parameters : ReconstructSignificantParameters
    device : Device
    """
    field = particles.box * particles.sampling_rate
    size = working_size(images.shape[-1], field / images.shape[-1], resolution)
    rings = int(np.clip(field / resolution, 3, size // 2))
    radius, max_shift = mask_share * size, parameters.max_shift / 100.0 * size
    grid = polar.polar_grid(size, rings, radius + EDGE / 2, max_shift)
    mask = device.asarray(polar.soft_circle(size, radius, EDGE))
    ctf = parameters.ctf if particles.has_ctf else "none"
    shape = (len(images), rings)
    power, gain, chunks = np.empty(shape), np.ones(shape, np.float32), []
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        batch = fourier_resize(device.asarray(images[part], np.float32), size)
        optics = particles.ctf_parameters(part)
        samples, power[part], squares = ring_samples(
            batch, mask, grid, ctf, optics, field / size, parameters.phase_flipped
        )
        if squares is not None:
            gain[part] = squares
        chunks.append(samples)
    weights = polar.ring_weights(grid, power.mean(axis=0))
    scale = 1 / np.sqrt(np.maximum(power @ weights, 1e-30))
    samples = device.xp.concatenate(chunks) * device.asarray(scale[:, None, None], np.float32)
    return RingImages(
        grid, field / size, radius, weights, samples, gain, shift_grid(max_shift, _SHIFT_STEP * size / rings)
    )
