"""All particles against all references: from images to the score and pose of every pair."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from xmipp_accel.backend import fft_module, to_host
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.numerics.ctf import ctf_at, ctf_image
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.gallery import content_radius, reference_coefficients
from xmipp_accel.particle_alignment.search import PolarSearch, normalize_references, refine_poses, shift_grid

EDGE = 3.0  # px, of the mask
_AUTOMATIC_RESOLUTION = 6.0  # A
_AUTOMATIC_NYQUIST_SHARE = 0.75
_MOST_RINGS = 40
_BATCH = 256
_REFINED = 8  # references a particle beyond those kept
_PAIRS = 1024  # polished at once
_WHITENING_SAMPLE = 500


@dataclasses.dataclass
class PairScores:
    """Score and pose of every pair: (n, R) NumPy arrays.

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

    @classmethod
    def empty(cls, n, n_references):
        """Scores of -inf and zero poses."""
        psi, shift_y, shift_x = np.zeros((3, n, n_references), np.float32)
        score = np.full((n, n_references), -np.inf, np.float32)
        return cls(score, psi, shift_y, shift_x, np.zeros((n, n_references), bool))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared, once the automatic parameters are chosen.

    Attributes
    ----------
    grid : polar.PolarGrid
    mask_radius : float
        Px.
    max_shift : float
        Px.
    shifts : (S, 2) array
        (y, x) px.
    resolution : float
        A; 0 if the sampling rate is unknown.
    """

    grid: polar.PolarGrid
    mask_radius: float
    max_shift: float
    shifts: np.ndarray
    resolution: float

    @property
    def independent(self) -> float:
        """Number of independent real data in a masked image within the band."""
        return math.pi**2 * (self.grid.n_rings * self.mask_radius / self.grid.box) ** 2


def choose_comparison(references, box, sampling_rate, parameters) -> Comparison:
    """Fill in mask radius, band limit and shift grid.

    Raises
    ------
    ParameterError
        The mask does not fit in the box, or the resolution is beyond Nyquist or needs the sampling rate.
    """
    field = box * references.relative_scale(box, sampling_rate)
    radius = parameters.mask_radius or content_radius(references) * field
    radius = radius if parameters.mask_radius else min(radius, 0.45 * box)
    if radius > box / 2:
        raise ParameterError(f"mask_radius: expected at most half the box ({box / 2:g} px), found {radius:g}")
    rings = _number_of_rings(box, sampling_rate, parameters.max_resolution)
    max_shift = parameters.largest_shift(box, sampling_rate)
    grid = polar.polar_grid(box, rings, radius + EDGE / 2, max_shift)
    # Slightly over half the period of the outermost ring: the polish bridges the rest.
    shifts = shift_grid(max_shift, 0.56 * box / rings)
    resolution = box * sampling_rate / rings if sampling_rate else 0.0
    return Comparison(grid, radius, max_shift, shifts, resolution)


def _number_of_rings(box, sampling_rate, max_resolution):
    nyquist = box // 2
    if max_resolution == 0:
        rings = min(_AUTOMATIC_NYQUIST_SHARE * nyquist, _MOST_RINGS)
        if sampling_rate:
            rings = min(rings, box * sampling_rate / _AUTOMATIC_RESOLUTION)
        return max(4, int(rings))
    if not sampling_rate:
        raise ParameterError("max_resolution: the particles' sampling rate is unknown")
    rings = int(box * sampling_rate / max_resolution)
    if rings > nyquist:
        raise ParameterError(
            f"max_resolution: expected at least {2 * sampling_rate:g} A, found {max_resolution:g}"
        )
    return max(2, rings)


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
        self.parameters, self.device = parameters, device
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
        self.weights = polar.ring_weights(grid)
        if parameters.whiten:
            self.weights = polar.ring_weights(grid, self._noise_power(particles))
        coefficients = reference_coefficients(references, grid, radius, EDGE, self.sampling_rate, device)
        coefficients = normalize_references(coefficients, grid, self.weights)
        self.energy = polar.ring_energy(coefficients, grid)
        if parameters.mirrors:
            coefficients = device.xp.concatenate([coefficients, polar.mirror_coefficients(coefficients)])
        self.coefficients = coefficients
        memory = parameters.memory_limit * 1e9 or 0.5 * device.free_memory()
        self.search = PolarSearch(grid, coefficients, self.weights, self.comparison.shifts, min(memory, 16e9))

    @property
    def independent(self) -> float:
        """Number of independent real data that a correlation compares."""
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

    def _noise_power(self, particles):
        """Mean power of the masked particles on each ring; at the usual SNR that is noise."""
        some = np.linspace(0, len(particles) - 1, min(len(particles), _WHITENING_SAMPLE)).astype(np.int64)
        images = self.device.asarray(particles.images(some), np.float32)
        samples = polar.polar_samples(polar.mask_images(images, self.mask), self.comparison.grid)
        return to_host((samples.real**2 + samples.imag**2).mean(axis=(0, 2)))

    def align(self, particles, result, rows, allowed=None):
        """Align `particles`, a batch, and store into `result` at `rows`.

        Parameters
        ----------
        particles : Particles
        result : PairScores
        rows : slice
        allowed : (m, R) bool array, optional
        """
        samples, scale = self._samples(particles)
        wanted = allowed
        if allowed is not None and self.parameters.mirrors:
            wanted = np.concatenate([allowed, allowed], axis=1)
        score, psi, shift = self.search(samples, wanted)
        poses = self.comparison.shifts[shift].astype(np.float32)
        score = score.reshape(len(score), -1, self.n_references) * scale[:, None, :]
        mirrored = score.argmax(axis=1) if self.parameters.mirrors else np.zeros(scale.shape, np.int64)

        def chosen(values):
            values = values.reshape(score.shape)
            return np.take_along_axis(values, mirrored[:, None, :], axis=1)[:, 0]

        result.score[rows], result.psi[rows] = chosen(score), chosen(psi)
        result.shift_y[rows], result.shift_x[rows] = chosen(poses[..., 0]), chosen(poses[..., 1])
        result.mirrored[rows] = mirrored.astype(bool)
        if self.parameters.refine:
            self._refine(samples, scale, result, rows)

    def _samples(self, particles):
        """Ring samples (m, K, Phi / 2), CTF-corrected, and factors (m, R) that turn scores into correlations."""
        grid, device = self.comparison.grid, self.device
        images = particles.images()
        if not np.isfinite(images).all():
            bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))[0])
            place = f"{particles.index[bad] + 1}@{particles.stack[bad]}"
            raise InputFileError(place, "finite pixel values", "NaN or infinity")
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        flat = high - low <= 1e-6 * np.maximum(np.abs(low), np.abs(high))
        images = device.asarray(images, np.float32)
        norm = np.ones((len(images), self.n_references))
        samples = polar.polar_samples(polar.mask_images(images, self.mask), grid)
        power = self._power(samples)
        if self.ctf != "none":
            corrected = self._apply_ctf(images, particles)
            samples = polar.polar_samples(polar.mask_images(corrected, self.mask), grid)
            if self.ctf == "phase_flip":
                power = self._power(samples)
            else:
                norm = np.sqrt(self._ring_gain(particles) @ to_host(self.energy).T.astype(np.float64))
        norm = norm * np.sqrt(power)[:, None]
        useful = ~flat[:, None] & (norm > 0)
        return samples, np.where(useful, 1 / np.where(useful, norm, 1.0), 0.0).astype(np.float32)

    def _power(self, samples):
        rings = to_host((samples.real**2 + samples.imag**2).mean(axis=2)).astype(np.float64)
        return rings @ self.weights

    def _optics(self, particles):
        names = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift")
        return {name: getattr(particles, name) for name in names}

    def _apply_ctf(self, images, particles):
        """Multiply the whole images: before the mask, the CTF gathers what it had spread beyond it."""
        fft = fft_module(images)
        ctf = ctf_image(self.box, self.sampling_rate, **self._optics(particles), xp=self.device.xp)
        if self.ctf == "phase_flip":
            ctf = self.device.xp.sign(ctf)
        elif self.parameters.phase_flipped:
            ctf = abs(ctf)
        return fft.irfft2(fft.rfft2(images) * ctf, s=images.shape[1:]).astype(np.float32)

    def _ring_gain(self, particles):
        """(m, K) weights times the CTF's mean square on each ring."""
        grid = self.comparison.grid
        radii = grid.radii / (self.box * self.sampling_rate)
        angles = grid.angles[None, :] + np.zeros((grid.n_rings, 1))
        ctf = ctf_at(np.repeat(radii[:, None] ** 2, angles.shape[1], 1), angles, **self._optics(particles))
        return (ctf.astype(np.float64) ** 2).mean(axis=2) * self.weights

    def _refine(self, samples, scale, result, rows):
        """Polish the best references of each particle, in place."""
        score = result.score[rows]
        count = min(self.parameters.keep_best + _REFINED, self.n_references)
        best = np.argpartition(-score, count - 1, axis=1)[:, :count]
        particle = np.repeat(np.arange(len(score)), count)
        reference = best.ravel()
        valid = np.isfinite(score[particle, reference])
        particle, reference = particle[valid], reference[valid]
        absolute = particle + rows.start
        operand = reference + self.n_references * result.mirrored[absolute, reference]
        for start in range(0, len(particle), _PAIRS):
            part = slice(start, start + _PAIRS)
            where = absolute[part], reference[part]
            value, psi, shifts = refine_poses(
                self.comparison.grid,
                self.coefficients[self.device.asarray(operand[part])],
                self.weights,
                samples[self.device.asarray(particle[part])],
                result.psi[where],
                np.column_stack([result.shift_y[where], result.shift_x[where]]),
                self.comparison.max_shift,
            )
            result.score[where] = value * scale[particle[part], reference[part]]
            result.psi[where], result.shift_y[where], result.shift_x[where] = psi, shifts[:, 0], shifts[:, 1]


def align_all(aligner, particles, progress=None, candidate_mask=None) -> PairScores:
    """Run an aligner over all particles in batches.

    Parameters
    ----------
    aligner : PolarAligner or xmipp_accel.particle_alignment.compat.OriginalAligner
    particles : Particles
    progress : callable, optional
        Called as ``progress(done, total)``.
    candidate_mask : (n, R) bool array, optional
    """
    n, n_references = len(particles), aligner.n_references
    if candidate_mask is not None:
        candidate_mask = np.asarray(candidate_mask, dtype=bool)
        if candidate_mask.shape != (n, n_references):
            expected = f"{n} particles x {n_references} references"
            raise ParameterError(f"candidate_mask: expected {expected}, found shape {candidate_mask.shape}")
    result = PairScores.empty(n, n_references)
    for start in range(0, n, _BATCH):
        rows = slice(start, min(start + _BATCH, n))
        allowed = None if candidate_mask is None else candidate_mask[rows]
        aligner.align(particles.take(np.arange(rows.start, rows.stop)), result, rows, allowed)
        if progress is not None:
            progress(rows.stop, n)
    return result
