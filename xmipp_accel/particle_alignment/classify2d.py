"""2D classification by expectation-maximisation that also splits, merges and anneals.

The iteration finds the nearest optimum only; what finds a good one is the path: classes are added where particles
fit worst, and those without which the particles would lose least are taken away again, as long as the mean
log-likelihood of the particles rises (Fritzke, "The breathing k-means algorithm", arXiv 2006.15666, 2020; Ueda et
al., Neural Computation 12 (2000), 2109).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.particle_alignment.classify2d_model import ClassModel, fit_model, signal_power
from xmipp_accel.particle_alignment.classify2d_search import (
    Poses,
    refine,
    search,
    search_grid,
    shift_samples,
    to_average_frame,
)
from xmipp_accel.particle_alignment.polar import angular_coefficients, samples_from_coefficients

_CANDIDATES = 3
_LEAST_WEIGHT = 1e-3
_REFERENCE_WEIGHT = 20.0  # particles that an initial reference counts for, until it is replaced by its own
_STANDSTILL = 1e-4


@dataclasses.dataclass(frozen=True)
class Sums:
    """What a model is made from.

    Attributes
    ----------
    numerator : (C, K, Q) complex64 array
    denominator : (C, K) float32 array
    residual : (K,) float64 host array
        Noise power relative to the background's.
    membership : (m, C) float32 array or None
        Share of each particle in each class, where the particles are still at hand.
    """

    numerator: Any
    denominator: Any
    residual: np.ndarray
    membership: Any


@dataclasses.dataclass(frozen=True)
class State:
    """A model, the poses that it gave its particles, and their shares in its sums."""

    model: ClassModel
    poses: Poses
    membership: Any

    @property
    def objective(self) -> float:
        """Mean log-likelihood gain of a particle's best pose over noise alone."""
        return float(self.poses.score[:, 0].mean())

    @property
    def labels(self) -> np.ndarray:
        """(m,) class of each particle, on the host."""
        return to_host(self.poses.label[:, 0])


