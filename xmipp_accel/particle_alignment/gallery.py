"""The references of an alignment: from a volume, a gallery of projections, or 2D averages."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import open_stack, stack_shape, write_stack
from xmipp_accel.io.particles import Particles, read_particles, write_particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.filters import resample_images
from xmipp_accel.numerics.fsc import soft_sphere
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.numerics.sphere import projection_directions
from xmipp_accel.numerics.statistics import usable_rows
from xmipp_accel.numerics.symmetry import view_symmetry
from xmipp_accel.particle_alignment import polar

_TABLES = {".doc", ".xmd", ".star"}
_STACKS, _VOLUMES = {".mrcs", ".stk"}, {".map", ".vol"}
_NO_TILT = "min_tilt, max_tilt: no reference has a tilt from {:g} to {:g}"
_NEGLIGIBLE = 0.1  # px, of what a sampling rate is off over the whole box
# Projections are thick in the middle: the same radius holds more of their energy than of the volume's.
_VOLUME_ENERGY, _IMAGE_ENERGY = 0.98, 0.995
_CHUNK_BYTES = 128 << 20
_PROFILE_BOX = 96

logger = logging.getLogger(__name__)


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
        """How many cycles per box of the references one cycle per box of a particle is.

        Raises
        ------
        ParameterError
            The boxes differ, and one of the sampling rates is unknown.
        """
        if self.sampling_rate and sampling_rate:
            return self.box * self.sampling_rate / (box * sampling_rate)
        if self.box != box:
            raise ParameterError(
                f"references: expected {box} px like the particles, or sampling rates of both, found {self.box} px"
            )
        return 1.0

    def in_pixels_of(self, box, sampling_rate) -> References:
        """The references for particles of `box` px and `sampling_rate` A/px: images are resampled to these.

        Volumes stay as they are, since their spectra are sampled at any frequency.

        Raises
        ------
        ParameterError
            As in :meth:`relative_scale`.
        """
        pixel = box / self.box * self.relative_scale(box, sampling_rate)  # of the references, in the particles'
        same = abs(pixel - 1) * max(self.box, box) < _NEGLIGIBLE
        if self.images is None or (same and self.box == box):
            return self
        logger.warning(
            "references: resampled from %d px of %g A to the particles' %d px of %g A",
            *(self.box, self.sampling_rate, box, sampling_rate),
        )
        images = resample_images(self.images, 1.0 if same else 1 / pixel, box)
        return dataclasses.replace(self, images=images, shifts=self.shifts * pixel, sampling_rate=sampling_rate)


def open_references(
    source, symmetry="c1", angular_sampling=5.0, min_tilt=0.0, max_tilt=180.0, perturb=0.0, seed=0
) -> References:
    """Read references.

    Parameters
    ----------
    source : path or Particles
        A table (.doc, .xmd, .star, or `Particles`) of images, with or without directions; a stack of images
        (.mrcs, .stk, or a .mrc that is no cube); or a volume.
    symmetry, angular_sampling, min_tilt, max_tilt, perturb, seed
        As in `AlignSignificantParameters`; all but the tilts concern volumes only.

    Raises
    ------
    InputFileError
        An image or the volume is constant or has pixels that are not numbers, or images are not square.
    ParameterError
        There are no references.
    """
    if isinstance(source, Particles) or Path(source).suffix.lower() in _TABLES:
        references = _from_table(source if isinstance(source, Particles) else read_particles(source))
        return references if references.kind == "2d" else _within_tilts(references, min_tilt, max_tilt)
    suffix = Path(source).suffix.lower()
    if suffix in _STACKS or (suffix not in _VOLUMES and len(set(stack_shape(source))) > 1):
        return _from_stack(source)
    return open_volume(source, symmetry, angular_sampling, min_tilt, max_tilt, perturb, seed)


def open_volume(
    path,
    symmetry="c1",
    angular_sampling=5.0,
    min_tilt=0.0,
    max_tilt=180.0,
    perturb=0.0,
    seed=0,
    sampling_rate=0.0,
) -> References:
    """Read a volume whose projections are the references.

    Parameters
    ----------
    path : path
        Of a volume; one that is no cube is made one by adding its border's mean around it.
    symmetry, angular_sampling, min_tilt, max_tilt, perturb, seed
        As in `AlignSignificantParameters`.
    sampling_rate : float
        A/px; 0 means what the file tells.
    """
    volume, found = read_volume(path)
    if not usable_rows(volume.reshape(1, 1, -1))[0]:
        raise InputFileError(path, "a volume that is not constant", f"{volume.flat[0]:g} everywhere")
    matrices = view_symmetry(symmetry)
    rot, tilt = projection_directions(angular_sampling, matrices, min_tilt, max_tilt, perturb, seed)
    if not len(rot):
        raise ParameterError(_NO_TILT.format(min_tilt, max_tilt))
    n = len(rot)
    return References(
        kind="projection",
        labels=np.arange(1, n + 1),
        rot=rot,
        tilt=tilt,
        psi=np.zeros(n),
        shifts=np.zeros((n, 2)),
        volume=_as_cube(volume),
        images=None,
        sampling_rate=sampling_rate or found,
    )


def _as_cube(volume):
    box = max(volume.shape)
    if set(volume.shape) == {box}:
        return volume
    inner = tuple(slice(1, -1) if size > 2 else slice(0, 0) for size in volume.shape)
    border = np.ones(volume.shape, bool)
    border[inner] = False
    cube = np.full((box,) * 3, volume[border].mean(dtype=np.float64), np.float32)
    cube[tuple(slice(box // 2 - size // 2, box // 2 - size // 2 + size) for size in volume.shape)] = volume
    return cube


def _from_table(table):
    table = table.take(table.enabled)
    if not len(table):
        raise ParameterError("references: expected at least one that is enabled, found none")
    table.require_uniform()
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
        images=_checked(table.images(), table.stack, table.index),
        sampling_rate=table.sampling_rate,
    )


def _from_stack(path):
    stack = open_stack(path)
    images = stack.read()
    if images.shape[1] != images.shape[2]:
        raise InputFileError(path, "square images", f"{images.shape[2]} x {images.shape[1]} px")
    n = len(images)
    zero = np.zeros(n)
    return References(
        kind="2d",
        labels=np.arange(1, n + 1),
        rot=zero,
        tilt=zero,
        psi=zero,
        shifts=np.zeros((n, 2)),
        volume=None,
        images=_checked(images, [path] * n, np.arange(n)),
        sampling_rate=stack.sampling_rate,
    )


def _checked(images, stacks, indices):
    bad = np.flatnonzero(~usable_rows(images))
    if len(bad):
        place = f"{indices[bad[0]] + 1}@{stacks[bad[0]]}"
        finite = np.isfinite(images[bad[0]]).all()
        found = "a constant image" if finite else "NaN or infinity"
        raise InputFileError(place, "a reference of finite pixel values that differ", found)
    return images


def _within_tilts(references, min_tilt, max_tilt):
    keep = (references.tilt >= min_tilt - 1e-6) & (references.tilt <= max_tilt + 1e-6)
    if not keep.any():
        raise ParameterError(_NO_TILT.format(min_tilt, max_tilt))
    columns = {name: getattr(references, name)[keep] for name in ("labels", "rot", "tilt", "psi", "shifts")}
    return dataclasses.replace(references, images=references.images[keep], **columns)


def content_radius(references) -> float:
    """Radius that holds nearly all of the references' squared values, as a share of the box, from 0.2 to 0.45."""
    box = references.box
    axis = np.arange(box) - box // 2
    squares = axis.astype(np.float64) ** 2
    if references.images is None:
        some = np.flatnonzero(axis % math.ceil(box / _PROFILE_BOX) == 0)  # of a large volume, they tell as much
        squares = squares[some]
        radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
        values, share = references.volume[np.ix_(some, some, some)], _VOLUME_ENERGY
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
    ball = soft_sphere(references.box, (mask_radius - edge / 2) * pixels, edge * pixels, device.xp)
    # Beyond its Nyquist frequency the volume tells nothing: these rings stay 0.
    rings = int(np.count_nonzero(grid.radii * scale <= references.box / 2))
    spectrum = VolumeSpectrum(device.asarray(references.volume, np.float32) * ball, rings * scale)
    matrices = euler_to_matrix(references.rot, references.tilt, references.psi)
    for part in _chunks(len(references), grid, 64):
        samples = device.xp.zeros((len(matrices[part]), *grid.frequencies.shape[1:]), dtype=np.complex64)
        samples[:, :rings] = spectrum.slices(matrices[part], grid.frequencies[:, :rings] * scale)
        yield samples


