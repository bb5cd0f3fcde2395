"""The two steps of expectation-maximisation on particles that lie in blocks on one or several devices."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.particle_alignment.classify2d_model import Typical
from xmipp_accel.particle_alignment.classify2d_poses import Poses, Shares, join_poses
from xmipp_accel.particle_alignment.classify2d_refine import aligned_harmonics
from xmipp_accel.particle_alignment.classify2d_search import PoseSearch, search_grid

CANDIDATES = 3  # classes of a particle that are kept
_LEFT_OUT = 1.0
_NOISE_RANGE = 0.8, 5.0  # relative to the background


class Batch:
    """Particles that are prepared and at hand.

    Parameters
    ----------
    workers : Workers
    blocks : list of PreparedParticles or None
        Each on the device of ``workers.of`` its number; None where a block has no image that can be used.

    Attributes
    ----------
    typical : Typical
    """

    def __init__(self, workers, blocks):
        self.workers = workers
        ends = np.cumsum([0 if block is None else len(block) for block in blocks]).tolist()
        self._count, starts = ends[-1], [0, *ends[:-1]]
        self._blocks = [block and (block, slice(*ends)) for block, *ends in zip(blocks, starts, ends)]
        self.typical = self._typical(next(block for block in blocks if block is not None))

    def __len__(self):
        return self._count

    def _typical(self, any_block):
        def add(_worker, _prepared, particles, _rows):
            return [to_host(array.sum(axis=0)).astype(np.float64) for array in (particles.ctf2, particles.energy)]

        means = [sum(parts) / self._count for parts in zip(*self.map(add))]
        return Typical(any_block.grid, any_block.noise_energy, *means)

    def map(self, function, prepare=None):
        """Results of ``function(worker, prepared, particles, rows)`` for each block, `rows` being its slice."""
        return self.workers.map(function, self._blocks, prepare)

    def coefficients(self, chosen):
        """Harmonics (n, K, Q) and mean squared CTFs (n, K) of some particles, on the host."""
        chosen = np.asarray(chosen)

        def pick(_worker, _prepared, particles, rows):
            inside = chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start
            inside = array_module(particles.samples).asarray(inside)
            return to_host(particles.coefficients[inside]), to_host(particles.ctf2[inside])

        return tuple(np.concatenate(parts) for parts in zip(*self.map(pick)))


@dataclasses.dataclass(frozen=True)
class Sums:
    """What a model is made from; host arrays.

    Attributes
    ----------
    numerator : (C, K, Q) complex64 array
    denominator : (C, K) float32 array
    residual : (K,) float64 array
        Noise power relative to the background's.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    residual: np.ndarray

    def faded(self, fade, other) -> Sums:
        """`fade` times these plus `other`."""
        return Sums(
            (fade * self.numerator + other.numerator).astype(np.complex64),
            (fade * self.denominator + other.denominator).astype(np.float32),
            fade * self.residual + (1 - fade) * other.residual,
        )


def assign(batch, model, max_shift, mirrors, shares=None, previous=None, near=False, rounds=1) -> Poses:
    """Poses of the few best classes of each particle, on the host.

    Parameters
    ----------
    batch : Batch
    model : ClassModel
    max_shift : float
        Px.
    mirrors : bool
    shares : Shares, optional
        In the sums that the model was made from.
    previous : Poses, optional
        Of a model whose classes had the same numbers; the best one of each particle is tried again.
    near : bool
        Try only shifts near the previous ones.
    rounds : int
        Of refinement: 1 while classes are sought, 2 for the result.
    """

    def find(worker, search, particles, rows):
        membership = shares and shares.rows(rows).dense(len(model), worker.device.xp)
        again = previous and previous.best().each(lambda array: worker.device.asarray(array[rows]))
        poses = search.poses(particles, CANDIDATES, membership, again, near, rounds, worker.budget)
        return poses.each(to_host)

    return join_poses(batch.map(find, searcher(model, max_shift, mirrors, near)))


def searcher(model, max_shift, mirrors, near=False):
    """Function that makes a worker's `PoseSearch`."""
    space = search_grid(model.grid, search_rings(model), max_shift, near)
    return lambda worker: PoseSearch(model.on(worker.device), space, mirrors)


