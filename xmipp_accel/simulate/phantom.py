"""A protein-like density made of Gaussian blobs, whose volume, projections and Fourier transform are exact."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.numerics.symmetry import symmetry_matrices

_DOMAINS = (
    (0.50, (0.0, 0.0, 0.0)),
    (0.34, (0.62, 0.22, 0.10)),
    (0.26, (-0.35, 0.60, 0.25)),
    (0.20, (0.1, -0.3, 0.7)),
)
_BLOB_SIGMA = 2.2, 4.0  # A


@dataclasses.dataclass(frozen=True)
class Phantom:
    """Sum of Gaussian blobs.

    Attributes
    ----------
    centres : (m, 3) float64 array
        Positions (x, y, z) in A; the origin is the voxel ``n // 2`` of a sampled volume.
    sigmas : (m,) float64 array
        Standard deviations in A.
    masses : (m,) float64 array
        Integrals over space.
    """

    centres: np.ndarray
    sigmas: np.ndarray
    masses: np.ndarray

    def blurred(self, sigma: float) -> Phantom:
        """Phantom convolved with a Gaussian of `sigma` A."""
        return dataclasses.replace(self, sigmas=np.hypot(self.sigmas, sigma))

    def volume(self, size: int, sampling_rate: float) -> np.ndarray:
        """Density at the voxel centres.

        Parameters
        ----------
        size : int
            Edge in voxels.
        sampling_rate : float
            A/px.

        Returns
        -------
        (size, size, size) float32 array, axes (z, y, x), mass per A^3
        """
        x, y, z = (self._profiles(self.centres[:, axis], size, sampling_rate) for axis in range(3))
        plane = np.empty((size, size, size), dtype=np.float32)
        for k in range(size):
            plane[k] = (y * (self.masses * z[:, k])[:, None]).T @ x
        return plane

    def project(self, matrices, size: int, sampling_rate: float, displacements=None) -> np.ndarray:
        """Line integrals of the density, in units of the sampling rate, as sums over the voxels of a volume are.

        Parameters
        ----------
        matrices : (n, 3, 3) array
            Volume to image coordinates, as `numerics.rotations.euler_to_matrix` returns.
        size : int
            Edge of the images in px.
        sampling_rate : float
            A/px.
        displacements : (n, 2) array, optional
            Where (y, x) the particle's centre goes, in px from the pixel ``size // 2``.

        Returns
        -------
        (n, size, size) float32 array
        """
        matrices = np.asarray(matrices, dtype=np.float64).reshape(-1, 3, 3)
        displacements = np.zeros((len(matrices), 2)) if displacements is None else np.asarray(displacements)
        images = np.empty((len(matrices), size, size), dtype=np.float32)
        for i, matrix in enumerate(matrices):
            x, y, _ = matrix @ self.centres.T
            x = self._profiles(x + displacements[i, 1] * sampling_rate, size, sampling_rate)
            y = self._profiles(y + displacements[i, 0] * sampling_rate, size, sampling_rate)
            images[i] = (y * (self.masses / sampling_rate)[:, None]).T @ x
        return images

    def fourier(self, frequencies) -> np.ndarray:
        """Fourier transform, ``integral density(r) exp(-2 pi i k.r) dr``.

        Parameters
        ----------
        frequencies : (..., 3) array
            (kx, ky, kz) in 1/A.

        Returns
        -------
        (...) complex128 array
        """
        k = np.asarray(frequencies, dtype=np.float64)
        decay = np.exp(-2 * np.pi**2 * np.sum(k * k, axis=-1)[..., None] * self.sigmas**2)
        return np.sum(self.masses * decay * np.exp(-2j * np.pi * (k @ self.centres.T)), axis=-1)

    def _profiles(self, positions, size, sampling_rate):
        """Normalised Gaussians (m, size) along one axis."""
        grid = (np.arange(size) - size // 2) * sampling_rate
        u = (grid - positions[:, None]) / self.sigmas[:, None]
        return np.exp(-0.5 * u * u) / (np.sqrt(2 * np.pi) * self.sigmas[:, None])


def protein_phantom(diameter: float = 140.0, seed: int = 0, symmetry: str = "c1") -> Phantom:
    """Random compact chain of several domains of unequal size, which looks different from every direction.

    Parameters
    ----------
    diameter : float
        Of the smallest sphere around the origin that holds every blob's centre, A. The number of blobs grows with
        its cube, up to a few hundred for an asymmetric unit.
    seed : int
        Another seed gives another molecule.
    symmetry : str
        Point group of `numerics.symmetry.symmetry_matrices`; its copies touch but do not coincide.

    Returns
    -------
    Phantom
        With its centre of mass at the origin.
    """
    rng = np.random.default_rng(seed)
    operators = symmetry_matrices(symmetry)
    count = int(np.clip(300 * (diameter / 140.0) ** 3, 80, 600)) // max(1, len(operators) // 3)
    centres = _chain(max(count, 30), rng)
    if len(operators) > 1:
        # Off every axis, so that the copies surround the origin; a random turn avoids accidental symmetry.
        centres = (centres - centres.mean(axis=0)) @ random_matrices(1, rng)[0].T
        centres = centres + 1.1 * rng.permutation([0.75, 0.45, 0.55]) * np.abs(centres).max()
    sigmas = rng.uniform(*_BLOB_SIGMA, len(centres))
    masses = rng.uniform(0.6, 1.4, len(centres))
    centres = np.concatenate([centres @ operator.T for operator in operators])
    sigmas, masses = np.tile(sigmas, len(operators)), np.tile(masses, len(operators))
    centres = centres - np.average(centres, axis=0, weights=masses)
    centres *= 0.5 * diameter / np.linalg.norm(centres, axis=1).max()
    return Phantom(centres, sigmas, masses)


def _chain(count, rng):
    """Positions (count, 3) of a walk that fills one ellipsoid after the other; the diameter is about 1.5."""
    shares = np.array([radius**2 for radius, _ in _DOMAINS])
    lengths = np.maximum(4, np.rint(count * shares / shares.sum()).astype(int))
    points = []
    for (radius, middle), length in zip(_DOMAINS, lengths):
        axes = radius * rng.permutation([0.55, 0.8, 1.25])
        turn = random_matrices(1, rng)[0]
        points.append(_confined_walk(length, rng) * axes @ turn.T + np.asarray(middle))
    return np.concatenate(points)


def _confined_walk(length, rng):
    """Persistent random walk (length, 3) in the unit ball that keeps away from where it has been."""
    step = 1.6 * length ** (-1 / 3)
    path = np.zeros((length, 3))
    heading = random_matrices(1, rng)[0][0]
    for i in range(1, length):
        trial = heading + 0.9 * rng.normal(size=(24, 3))
        trial = path[i - 1] + step * trial / np.linalg.norm(trial, axis=1, keepdims=True)
        crowd = np.linalg.norm(trial[:, None] - path[None, :i], axis=2).min(axis=1)
        outside = np.maximum(np.linalg.norm(trial, axis=1) - 1.0, 0.0)
        path[i] = trial[np.argmax(np.minimum(crowd, step) - 3.0 * outside)]
        heading = (path[i] - path[i - 1]) / step
    return path