class Classifier:
    """The steps of the classification for one set of choices.

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

    def start(self, particles, model) -> State:
        """Poses for a model that none of the particles has a share in."""
        xp = array_module(particles.samples)
        membership = xp.zeros((len(particles), len(model)), dtype=np.float32)
        return State(model, self.assign(particles, model, rounds=2), membership)

    def seed(self, particles, count) -> State:
        """Start from single particles, chosen at random."""
        xp = array_module(particles.samples)
        chosen = self.rng.choice(len(particles), min(count, len(particles)), replace=False)
        some = particles.take(xp.asarray(chosen))
        model = fit_model(some.coefficients, some.ctf2, particles, signal=signal_power(particles))
        membership = xp.zeros((len(particles), len(chosen)), dtype=np.float32)
        membership[xp.asarray(chosen), xp.arange(len(chosen))] = 1.0
        return State(model, self.assign(particles, model, membership), membership)

    def assign(self, particles, model, membership=None, previous=None, rounds=1) -> Poses:
        """Poses of the few best classes of each particle.

        Parameters
        ----------
        particles : PreparedParticles
        model : ClassModel
        membership : (m, C) array, optional
            As `Sums` has it.
        previous : Poses, optional
            Of a model whose classes had the same numbers; the best one of each particle is tried again.
        rounds : int
            Of refinement: 1 while classes are sought, 2 for the result.
        """
        space = search_grid(particles.grid, search_rings(model), self.max_shift)
        poses = search(particles, model, space, _CANDIDATES, membership, self.mirrors)
        if previous is not None:
            poses = poses.joined(previous.best())
        return refine(particles, model, poses, space, membership, rounds)

    def sums(self, particles, model, poses, temperature=1.0) -> Sums:
        """Sums over aligned particles, each shared between its classes by the likelihood at a temperature."""
        xp, grid, count = array_module(particles.samples), particles.grid, len(model)
        weight = xp.exp((poses.score - poses.score[:, :1]) / np.float32(temperature))
        weight = weight / weight.sum(axis=1, keepdims=True)
        rows, columns = xp.nonzero(weight > _LEAST_WEIGHT)
        weight, label = weight[rows, columns], poses.label[rows, columns]
        aligned = align(particles, rows, *(a[rows, columns] for a in (poses.theta, poses.shift, poses.mirrored)))
        share = xp.zeros((count, len(rows)), dtype=np.float32)
        share[label, xp.arange(len(rows))] = weight
        numerator = (share @ aligned.reshape(len(rows), -1)).reshape((count,) + aligned.shape[1:])
        cross = aligned.real * model.averages.real[label] + aligned.imag * model.averages.imag[label]
        cross = cross @ xp.asarray(grid.harmonic_weights.astype(np.float32))
        misfit = particles.energy[rows] - 2 * cross + particles.ctf2[rows] * model.energy[label]
        residual = to_host((weight[:, None] * misfit).sum(axis=0)).astype(np.float64) / len(particles)
        membership = xp.zeros((len(particles), count), dtype=np.float32)
        membership[rows, label] = weight
        residual = np.clip(residual / particles.noise_energy, 0.8, 5.0)
        return Sums(numerator.astype(np.complex64), share @ particles.ctf2[rows], residual, membership)

    def iterate(self, particles, state: State, iterations, temperature=1.0, rounds=1) -> State:
        """Expectation-maximisation steps on one set of particles; the best state that they pass through."""
        best = state
        for i in range(iterations):
            sums = self.sums(particles, state.model, state.poses, temperature)
            model = model_of(particles, sums, state.poses)
            poses = self.assign(particles, model, sums.membership, state.poses, rounds)
            state = State(model, poses, sums.membership)
            best = state if i == 0 or state.objective > best.objective else best
        return best

    def shrink(self, particles, state: State, count) -> State:
        """Take away the classes without which the particles would lose least, until `count` are left."""
        if count >= len(state.model):
            return state
        keep = most_useful(to_host(state.poses.label), to_host(state.poses.score), len(state.model), count)
        keep = array_module(state.poses.score).asarray(keep)
        model, membership = state.model.take(keep), state.membership[:, keep]
        return State(model, self.assign(particles, model, membership), membership)

    def grow(self, particles, state: State, count) -> State:
        """Add up to `count` classes, each made of the worse fitting half of an old one."""
        xp, total = array_module(state.poses.score), len(state.model)
        rows = xp.arange(len(particles))
        expected = 0.5 * (particles.ctf2 @ (state.model.weights * state.model.energy).T)
        deficit = to_host(expected[rows, state.poses.label[:, 0]] - state.poses.score[:, 0])
        label = state.labels.copy()
        parents: list[int] = []
        for parent in self._misfits(label, deficit, total, count):
            members = np.flatnonzero(label == parent)
            worse = members[np.argsort(-deficit[members])[: len(members) // 2]]
            label[worse] = total + len(parents)
            parents.append(parent)
        model = state.model.take(xp.asarray(np.concatenate([np.arange(total), parents]).astype(np.int64)))
        poses = dataclasses.replace(state.poses.best(), label=xp.asarray(label)[:, None])
        sums = self.sums(particles, model, poses)
        model = model_of(particles, sums, poses)
        return State(model, self.assign(particles, model, sums.membership), sums.membership)

    def _misfits(self, label, deficit, total, count):
        """Classes drawn with odds that grow with what their members miss of the score that they should have."""
        missing = np.bincount(label, np.maximum(deficit, 0.0), minlength=total)
        missing[np.bincount(label, minlength=total) < 4] = 0.0
        possible = np.flatnonzero(missing)
        count = min(count, len(possible))
        odds = missing[possible] ** 2
        return self.rng.choice(possible, count, replace=False, p=odds / odds.sum()) if count else possible

    def breathe(self, particles, state: State, count, rounds, report) -> State:
        """Split and merge while it helps; `report` is called after each round."""
        breath = max(1, count // 3)
        for _ in range(rounds):
            used = int((np.bincount(state.labels, minlength=1) > 0).sum())
            trial = self.grow(particles, self.shrink(particles, state, used), breath + count - used)
            trial = self.iterate(particles, trial, 2)
            if len(trial.model) > count:
                trial = self.shrink(particles, trial, count)
            trial = self.iterate(particles, trial, 2)
            gain = trial.objective - state.objective
            state = trial if gain > 0 else state
            report(state)
            if gain < 1e-3 * abs(state.objective):
                if breath == 1:
                    break
                breath //= 2
        return state

    def seed_from(self, particles, references) -> State:
        """Start from reference images, prepared like particles, whose scale is unknown."""
        expected = signal_power(particles) * particles.noise_energy
        scale = np.sqrt(expected.sum() / np.maximum(to_host(references.energy).sum(axis=1), 1e-30))
        xp = array_module(particles.samples)
        share = _REFERENCE_WEIGHT * particles.ctf2.mean(axis=0)
        numerator = references.coefficients * xp.asarray(scale.astype(np.float32))[:, None, None] * share[:, None]
        denominator = xp.tile(share, (len(references), 1))
        return self.start(particles, fit_model(numerator, denominator, particles, signal=signal_power(particles)))

    def anneal(self, particles, state: State, temperature) -> State:
        """Three iterations whose temperature falls to 1."""
        for exponent in (1.0, 0.5, 0.0):
            state = self.iterate(particles, state, 1, temperature**exponent)
        return state

    def converge(self, particles, state: State, iterations, report) -> State:
        """Iterate until the objective stands still, at most `iterations` times; the best state."""
        best = state
        for _ in range(iterations):
            state = self.iterate(particles, state, 1, rounds=2)
            report(state)
            gain = state.objective - best.objective
            best = state if gain > 0 else best
            if gain < _STANDSTILL * abs(best.objective):
                break
        return best

    def learn(self, particles, model, total: Sums, step) -> tuple[ClassModel, Sums, float]:
        """One step of online expectation-maximisation on particles that are not kept.

        The sums so far fade by ``1 - (step + 2)**-0.7`` (Cappe and Moulines, J. R. Stat. Soc. B 71 (2009), 593).

        Returns
        -------
        The new model, the new sums, and the mean log-likelihood gain of these particles.
        """
        state = self.start(particles, model)
        sums, fade = self.sums(particles, model, state.poses), 1.0 - (step + 2.0) ** -0.7
        total = Sums(
            fade * total.numerator + sums.numerator,
            fade * total.denominator + sums.denominator,
            fade * total.residual + (1 - fade) * sums.residual,
            None,
        )
        return model_of(particles, total, state.poses), total, state.objective


def model_of(particles, sums, poses) -> ClassModel:
    """Model of sums, with its averages centred."""
    numerator = shift_coefficients(sums.numerator, -decentring(poses, len(sums.numerator)), particles.grid)
    return fit_model(numerator, sums.denominator, particles, sums.residual)


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


def decentring(poses, count):
    """How far (count, 2) each average lies from where it should, (y, x) px.

    The particles of a class have no common offset in their own frames, so the mean of the shifts that act after
    the turns is the offset of the average. An average off the centre puts some of its particles out of reach.
    """
    xp = array_module(poses.score)
    shift = to_average_frame(poses.shift[:, 0], poses.theta[:, 0], poses.mirrored[:, 0])
    member = (poses.label[None, :, 0] == xp.arange(count)[:, None]).astype(np.float32)
    return member @ shift / (member.sum(axis=1, keepdims=True) + 1.0)


def shift_coefficients(coefficients, shifts, grid):
    """Harmonics (C, K, Q) of images shifted by `shifts` (C, 2), (y, x) px."""
    return angular_coefficients(shift_samples(samples_from_coefficients(coefficients, grid), shifts, grid), grid)


def search_rings(model, share=0.9) -> int:
    """Rings that hold `share` of the expected score, which the exhaustive search therefore needs; 6 to 16."""
    gain = to_host((model.weights * model.energy * model.denominator).sum(axis=0)).astype(np.float64)
    gain = np.cumsum(gain) / max(gain.sum(), 1e-30)
    return int(np.clip(np.searchsorted(gain, share) + 1, min(6, len(gain)), min(16, len(gain))))


def most_useful(label, score, total, count) -> np.ndarray:
    """Which classes to keep.

    Parameters
    ----------
    label, score : (m, L) host arrays
        The best classes of each particle, best first.
    total, count : int
        Number of classes, and how many to keep.

    Returns
    -------
    (count,) int64 array, ascending
    """
    keep = np.ones(total, dtype=bool)
    score = score.astype(np.float64)
    floor = np.where(np.isfinite(score), score, np.inf).min(axis=1, keepdims=True)
    for _ in range(total - count):
        # A particle without another candidate loses what lies between its first one and its last one.
        left = np.where(keep[label] & np.isfinite(score), score, floor)
        first = left.argmax(axis=1)[:, None]
        best = np.take_along_axis(left, first, 1)[:, 0]
        np.put_along_axis(left, first, floor, 1)
        loss = np.bincount(np.take_along_axis(label, first, 1)[:, 0], best - left.max(axis=1), minlength=total)
        loss[~keep] = np.inf
        keep[np.argmin(loss)] = False
    return np.flatnonzero(keep)