def _image_samples(references, grid, mask_radius, edge, sampling_rate, device):
    references = references.in_pixels_of(grid.box, sampling_rate)
    mask = device.asarray(polar.soft_circle(grid.box, mask_radius, edge))
    for part in _chunks(len(references), grid, 64):
        images = device.asarray(references.images[part], np.float32)
        samples = polar.polar_samples(polar.mask_images(images, mask), grid)
        yield samples * polar.shift_phases(grid, references.shifts[part], device.xp)


def reference_images(references, box, sampling_rate, device) -> np.ndarray:
    """References as images (R, box, box) float32: those given, or projections up to Nyquist."""
    if references.images is not None:
        return references.in_pixels_of(box, sampling_rate).images
    rings = box // 2
    grid = polar.PolarGrid(box, rings, 4 * int(np.ceil(np.pi * rings / 2)), 1)
    images = [
        to_host(polar.images_from_samples(samples, grid))
        for samples in _volume_samples(references, grid, 0.47 * box, 3.0, sampling_rate, device)
    ]
    return np.concatenate(images)


def write_gallery(folder, references, box, sampling_rate, device) -> Path:
    """Publish the references as images in the particles' pixels: ``gallery.mrcs`` and ``gallery.xmd``.

    Parameters
    ----------
    folder : path
        Made if absent.
    references : References
    box, sampling_rate
        Of the particles, px and A/px.
    device : Device

    Returns
    -------
    pathlib.Path
        Of the table; its `class_id` is the reference's number.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pixel = references.in_pixels_of(box, sampling_rate)
    with device.activate():
        write_stack(folder / "gallery.mrcs", reference_images(pixel, box, sampling_rate, device), sampling_rate)
    table = Particles(
        stack=[str(folder / "gallery.mrcs")] * len(pixel),
        index=np.arange(len(pixel)),
        rot=pixel.rot,
        tilt=pixel.tilt,
        psi=pixel.psi,
        shift_y=pixel.shifts[:, 0],
        shift_x=pixel.shifts[:, 1],
        class_id=pixel.labels,
        sampling_rate=sampling_rate,
        has_pose=pixel.kind == "projection",
    )
    write_particles(folder / "gallery.xmd", table)
    return folder / "gallery.xmd"
