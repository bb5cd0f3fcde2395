"""2D classification by expectation-maximisation that also splits, merges and anneals.

The iteration finds the nearest optimum only; what finds a good one is the path (Fritzke, "The breathing k-means
algorithm", arXiv 2006.15666; Ueda et al., Neural Computation 12 (2000), 2109): classes are added where particles fit
worst, and those without which the particles would lose least are taken away again, as long as the mean
log-likelihood of the particles rises.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.particle_alignment.classify2d_model import ClassModel, fit_model, signal_power
from xmipp_accel.particle_alignment.classify2d_search import Poses, refine, search, search_grid, shift_samples
from xmipp_accel.particle_alignment.polar import angular_coefficients, ring_energy

_CANDIDATES = 3
_LEAST_WEIGHT = 1e-3


@dataclasses.dataclass(frozen=True)
class Sums:
    """What a model is made from; of several batches, it adds up.

    Attributes
    ----------
    numerator : (C, K, Q) complex64 array
    denominator : (C, K) float32 array
    residual : (K,) float64 host array
        Noise power relative to the background's.
    """

    numerator: Any
    denominator: Any
    residual: np.ndarray


@dataclasses.dataclass(frozen=True)
class State:
    """A model, with the poses that it gave its particles."""

    model: ClassModel
    poses: Poses

    @property
    def objective(self) -> float:
        """Mean log-likelihood gain of a particle's best pose."""
        return float(self.poses.score[:, 0].mean())

    @property
    def labels(self) -> np.ndarray:
        """(m,) class of each particle, on the host."""
        return to_host(self.poses.template[:, 0]) % len(self.model)


class Classifier:
    """The steps of the classification, for one set of choices.

    Parameters
    ----------
    max_shift : float
        Px.
    mirrors : bool
    seed : int
    """

    def __init__(self, max_shift, mirrors=False, seed=0):
        self.max_shift = max_shift
        self.mirrors = mirrors
        self.rng = np.random.default_rng(seed)

    def seeds(self, particles, count) -> ClassModel:
        """Model whose averages are single particles that differ from one another, chosen at random."""
        chosen = self.rng.choice(len(particles), min(count, len(particles)), replace=False)
        xp = array_module(particles.samples)
        some = particles.take(xp.asarray(np.sort(chosen)))
        return fit_model(some.coefficients, some.ctf2, particles, signal=signal_power(particles))

    def assign(self, particles, model) -> Poses:
        """Poses of the few best classes of each particle."""
        space = search_grid(particles.grid, search_rings(model), self.max_shift)
        poses = search(particles, model, space, _CANDIDATES, self.mirrors)
        return refine(particles, model, poses, space, mirrors=self.mirrors)

    def readjust(self, particles, model, poses) -> Poses:
        """Poses near those of a previous model whose classes had the same numbers."""
        space = search_grid(particles.grid, search_rings(model), self.max_shift)
        return refine(particles, model, poses, space, rounds=1, mirrors=self.mirrors)

    def sums(self, particles, model, poses, temperature=1.0) -> Sums:
        """Sums over aligned particles, each shared between its classes by the likelihood at a temperature."""
        xp, grid = array_module(particles.samples), particles.grid
        weight = xp.exp((poses.score - poses.score[:, :1]) / temperature)
        weight = weight / weight.sum(axis=1, keepdims=True)
        rows, columns = xp.nonzero(weight > _LEAST_WEIGHT)
        weight = weight[rows, columns]
        template = poses.template[rows, columns]
        aligned = align(particles, rows, poses.theta[rows, columns], poses.shift[rows, columns], template >= len(model))
        classes = template % len(model)
        share = xp.zeros((len(model), len(rows)), dtype=np.float32)
        share[classes, xp.arange(len(rows))] = weight
        numerator = (share @ aligned.reshape(len(rows), -1)).reshape((len(model),) + aligned.shape[1:])
        cross = (aligned.real * model.averages.real[classes] + aligned.imag * model.averages.imag[classes])
        cross = cross @ xp.asarray(grid.harmonic_weights.astype(np.float32))
        misfit = particles.energy[rows] - 2 * cross + particles.ctf2[rows] * model.energy[classes]
        residual = to_host((weight[:, None] * misfit).sum(axis=0)).astype(np.float64) / len(particles)
        residual = np.clip(residual / particles.noise_energy, 0.8, 5.0)
        return Sums(numerator.astype(np.complex64), share @ particles.ctf2[rows], residual)

    def iterate(self, particles, state: State, iterations, temperature=1.0, exhaustive=True) -> State:
        """Expectation-maximisation steps on one set of particles."""
        for _ in range(iterations):
            sums = self.sums(particles, state.model, state.poses, temperature)
            model = fit_model(sums.numerator, sums.denominator, particles, sums.residual)
            if exhaustive:
                poses = self.assign(particles, model)
            else:
                poses = self.readjust(particles, model, state.poses)
            state = State(model, poses)
        return state


def align(particles, rows, theta, shift, mirrored):
    """Harmonics (p, K, Q) complex64 of some particles in the frame of their averages."""
    xp, grid = array_module(particles.samples), particles.grid
    q = xp.arange(grid.n_harmonics, dtype=np.float32)
    result = xp.empty((len(rows), grid.n_rings, grid.n_harmonics), dtype=np.complex64)
    for first in range(0, len(rows), 512):
        part = slice(first, first + 512)
        moved = angular_coefficients(shift_samples(particles.samples[rows[part]], shift[part], grid), grid)
        moved = moved * xp.exp(1j * theta[part, None] * q)[:, None]
        result[part] = xp.where(mirrored[part, None, None], moved.conj(), moved)
    return result


def search_rings(model, share=0.9) -> int:
    """Rings that hold `share` of the expected score, which the exhaustive search therefore needs."""
    gain = to_host((model.weights * model.energy * model.denominator).sum(axis=0)).astype(np.float64)
    gain = np.cumsum(gain) / max(gain.sum(), 1e-30)
    return int(np.clip(np.searchsorted(gain, share) + 1, min(6, len(gain)), min(16, len(gain))))
