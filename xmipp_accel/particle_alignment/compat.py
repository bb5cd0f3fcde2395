"""The pair alignment of Xmipp's ``cuda_align_significant``, after its description, in float64.

For each pair the particle is turned and shifted in three rounds, once beginning with the rotation and once with
the shift; each step maximises a correlation, of polar rings or of whole images, over the grid of its values. The
result is the pose whose Pearson correlation over the whole frame is larger. It serves to compare with the
original; it is slow.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.numerics.statistics import usable_rows
from xmipp_accel.particle_alignment.align import Poses
from xmipp_accel.particle_alignment.gallery import reference_images
from xmipp_accel.particle_alignment.poses import apply_poses

_ROUNDS = 3
# The original interpolates only where a next row and column are there, so it loses the last ones of the particle.
_MARGIN = -1e-6


class OriginalAligner:
    """Aligns batches of particles to references as the original does; only `max_shift` of the parameters counts.

    The original's own limit is a quarter of the box (25 %).

    Parameters
    ----------
    references : References
    particles : Particles
    parameters : AlignSignificantParameters
    device : Device
    """

    def __init__(self, references, particles, parameters, device):
        self.device, self.box = device, particles.box
        self.n_references = len(references)
        self.max_shift = parameters.largest_shift(self.box, particles.sampling_rate)
        self.images = reference_images(references, self.box, particles.sampling_rate, device)
        self.description = dict(
            n_rings=0, n_harmonics=0, n_shifts=0, resolution=2 * particles.sampling_rate, mask_radius=self.box / 2
        )
        self.independent = float(self.box**2)

    def compare(self, particles, allowed=None) -> OriginalComparison:
        """Align a batch with every reference, where `allowed` (m, R) does not exclude it."""
        images = particles.images()
        useful = usable_rows(images)
        images = self.device.asarray(np.where(useful[:, None, None], images, 0), np.float64)
        scores, poses = zip(*(self._align(number, images) for number in range(self.n_references)))
        score, pose = np.stack(scores, axis=1).astype(np.float32), np.stack(poses, axis=1)
        score[~useful] = -np.inf
        if allowed is not None:
            score[~allowed] = -np.inf
        return OriginalComparison(score, pose, useful)

    def _align(self, number, images):
        return align_pairs(self.device.asarray(self.images[number], np.float64), images, self.max_shift)


@dataclasses.dataclass(frozen=True)
class OriginalComparison:
    """One batch of particles aligned with all references.

    Attributes
    ----------
    score : (m, R) float32 NumPy array
    pose : (m, R, 3) float64 NumPy array
        psi (degrees), shift x, shift y (px), in the projection convention.
    useful : (m,) bool NumPy array
        False for images that are constant or not finite.
    """

    score: np.ndarray
    pose: np.ndarray
    useful: np.ndarray

    def poses(self, references) -> Poses:
        """Poses relative to some references (m, T) of each particle."""
        psi, shift_x, shift_y = np.moveaxis(np.take_along_axis(self.pose, references[..., None], axis=1), -1, 0)
        score = np.take_along_axis(self.score, references, axis=1)
        return Poses(score, psi, shift_y, shift_x, np.zeros(score.shape, bool))

    def polished(self, _, poses) -> Poses:
        """The same: the original knows no polish."""
        return poses


def align_pairs(reference, images, max_shift):
    """Align images to one reference.

    Parameters
    ----------
    reference : (N, N) float64 array
    images : (n, N, N) float64 array
    max_shift : float
        Px.

    Returns
    -------
    merit : (n,) float64 NumPy array
        Pearson correlation over the whole frame.
    pose : (n, 3) float64 NumPy array
        psi (degrees), shift x, shift y (px), in the projection convention.
    """
    results = [_one_order(reference, images, max_shift, first) for first in ("rotation", "shift")]
    (merit, pose), (other_merit, other_pose) = results
    better = other_merit > merit
    return np.where(better, other_merit, merit), np.where(better[:, None], other_pose, pose)


def _one_order(reference, images, max_shift, first):
    matrices = np.tile(np.eye(3), (len(images), 1, 1))
    moved = images
    steps = (_rotation_step, _shift_step) if first == "rotation" else (_shift_step, _rotation_step)
    for _ in range(_ROUNDS):
        for step in steps:
            matrices = step(reference, moved, max_shift) @ matrices
            # Always from the original image, so that interpolation errors do not add up.
            pose = _pose(matrices)
            psi, shift_x, shift_y = pose.T
            moved = apply_poses(images, psi, shift_x, shift_y, margin=_MARGIN)
    return _pearson(reference, moved), pose


def _pose(matrices):
    inverse = np.linalg.inv(matrices)
    psi = np.rad2deg(np.arctan2(inverse[:, 0, 1], inverse[:, 0, 0]))
    return np.column_stack([psi, -inverse[:, 0, 2], -inverse[:, 1, 2]])


def _shift_step(reference, images, max_shift):
    """Integer translation that maximises the circular correlation."""
    fft, box = fft_module(images), images.shape[-1]
    product = fft.fft2(reference)[None] * fft.fft2(images).conj()
    correlation = to_host(fft.ifft2(product).real)
    offset = np.rint(np.fft.fftfreq(box) * box)
    allowed = offset[:, None] ** 2 + offset[None, :] ** 2 <= max_shift**2
    flat = np.where(allowed, correlation, -np.inf).reshape(len(images), -1).argmax(axis=1)
    matrices = np.tile(np.eye(3), (len(images), 1, 1))
    matrices[:, 0, 2], matrices[:, 1, 2] = offset[flat % box], offset[flat // box]
    return matrices


def _rotation_step(reference, images, _):
    """Rotation that maximises the correlation of the rings, each weighted by its radius squared."""
    fft = fft_module(images)
    rings = _rings(reference[None])
    spectrum = (fft.rfft(rings, axis=-1) * fft.rfft(_rings(images), axis=-1).conj()).sum(axis=1)
    steps = rings.shape[-1]
    theta = 2 * np.pi * to_host(fft.irfft(spectrum, n=steps, axis=-1)).argmax(axis=1) / steps
    matrices = np.tile(np.eye(3), (len(images), 1, 1))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(theta)
    matrices[:, 0, 1], matrices[:, 1, 0] = np.sin(theta), -np.sin(theta)
    return matrices


def _rings(images):
    """Rings (n, rho, A) about ``N // 2``, one px apart, times ``rho / rho_max``; angles go from y towards x."""
    box = images.shape[-1]
    inner, outer = max(2, box // 20), (box - 3) // 2
    rho = np.arange(inner, outer + 1, dtype=np.float64)[:, None]
    count = 2 * math.floor(math.pi * outer)
    phi = 2 * np.pi * np.arange(count) / count
    x, y = box // 2 + rho * np.sin(phi), box // 2 + rho * np.cos(phi)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    total = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - (y - top)) * np.abs(1 - dx - (x - left)) * rho / outer
            weight, place = _like(images, weight, (top + dy) * box + left + dx)
            total = total + images.reshape(len(images), -1)[:, place] * weight
    return total


def _like(images, *arrays):
    xp = array_module(images)
    return [xp.asarray(array) for array in arrays]


def _pearson(reference, images):
    a = reference - reference.mean()
    b = images - images.mean(axis=(1, 2), keepdims=True)
    norm = (a * a).sum() * (b * b).sum(axis=(1, 2))
    return to_host((a * b).sum(axis=(1, 2)) / (norm + (norm == 0)) ** 0.5)