def search_rings(model) -> int:
    """Rings that the exhaustive search needs, 6 to 16.

    The rings left out are expected to add less than `_LEFT_OUT` to the log-likelihood of a pose, so that they
    cannot decide which one is best. A share of the likelihood will not do: most of it is in the innermost rings,
    which hardly change with the turn.
    """
    members = np.maximum(model.denominator.sum(axis=0), 1e-30)
    gain = 0.5 * model.typical.ctf2 * (model.weights * model.energy * model.denominator).sum(axis=0) / members
    left = np.cumsum(gain[::-1].astype(np.float64))[::-1]  # of each ring and those outside it
    return int(np.clip((left > _LEFT_OUT).sum(), min(6, len(gain)), min(16, len(gain))))


def sums(batch, model, poses, temperature=1.0) -> tuple[Sums, Shares]:
    """Sums over aligned particles, each shared between its classes by the likelihood at a temperature."""

    def add(worker, model, particles, rows):
        part = poses.each(lambda array: worker.device.asarray(array[rows]))
        return _block_sums(particles, model, part, part.shares(temperature), worker.budget)

    parts = batch.map(add, lambda worker: model.on(worker.device))
    numerator, denominator, misfit, weight = zip(*parts)
    residual = sum(misfit) / len(batch) / batch.typical.noise_energy
    total = Sums(sum(numerator), sum(denominator), np.clip(residual, *_NOISE_RANGE))
    return total, Shares(poses.label, np.concatenate(weight))


def _block_sums(particles, model, poses, weight, budget):
    xp, grid, count = array_module(particles.samples), particles.grid, len(model)
    rows, columns = xp.nonzero(weight)
    numerator = xp.zeros((count, grid.n_rings * grid.n_harmonics), dtype=np.complex64)
    denominator = xp.zeros((count, grid.n_rings), dtype=np.float32)
    misfit = xp.zeros(grid.n_rings, dtype=np.float64)
    weights = xp.asarray(grid.harmonic_weights.astype(np.float32))
    step = max(1, budget // (16 * particles.samples[0].size))
    for first in range(0, len(rows), step):
        at = rows[first : first + step], columns[first : first + step]
        some, label, ctf2 = weight[at], poses.label[at], particles.ctf2[at[0]]
        pose = poses.theta[at], poses.shift[at], poses.mirrored[at]
        aligned = aligned_harmonics(particles.samples, at[0], *pose, grid, budget)
        share = xp.zeros((count, len(some)), dtype=np.float32)
        share[label, xp.arange(len(some))] = some
        numerator += share @ aligned.reshape(len(some), -1)
        denominator += share @ ctf2
        averages = model.averages[label]
        cross = (aligned.real * averages.real + aligned.imag * averages.imag) @ weights
        left = particles.energy[at[0]] - 2 * cross + ctf2 * model.energy[label]
        misfit += (some[:, None] * left).sum(axis=0)
    numerator = to_host(numerator).reshape(count, grid.n_rings, grid.n_harmonics)
    return numerator, to_host(denominator), to_host(misfit), to_host(weight)


def residuals(batch, model, poses, labels) -> list[tuple[np.ndarray, np.ndarray]]:
    """What some classes leave unexplained of their particles, as far as it may be signal.

    Parameters
    ----------
    batch : Batch
    model : ClassModel
    poses : Poses
        The first ones count.
    labels : sequence of int
        The classes.

    Returns
    -------
    list of (members (n,), values (n, D) float32)
        For each class, numbers of the particles, and their aligned residuals in units of the noise, each ring
        times its signal's share of the power there.
    """
    keep = np.sqrt(model.weights * (model.signal / (model.signal + model.noise)) ** 2).astype(np.float32)
    axis = np.sqrt(batch.typical.grid.harmonic_weights).astype(np.float32)

    def left(worker, on_device, particles, rows):
        local, scale = on_device
        members = np.flatnonzero(np.isin(poses.label[rows, 0], labels))
        at = worker.device.asarray(members)
        some = poses.best().each(lambda array: worker.device.asarray(array[rows][members, 0]))
        pose = some.theta, some.shift, some.mirrored
        values = aligned_harmonics(particles.samples, at, *pose, particles.grid, worker.budget)
        values = values - particles.ctf2[at][:, :, None] * local.averages[some.label]
        values = values * (scale[some.label][:, :, None] * worker.device.asarray(axis))
        values = values[:, : search_rings(model)]
        return members + rows.start, to_host(values.reshape(len(members), values.shape[1] * values.shape[2]))

    parts = batch.map(left, lambda worker: (model.on(worker.device), worker.device.asarray(keep)))
    members, values = (np.concatenate(part) for part in zip(*parts))
    own = poses.label[members, 0]
    return [(members[own == label], values[own == label].view(np.float32)) for label in labels]
