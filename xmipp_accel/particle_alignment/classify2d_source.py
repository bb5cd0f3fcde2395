"""Particles on disk, brought to the form that the classification compares, a block at a time."""

from __future__ import annotations

import collections
import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.numerics.statistics import usable_rows
from xmipp_accel.particle_alignment.classify2d_batch import Batch
from xmipp_accel.particle_alignment.classify2d_model import (
    background_power,
    join_particles,
    prepare_particles,
)
from xmipp_accel.particle_alignment.polar import PolarGrid, polar_grid, soft_circle

_SHARE_OF_NYQUIST = 0.7  # of the outermost ring, where the user names no resolution
_MOST_RINGS = 32  # likewise: classes differ at low resolution, and the cost grows with the square
_LEAST_RINGS = 4
_NOISE_SAMPLE = 1000
_BLOCK = 4096  # particles, enough to fill a GPU; the sums of a run depend on it, so it is one for every device
_BLOCK_BYTES = 256 << 20  # of its images, of which several blocks are read ahead
_SHARED_BY, _LEAST_BLOCK = 4, 1024  # devices that a batch is to keep busy alike, with at least so many particles


@dataclasses.dataclass(frozen=True)
class Images:
    """Images that can be used, on the host.

    Attributes
    ----------
    pixels : (m, N, N) float32 array
    rows : (m,) int64 array
        Of the particles.
    wanted : (n,) int64 array
        Rows that were asked for; those of constant images and of pixels that are not numbers are not in `rows`.
    """

    pixels: np.ndarray
    rows: np.ndarray
    wanted: np.ndarray


def mask_radius_of(box, parameters) -> float:
    """Radius in px of the circle around the particle."""
    if parameters.mask_radius > box / 2:
        raise ParameterError(
            f"mask_radius: expected at most half the box, {box / 2:g} px, found {parameters.mask_radius:g}"
        )
    return parameters.mask_radius or 0.45 * box


def rings_of(box, sampling_rate, parameters) -> PolarGrid:
    """Rings on which images are compared."""
    half, wanted = box // 2 - 1, parameters.max_resolution
    rings = max(1, min(int(_SHARE_OF_NYQUIST * box / 2), _MOST_RINGS, half))
    if wanted and not sampling_rate:
        raise ParameterError("max_resolution: the particles' sampling rate is unknown, so it must be 0")
    if wanted:
        rings = min(int(box * sampling_rate / wanted), half)
        if rings < _LEAST_RINGS:
            coarsest = box * sampling_rate / _LEAST_RINGS
            raise ParameterError(
                f"max_resolution: expected at most {coarsest:.1f} A for this box, found {wanted:g}"
            )
    return polar_grid(box, rings, mask_radius_of(box, parameters), parameters.max_shift / 100.0 * box)


