"""The references of an alignment: from a volume, a gallery of projections, or 2D averages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import read_stack, stack_shape
from xmipp_accel.io.particles import Particles, read_particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.fsc import soft_sphere
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.numerics.sphere import projection_directions
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.particle_alignment import polar

_TABLES = {".doc", ".xmd", ".star"}
_STACKS = {".mrcs", ".stk"}
# Projections are thick in the middle: the same radius holds more of their energy than of the volume's.
_VOLUME_ENERGY, _IMAGE_ENERGY = 0.98, 0.995
_CHUNK_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class References:
    """What particles are compared with, before a grid is chosen.

    Attributes
    ----------
    kind : {"projection", "2d"}
        With or without projection directions.
    labels : (R,) int64 array
        The references' own numbers, which go to the column ``ref``.
    rot, tilt, psi : (R,) float64 arrays
        Degrees; 0 for "2d".
    shifts : (R, 2) float64 array
        (y, x) px that centre the reference.
    volume : (n, n, n) float32 array, or None
    images : (R, N, N) float32 array, or None
    sampling_rate : float
        A/px; 0 if unknown.
    """

    kind: str
    labels: np.ndarray
    rot: np.ndarray
    tilt: np.ndarray
    psi: np.ndarray
    shifts: np.ndarray
    volume: Any
    images: Any
    sampling_rate: float

    def __len__(self):
        return len(self.labels)

    @property
    def box(self) -> int:
        """Px."""
        return len(self.volume) if self.images is None else self.images.shape[-1]

    def relative_scale(self, box, sampling_rate) -> float:
        """How many cycles per box of the volume one cycle per box of a particle is."""
        if not (self.sampling_rate and sampling_rate):
            return self.box / box
        return self.box * self.sampling_rate / (box * sampling_rate)


def open_references(source, symmetry="c1", angular_sampling=5.0, min_tilt=0.0, max_tilt=180.0) -> References:
    """Read references.

    Parameters
    ----------
    source : path or Particles
        A table (.doc, .xmd, .star, or `Particles`) of images, with or without directions; a stack of images
        (.mrcs, .stk); or a volume.
    symmetry, angular_sampling, min_tilt, max_tilt
        As in `AlignSignificantParameters`; the first two concern volumes only.
    """
    if isinstance(source, Particles) or Path(source).suffix.lower() in _TABLES:
        references = _from_table(source if isinstance(source, Particles) else read_particles(source))
    elif Path(source).suffix.lower() in _STACKS or len(set(stack_shape(source))) > 1:
        return _from_stack(source)
    else:
        volume, sampling_rate = read_volume(source)
        rot, tilt = projection_directions(angular_sampling, symmetry_matrices(symmetry), min_tilt, max_tilt)
        references = _projections(rot, tilt, volume=volume, sampling_rate=sampling_rate)
    if references.kind == "2d":
        return references
    return _within_tilts(references, min_tilt, max_tilt)


def _projections(rot, tilt, **values):
    n = len(rot)
    defaults = dict(labels=np.arange(1, n + 1), psi=np.zeros(n), shifts=np.zeros((n, 2)), images=None, volume=None)
    return References(kind="projection", rot=rot, tilt=tilt, **{**defaults, **values})


def _from_table(table):
    table = table.take(table.enabled)
    if not len(table):
        raise ParameterError("references: expected at least one that is enabled, found none")
    directed = bool(np.any(table.rot) or np.any(table.tilt))
    shown = table.class_id if len(np.unique(table.class_id)) == len(table) else np.arange(1, len(table) + 1)
    zero = np.zeros(len(table))
    return References(
        kind="projection" if directed else "2d",
        labels=np.asarray(shown, dtype=np.int64),
        rot=table.rot if directed else zero,
        tilt=table.tilt if directed else zero,
        psi=table.psi if directed else zero,
        shifts=np.column_stack([table.shift_y, table.shift_x]) if directed else np.zeros((len(table), 2)),
        volume=None,
        images=table.images(),
        sampling_rate=table.sampling_rate,
    )


def _from_stack(path):
    images = read_stack(path)
    if images.shape[1] != images.shape[2]:
        raise InputFileError(path, "square images", f"{images.shape[2]} x {images.shape[1]} px")
    n = len(images)
    zero = np.zeros(n)
    return References(
        "2d", np.arange(1, n + 1), zero, zero, zero, np.zeros((n, 2)), None, images, sampling_rate=0.0
    )


def _within_tilts(references, min_tilt, max_tilt):
    keep = (references.tilt >= min_tilt - 1e-6) & (references.tilt <= max_tilt + 1e-6)
    if not keep.any():
        raise ParameterError(f"min_tilt, max_tilt: no reference has a tilt from {min_tilt:g} to {max_tilt:g}")
    columns = {name: getattr(references, name)[keep] for name in ("labels", "rot", "tilt", "psi", "shifts")}
    images = None if references.images is None else references.images[keep]
    return dataclasses.replace(references, images=images, **columns)


def content_radius(references) -> float:
    """Radius that holds nearly all of the references' squared values, as a share of the box, from 0.2 to 0.45."""
    box = references.box
    squares = np.linspace(-(box // 2), box - 1 - box // 2, box) ** 2
    if references.images is None:
        radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
        values, share = references.volume, _VOLUME_ENERGY
    else:
        radius = np.sqrt(squares[:, None] + squares)
        values, share = references.images.std(axis=0) + np.abs(references.images.mean(axis=0)), _IMAGE_ENERGY
    rim = (radius > 0.47 * box) & (radius <= 0.5 * box)
    power = (values - np.median(values[rim])) ** 2
    inside = radius <= 0.5 * box
    energy = np.bincount(np.rint(radius[inside]).astype(np.int64), weights=power[inside])
    total = np.cumsum(energy) / max(energy.sum(), 1e-30)
    return float(np.clip(np.searchsorted(total, share) / box, 0.2, 0.45))


def reference_coefficients(references, grid, mask_radius, edge, sampling_rate, device):
    """Harmonics (R, K, Q) complex64 of the masked references, on the device.

    Parameters
    ----------
    references : References
    grid : polar.PolarGrid
        Of the particles.
    mask_radius, edge : float
        Px of the particles; a sphere for volumes, a circle for images.
    sampling_rate : float
        A/px of the particles.
    device : Device
    """
    samples = _volume_samples if references.images is None else _image_samples
    chunks = [
        polar.angular_coefficients(part, grid)
        for part in samples(references, grid, mask_radius, edge, sampling_rate, device)
    ]
    return device.xp.concatenate(chunks)


def _chunks(count, grid, bytes_per_sample):
    size = max(1, _CHUNK_BYTES // (grid.n_rings * grid.n_angles // 2 * bytes_per_sample))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _volume_samples(references, grid, mask_radius, edge, sampling_rate, device):
    scale = references.relative_scale(grid.box, sampling_rate)
    pixels = references.box / (grid.box * scale)
    ball = soft_sphere(references.box, (mask_radius - edge / 2) * pixels, edge * pixels)
    volume = references.volume * ball
    spectrum = VolumeSpectrum(device.asarray(volume, np.float32), grid.n_rings * scale)
    matrices = euler_to_matrix(references.rot, references.tilt, references.psi)
    for part in _chunks(len(references), grid, 64):
        yield spectrum.slices(matrices[part], grid.frequencies * scale)


def _image_samples(references, grid, mask_radius, edge, sampling_rate, device):
    if references.box != grid.box:
        raise ParameterError(
            f"references: expected images of {grid.box} px like the particles, found {references.box} px"
        )
    mask = device.asarray(polar.soft_circle(grid.box, mask_radius, edge))
    for part in _chunks(len(references), grid, 64):
        images = device.asarray(references.images[part], np.float32)
        samples = polar.polar_samples(polar.mask_images(images, mask), grid)
        yield samples * polar.shift_phases(grid, references.shifts[part], device.xp)


def reference_images(references, box, sampling_rate, device) -> np.ndarray:
    """References as images (R, box, box) float32: those given, or projections up to Nyquist."""
    if references.images is not None:
        return references.images
    rings = box // 2
    grid = polar.PolarGrid(box, rings, 4 * int(np.ceil(np.pi * rings / 2)), 1)
    images = [
        to_host(polar.images_from_samples(samples, grid))
        for samples in _volume_samples(references, grid, 0.47 * box, 3.0, sampling_rate, device)
    ]
    return np.concatenate(images)
