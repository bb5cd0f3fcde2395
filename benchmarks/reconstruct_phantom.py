"""A phantom of Gaussians whose projections are exact, and how far a map is from it.

The set-up follows the quality section of the reference folder's ``specs/fourier_reconstruction.md``: a box of 64
px, 220 Gaussians of 0.75 to 1.3 px, random directions, no shifts. What that leaves open was settled by its rows
for Xmipp's arithmetic: centres uniform in a ball of 20 px; a signal-to-noise ratio of projections without a CTF;
Fourier shell correlations inside the sphere of the box.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.backend import fft_module
from xmipp_accel.initial_volume.reconstruct_significant import resize_volume
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.fsc import fourier_shell_correlation, resolution_at, soft_sphere
from xmipp_accel.numerics.rotations import matrix_to_euler, random_matrices
from xmipp_accel.simulate.phantom import Phantom

BOX, SAMPLING_RATE, RADIUS = 64, 1.6, 20
BAND = BOX // 2 - 3
BATCH = 250
DEFOCUS = 8000.0, 25000.0
WIENER_CONSTANT = 0.1


def make_phantom() -> Phantom:
    """Centres uniform in a ball of `RADIUS` px, masses of 0.5 to 1.5."""
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(220, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centres = RADIUS * rng.uniform(size=(220, 1)) ** (1 / 3) * directions
    sigmas, masses = rng.uniform(0.75, 1.3, 220), rng.uniform(0.5, 1.5, 220)
    return Phantom(centres * SAMPLING_RATE, sigmas * SAMPLING_RATE, masses)


def true_map(phantom) -> np.ndarray:
    """Density (BOX, BOX, BOX) up to Nyquist alone.

    From half as large voxels, since 0.5 % of the norm of samples at whole ones is finer detail folded back.
    """
    return resize_volume(phantom.volume(2 * BOX, SAMPLING_RATE / 2), BOX)


@dataclasses.dataclass(frozen=True)
class Views:
    """Projections of the phantom.

    Attributes
    ----------
    images : (n, BOX, BOX) float32 array
    matrices : (n, 3, 3) array
    defocus : (n,) array
        A; empty without a CTF.
    variance : float
        Of the projections before the CTF, in the whole box.
    """

    images: np.ndarray
    matrices: np.ndarray
    defocus: np.ndarray
    variance: float


def make_views(phantom, count, seed, ctf=False) -> Views:
    """Project the phantom in `count` random directions.

    A CTF acts in twice the box, which is cut afterwards: as in a micrograph, signal leaves the box and does not
    come in again on the other side.
    """
    rng = np.random.default_rng(seed)
    matrices = random_matrices(count, rng)
    defocus = rng.uniform(*DEFOCUS, count) if ctf else np.zeros(0)
    images, variance = np.empty((count, BOX, BOX), np.float32), 0.0
    for first in range(0, count, BATCH):
        batch = slice(first, first + BATCH)
        clean = phantom.project(matrices[batch], 2 * BOX, SAMPLING_RATE)
        variance += float(_cut(clean).var(axis=(1, 2)).sum()) / count
        images[batch] = _cut(_filtered(clean, _ctf(defocus[batch]))) if ctf else _cut(clean)
    return Views(images, matrices, defocus, variance)


def with_noise(views, snr, seed) -> Views:
    """Add white noise of ``views.variance / snr``."""
    noise = np.random.default_rng(seed).normal(size=views.images.shape).astype(np.float32)
    return dataclasses.replace(
        views, images=views.images + np.sqrt(views.variance / snr, dtype=np.float32) * noise
    )


def wiener_corrected(views) -> Views:
    """Filter each image with ``CTF / (CTF^2 + 0.1 <CTF^2>)``, as Scipion has it done before the insertion.

    In twice the box, which is what ``xmipp_ctf_correct_wiener2d`` pads to.
    """
    corrected = np.empty_like(views.images)
    margin = BOX // 2
    for first in range(0, len(corrected), BATCH):
        batch = slice(first, first + BATCH)
        padded = np.pad(views.images[batch], ((0, 0), (margin, margin), (margin, margin)))
        ctf = _ctf(views.defocus[batch])
        squares = ctf**2
        filters = ctf / (squares + WIENER_CONSTANT * squares.mean(axis=(1, 2), keepdims=True))
        corrected[batch] = _cut(_filtered(padded, filters))
    return dataclasses.replace(views, images=corrected, defocus=np.zeros(0))


def _ctf(defocus):
    return ctf_image(2 * BOX, SAMPLING_RATE, defocus)


def _filtered(images, filters):
    fft = fft_module(images)
    return fft.irfft2(fft.rfft2(images) * filters, s=images.shape[1:])


def _cut(images):
    return images[:, BOX // 2 : BOX // 2 + BOX, BOX // 2 : BOX // 2 + BOX]


def write_particles(views, folder, name="particles") -> Particles:
    """Write the images; half sets alternate."""
    path = Path(folder) / f"{name}.mrcs"
    write_stack(path, views.images, SAMPLING_RATE)
    count = len(views.images)
    rot, tilt, psi = matrix_to_euler(views.matrices)
    has_ctf = len(views.defocus) > 0
    defocus = dict(defocus_u=views.defocus, defocus_v=views.defocus) if has_ctf else {}
    return Particles(
        [str(path)] * count, np.arange(count), rot, tilt, psi, half=1 + np.arange(count) % 2,
        sampling_rate=SAMPLING_RATE, has_pose=True, has_ctf=has_ctf, **defocus,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How well a noise-free map shows the phantom, both without frequencies beyond `BAND` / `BOX` cycles/px.

    With ``gain(region) = sum(map truth) / sum(truth^2)`` over voxels:

    Attributes
    ----------
    error : float
        Norm of the difference over that of the truth, after the scale that makes it least.
    gain : float
        Of the whole box: 1 where the density is right in absolute units.
    rim_over_core : float
        Gain in the outer third of the phantom's radius over that in the inner third: 1 where the apodisation by
        the interpolation is divided out rightly.
    """

    error: float
    gain: float
    rim_over_core: float


def compare(volume, truth) -> Fidelity:
    """Compare two maps (BOX, BOX, BOX)."""
    k = np.fft.fftfreq(BOX) * BOX
    band = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2 <= BAND**2
    found, true = (np.fft.ifftn(np.fft.fftn(part) * band).real for part in (volume, truth))
    axis = np.arange(BOX) - BOX // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)

    def gain(region):
        return float((found * true)[region].sum() / (true * true)[region].sum())

    scale = (found * true).sum() / (found * found).sum()
    return Fidelity(
        error=float(np.linalg.norm(scale * found - true) / np.linalg.norm(true)),
        gain=gain(np.ones_like(band)),
        rim_over_core=gain((radius > 2 * RADIUS / 3) & (radius <= RADIUS)) / gain(radius <= RADIUS / 3),
    )


def resolutions(full, halves, truth):
    """A where the half maps' FSC falls below 0.143 and the map's with the truth below 0.5, in the box's sphere."""
    mask = soft_sphere(BOX, BOX // 2 - 2, 4.0)
    half_map = fourier_shell_correlation(halves[0], halves[1], mask)
    true = fourier_shell_correlation(full, truth, mask)
    return (
        resolution_at(half_map, 0.143, SAMPLING_RATE, BOX),
        resolution_at(true, 0.5, SAMPLING_RATE, BOX),
    )