class ParticleSource:
    """Reads and prepares particles.

    Parameters
    ----------
    particles : Particles
    parameters : Classify2DParameters
    workers : Workers
    noise : (K,) float64 array, optional
        Noise power from an earlier run; measured otherwise.

    Raises
    ------
    ParameterError
        The parameters do not suit the images.
    ProcessingError
        No image can be used.
    """

    def __init__(self, particles, parameters, workers, noise=None):
        self.particles, self.workers = particles, workers
        self.box = particles.box
        self.sampling_rate = particles.sampling_rate or 1.0
        self.max_shift = parameters.max_shift / 100.0 * self.box
        self.mask_radius = mask_radius_of(self.box, parameters)
        self.grid = rings_of(self.box, particles.sampling_rate, parameters)
        self.uses_ctf = parameters.ctf == "weight" and particles.has_ctf
        self.mask = soft_circle(self.box, self.mask_radius, edge=min(4.0, self.mask_radius))
        self.noise = self._noise() if noise is None else noise

    def _noise(self) -> np.ndarray:
        count = len(self.particles)
        rows = np.unique(np.linspace(0, count - 1, min(count, _NOISE_SAMPLE)).astype(int))

        def measure(worker, _number, images):
            mask, total = worker.device.asarray(self.mask), np.zeros(self.grid.n_rings)
            for part in self._pieces(images, worker):
                pixels = worker.device.asarray(images.pixels[part])
                total += len(pixels) * background_power(pixels, mask, self.grid.n_rings)
            return total, len(images.rows)

        totals, counts = zip(*self.workers.stream(self.read, measure, self.blocks(rows)))
        return sum(totals) / max(1, sum(counts))

    def blocks(self, rows) -> list[np.ndarray]:
        """Parts of `rows` that one device works on at a time."""
        return _parts(rows, self._block())

    def _block(self):
        return max(1, min(_BLOCK, _BLOCK_BYTES // (4 * self.box**2)))

    def _even_blocks(self, rows):
        """Blocks of a batch: a last one that is smaller would leave devices idle in every iteration."""
        most = self._block()
        number = _SHARED_BY * math.ceil(len(rows) / (_SHARED_BY * most))
        return _parts(rows, min(most, max(_LEAST_BLOCK, math.ceil(len(rows) / number))))

    def read(self, rows) -> Images:
        """Images of some rows, those that can be used."""
        pixels = self.particles.images(rows)
        good = usable_rows(pixels)
        return Images(pixels, rows, rows) if good.all() else Images(pixels[good], rows[good], rows)

    def optics(self, rows):
        """Arguments of `numerics.ctf` for some particles; None if the CTF is not used."""
        return self.particles.ctf_parameters(rows) if self.uses_ctf else None

    def batch(self, rows) -> tuple[Batch, np.ndarray]:
        """Particles of some rows at hand, and the rows of those that can be used."""
        (found,) = self.batches([rows])
        return found

    def batches(self, choices):
        """Yield what :meth:`batch` returns for each choice of rows; the next one's images are read meanwhile."""
        reading: collections.deque = collections.deque()
        with ThreadPoolExecutor(_SHARED_BY, "read") as readers:
            for rows in choices:
                reading.append([readers.submit(self.read, block) for block in self._even_blocks(rows)])
                if len(reading) > 1:
                    yield self._prepared(reading.popleft())
            while reading:
                yield self._prepared(reading.popleft())

    def _prepared(self, images):
        """Batch of the results of futures, which are dropped one after the other."""

        def take(number):
            future, images[number] = images[number], None
            return future.result()

        def prepare(worker, _number, images):
            return (self.prepare(worker, images) if len(images.rows) else None), images.rows

        found = list(self.workers.stream(take, prepare, range(len(images)), ahead=_SHARED_BY - 1))
        blocks, rows = zip(*found)
        if not any(map(len, rows)):
            raise ProcessingError("2D classification: every image is constant or has pixels that are not numbers")
        return Batch(self.workers, list(blocks)), np.concatenate(rows)

    def _pieces(self, images, worker):
        step = max(8, worker.budget // (64 * self.box**2))
        return [slice(first, first + step) for first in range(0, len(images.pixels), step)]

    def prepare(self, worker, images):
        """`PreparedParticles` of `Images`, at least one, on the device of a worker."""
        parts = [
            self._prepare(worker, images.pixels[part], self.optics(images.rows[part]))
            for part in self._pieces(images, worker)
        ]
        return join_particles(parts)

    def prepare_references(self, images):
        """Harmonics (C, K, Q) of reference images (C, N, N), which have no CTF, on the host."""
        images = np.asarray(images, dtype=np.float32)
        if images.ndim != 3 or images.shape[1:] != (self.box, self.box):
            raise ParameterError(
                f"initial references: expected images of {self.box} x {self.box} px, found shape {images.shape}"
            )
        work = self.workers.of(0).submit(lambda worker: to_host(self._prepare(worker, images, None).coefficients))
        return work.result()

    def _prepare(self, worker, pixels, optics):
        mask = worker.device.asarray(self.mask)
        pixels = worker.device.asarray(pixels)
        return prepare_particles(pixels, mask, self.grid, self.noise, optics, self.sampling_rate)


def _parts(rows, size):
    return [rows[first : first + size] for first in range(0, len(rows), size)]
