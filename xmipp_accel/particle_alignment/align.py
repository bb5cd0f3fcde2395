"""All particles against all references, in two stages: every pair coarsely, the best ones finely.

The first stage compares every pair on the inner Fourier rings, at shifts half a period of the outermost of them
apart. The second compares the best references of a particle on all rings, at finer shifts around those that the
first found. A polish takes the best of them to the maximum of the score. What a score tells grows with the number
of rings, and its cost with the third power: so the first stage finds, and the second tells apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.statistics import usable_rows
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.comparison import EDGE, choose_comparison
from xmipp_accel.particle_alignment.gallery import reference_coefficients
from xmipp_accel.particle_alignment.polish import refine_poses
from xmipp_accel.particle_alignment.ring_samples import ring_samples
from xmipp_accel.particle_alignment.search import PolarSearch, normalize_references

_WINDOWS = 3  # coarse shifts of a particle around which finer ones are tried
_PAIRS = {"numpy": 1024, "cupy": 16384}  # polished at once
_WHITENING_SAMPLE = 500


@dataclasses.dataclass
class Poses:
    """Poses of particles relative to T references each: (m, T) NumPy arrays.

    Attributes
    ----------
    score : float32
        Correlation in [-1, 1]; -inf for excluded pairs.
    psi : float32
        Degrees.
    shift_y, shift_x : float32
        Px, to apply to the particle.
    mirrored : bool
        Whether the reference, mirrored along x, fitted better; the pose is then relative to that.
    """

    score: np.ndarray
    psi: np.ndarray
    shift_y: np.ndarray
    shift_x: np.ndarray
    mirrored: np.ndarray

    def take(self, columns) -> Poses:
        """Those of some columns (m, t) of each row."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Poses(*(np.take_along_axis(values, columns, axis=1) for values in fields))


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Particles on the rings of the second stage.

    Attributes
    ----------
    values, power, gain
        As `ring_samples` returns them.
    useful : (m,) bool NumPy array
        False for images that are constant or not finite.
    """

    values: Any
    power: np.ndarray
    gain: Any
    useful: np.ndarray


class _Stage:
    """The references on the rings of one grid, and the search among them."""

    def __init__(self, grid, coefficients, weights, mirrors, memory):
        self.grid, self.weights = grid, weights[: grid.n_rings] / weights[: grid.n_rings].sum()
        coefficients = coefficients[:, : grid.n_rings, : grid.n_harmonics]
        coefficients = normalize_references(coefficients, grid, self.weights)
        self.energy = to_host(polar.ring_energy(coefficients, grid)).astype(np.float64)
        if mirrors:
            both = [coefficients, polar.mirror_coefficients(coefficients)]
            coefficients = array_module(coefficients).concatenate(both)
        self.coefficients = coefficients
        self.search = PolarSearch(grid, coefficients, self.weights, memory)

    def scale(self, samples):
        """Factors (m, R) float32 that turn scores into correlations; 0 for particles that cannot be used."""
        rings = slice(0, self.grid.n_rings)
        norm = np.sqrt(samples.power[:, rings] @ self.weights)[:, None]
        if samples.gain is None:
            norm = np.broadcast_to(norm, (len(norm), len(self.energy)))
        else:
            norm = norm * np.sqrt((samples.gain[:, rings] * self.weights) @ self.energy.T)
        useful = samples.useful[:, None] & (norm > 0)
        return np.where(useful, 1 / np.where(useful, norm, 1.0), 0.0).astype(np.float32)


class PolarAligner:
    """Aligns batches of particles to fixed references in polar Fourier space.

    Parameters
    ----------
    references : References
    particles : Particles
        All of them.
    parameters : AlignSignificantParameters
    device : Device
    """

    def __init__(self, references, particles, parameters, device):
        self.device, self.mirrors, self.phase_flipped = device, parameters.mirrors, parameters.phase_flipped
        self.box, self.sampling_rate = particles.box, particles.sampling_rate
        self.comparison = choose_comparison(references, self.box, self.sampling_rate, parameters)
        self.n_references = len(references)
        grid, radius = self.comparison.grid, self.comparison.mask_radius
        self.mask = device.asarray(polar.soft_circle(self.box, radius, EDGE))
        self.ctf = parameters.ctf if particles.has_ctf else "none"
        if self.ctf != "none" and not self.sampling_rate:
            raise ParameterError("ctf: the particles' sampling rate is unknown")
        if self.ctf == "phase_flip" and parameters.phase_flipped:
            self.ctf = "none"
        weights = polar.ring_weights(grid, self._noise_power(particles) if parameters.whiten else None)
        coefficients = reference_coefficients(references, grid, radius, EDGE, self.sampling_rate, device)
        memory = min(parameters.memory_limit * 1e9 or 0.5 * device.free_memory(), 16e9)
        stage = coefficients, weights, parameters.mirrors, memory
        self.coarse, self.fine = _Stage(self.comparison.coarse, *stage), _Stage(grid, *stage)

    @property
    def independent(self) -> float:
        """Number of independent real data that the score of :meth:`compare` is made of."""
        return self.comparison.independent

    @property
    def max_shift(self) -> float:
        """Px."""
        return self.comparison.max_shift

    @property
    def description(self) -> dict:
        """Numbers for the result."""
        return dict(
            n_rings=self.comparison.grid.n_rings,
            n_harmonics=self.comparison.grid.n_harmonics,
            n_shifts=len(self.comparison.shifts),
            resolution=self.comparison.resolution,
            mask_radius=self.comparison.mask_radius,
        )

    def compare(self, particles, allowed=None) -> PolarComparison:
        """Compare a batch with all references.

        Parameters
        ----------
        particles : Particles
        allowed : (m, R) bool array, optional
        """
        return PolarComparison(self, self._samples(particles), allowed)

    def _noise_power(self, particles):
        """Mean power of the masked particles on each ring; at the usual SNR that is noise."""
        some = np.linspace(0, len(particles) - 1, min(len(particles), _WHITENING_SAMPLE)).astype(np.int64)
        images = self.device.asarray(particles.images(some), np.float32)
        return ring_samples(images, self.mask, self.comparison.grid)[1].mean(axis=0)

    def _samples(self, particles):
        images = self.device.asarray(particles.images(), np.float32)
        useful = usable_rows(images)
        if not useful.all():
            images[self.device.asarray(~useful)] = 0
        how = self.ctf, particles.ctf_parameters(), self.sampling_rate, self.phase_flipped
        values, power, gain = ring_samples(images, self.mask, self.comparison.grid, *how)
        return _Samples(values, power, gain, useful)


class PolarComparison:
    """One batch of particles compared with all references.

    Attributes
    ----------
    score : (m, R) float32 NumPy array
        Correlations on the inner rings; -inf for excluded pairs and for images that cannot be used.
    useful : (m,) bool NumPy array
        False for images that are constant or not finite.
    """

    def __init__(self, aligner, samples, allowed=None):
        self._aligner, self._samples = aligner, samples
        self.useful = samples.useful
        n_references, stage = aligner.n_references, aligner.coarse
        values = samples.values[:, : stage.grid.n_rings]
        candidates = None
        if allowed is not None:
            both = np.concatenate([allowed, allowed], axis=1) if aligner.mirrors else allowed
            candidates = np.where(both, np.arange(both.shape[1]), -1)
        score, _, shift = (to_host(a) for a in stage.search(values, aligner.comparison.shifts, candidates))
        scale = stage.scale(samples)
        self.score, self._shift = score[:, :n_references], shift[:, :n_references]
        self._mirrored = np.zeros(self.score.shape, bool)
        if aligner.mirrors:
            self._mirrored = score[:, n_references:] > self.score
            self.score = np.where(self._mirrored, score[:, n_references:], self.score)
            self._shift = np.where(self._mirrored, shift[:, n_references:], self._shift)
        # Where nothing was compared, -inf must stay although the factor may be 0.
        self.score = np.where(np.isfinite(self.score), self.score, 0) * scale
        self.score[~self.useful] = -np.inf
        if allowed is not None:
            self.score[~allowed] = -np.inf

    def poses(self, references) -> Poses:
        """Poses relative to some references (m, T) of each particle, on the second stage's grid."""
        aligner = self._aligner
        mirrored = np.take_along_axis(self._mirrored, references, axis=1)
        excluded = ~np.isfinite(np.take_along_axis(self.score, references, axis=1))
        candidates = np.where(excluded, -1, references + aligner.n_references * mirrored)
        shifts = self._windows(references)
        score, psi, place = (to_host(a) for a in aligner.fine.search(self._samples.values, shifts, candidates))
        shift = np.take_along_axis(shifts, place[..., None].astype(np.int64), axis=1).astype(np.float32)
        scale = np.take_along_axis(aligner.fine.scale(self._samples), references, axis=1)
        score = np.where(excluded, np.float32(-np.inf), np.where(excluded, 0, score) * scale)
        return Poses(score, psi, shift[..., 0], shift[..., 1], mirrored)

    def _windows(self, references):
        """Shifts (m, S, 2) of the second stage: around those of the first that belong to the best scores."""
        comparison = self._aligner.comparison
        score = np.take_along_axis(self.score, references, axis=1)
        best = np.full((len(score), len(comparison.shifts)), -np.inf, dtype=np.float32)
        rows = np.broadcast_to(np.arange(len(score))[:, None], score.shape)
        np.maximum.at(best, (rows, np.take_along_axis(self._shift, references, axis=1)), score)
        chosen = comparison.shifts[np.argsort(-best, axis=1, kind="stable")[:, :_WINDOWS]]
        shifts = (chosen[:, :, None] + comparison.offsets).reshape(len(score), -1, 2)
        length = np.hypot(shifts[..., 0], shifts[..., 1])[..., None]
        return shifts * np.minimum(1.0, comparison.max_shift / np.maximum(length, 1e-12))

    def polished(self, references, poses) -> Poses:
        """Poses (m, t) relative to references (m, t), taken to the maximum of the score."""
        aligner = self._aligner
        stage, device, limit = aligner.fine, aligner.device, aligner.comparison.max_shift
        scale = np.take_along_axis(stage.scale(self._samples), references, axis=1)
        operands = references + aligner.n_references * poses.mirrored
        rows, columns = np.nonzero(np.isfinite(poses.score))
        result = Poses(*(getattr(poses, field.name).copy() for field in dataclasses.fields(poses)))
        size = _PAIRS[device.xp.__name__]
        for start in range(0, len(rows), size):
            where = rows[start : start + size], columns[start : start + size]
            value, psi, shifts = refine_poses(
                stage.grid,
                stage.coefficients[device.asarray(operands[where])],
                stage.weights,
                self._samples.values[device.asarray(where[0])],
                poses.psi[where],
                np.column_stack([poses.shift_y[where], poses.shift_x[where]]),
                limit,
            )
            result.score[where] = value * scale[where]
            result.psi[where], result.shift_y[where], result.shift_x[where] = psi, shifts[:, 0], shifts[:, 1]
        return result
