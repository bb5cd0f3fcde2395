"""2D classification by expectation-maximisation that also splits, merges and anneals.

The iteration finds the nearest optimum only; what finds a good one is the path: classes are added where particles
fit worst, and those without which the particles would lose least are taken away again, as long as the mean
log-likelihood of the particles rises (Fritzke, "The breathing k-means algorithm", arXiv 2006.15666, 2020; Ueda et
al., Neural Computation 12 (2000), 2109).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.sparse.linalg import eigsh

from xmipp_accel.particle_alignment.classify2d_batch import Sums, assign, residuals, sums
from xmipp_accel.particle_alignment.classify2d_model import ClassModel, fit_model, reference_model
from xmipp_accel.particle_alignment.classify2d_poses import Poses, Shares
from xmipp_accel.particle_alignment.classify2d_search import to_average_frame
from xmipp_accel.particle_alignment.polar import (
    angular_coefficients,
    samples_from_coefficients,
    shift_samples,
)

_STANDSTILL = 1e-4
_LEAST_GAIN = 1e-3  # of a round of splits and merges, relative, for the next one to be as bold
_TRIAL_ITERATIONS = 2
_LEAST_TO_SPLIT = 4  # particles
_DEAD_SHARE = 0.1  # of the particles that a class would have if all were of one size
_SMALL_GRAM, _COMPONENT_TOLERANCE = 32, 1e-4


@dataclasses.dataclass(frozen=True)
class State:
    """A model, the poses that it gave its particles, and their shares in its sums."""

    model: ClassModel
    poses: Poses
    shares: Shares

    @property
    def objective(self) -> float:
        """Mean log-likelihood gain of a particle's best pose over noise alone."""
        return float(self.poses.score[:, 0].mean())

    @property
    def labels(self) -> np.ndarray:
        """(m,) class of each particle."""
        return self.poses.label[:, 0]

    @property
    def counts(self) -> np.ndarray:
        """(C,) particles of each class."""
        return np.bincount(self.labels, minlength=len(self.model))


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

    def _state(self, batch, model, shares, previous=None, near=False, rounds=1) -> State:
        poses = assign(batch, model, self.max_shift, self.mirrors, shares, previous, near, rounds)
        return State(model, poses, shares)

    def start(self, batch, model) -> State:
        """Poses for a model that none of the particles has a share in."""
        return self._state(batch, model, Shares.none(len(batch)), rounds=2)

    def seed(self, batch, count) -> State:
        """Start from single particles, chosen at random."""
        chosen = np.sort(self.rng.choice(len(batch), min(count, len(batch)), replace=False))
        coefficients, ctf2 = batch.coefficients(chosen)
        shares = Shares.none(len(batch))
        shares.label[chosen, 0], shares.weight[chosen] = np.arange(len(chosen)), 1.0
        model = fit_model(coefficients, ctf2, batch.typical, signal=batch.typical.signal_power())
        return self._state(batch, model, shares)

    def seed_from(self, batch, coefficients) -> State:
        """Start from reference images, as :func:`reference_model` takes them."""
        return self.start(batch, reference_model(batch.typical, coefficients))

    def iterate(self, batch, state: State, iterations, temperature=1.0, near=True, rounds=1) -> State:
        """Expectation-maximisation steps on one set of particles; the best state that they pass through.

        With `near`, particles are tried only near the shifts that they have; `rounds` of refinement are done.
        """
        best = state
        for i in range(iterations):
            total, shares = sums(batch, state.model, state.poses, temperature)
            model = model_of(batch.typical, total, state.poses)
            state = self._state(batch, model, shares, state.poses, near, rounds)
            best = state if i == 0 or state.objective > best.objective else best
        return best

    def anneal(self, batch, state: State, temperature) -> State:
        """Three iterations whose temperature falls to 1."""
        for exponent in (1.0, 0.5, 0.0):
            state = self.iterate(batch, state, 1, temperature**exponent, near=False)
        return state

    def converge_step(self, batch, state: State, near) -> tuple[State, bool]:
        """One iteration with the finer poses of the result; the better state, and whether more would help.

        With `near`, particles are tried only near the shifts that they have.
        """
        after = self.iterate(batch, state, 1, near=near, rounds=2)
        gain = after.objective - state.objective
        return (after if gain > 0 else state), gain >= _STANDSTILL * abs(state.objective)

    # ------------------------------------------------------------------------------------- splitting and merging
    def shrink(self, batch, state: State, count) -> State:
        """Take away the classes without which the particles would lose least, until `count` are left."""
        if count >= len(state.model):
            return state
        return self._without(batch, state, most_useful(state.poses, len(state.model), count))

    def _without(self, batch, state, keep):
        numbers = np.full(len(state.model), -1)
        numbers[keep] = np.arange(len(keep))
        return self._state(batch, state.model.take(keep), state.shares.renumbered(numbers))

    def grow(self, batch, state: State, parents) -> State:
        """Split each of `parents` in two along the leading component of what it leaves unexplained."""
        label, total = state.labels.copy(), len(state.model)
        for number, (members, values) in enumerate(residuals(batch, state.model, state.poses, parents)):
            if len(members) > 1:  # a merge may have left its class without any
                label[members[leading_component(values)[1] > 0]] = total + number
        model = state.model.take(np.concatenate([np.arange(total), parents]).astype(np.int64))
        poses = dataclasses.replace(state.poses.best(), label=label[:, None])
        halves, shares = sums(batch, model, poses)
        return self._state(batch, model_of(batch.typical, halves, poses), shares)

    def mixtures(self, batch, state: State, count) -> np.ndarray:
        """Up to `count` classes to split.

        Half of them are those of whose residuals a split would explain most; the others are drawn with odds that
        grow with it, so that a repeated trial is not the same.
        """
        possible = np.flatnonzero(state.counts >= _LEAST_TO_SPLIT)
        if not count or not len(possible):
            return possible[:0]
        found = residuals(batch, state.model, state.poses, possible)
        power = np.array([leading_component(values)[0] for _, values in found])
        order = np.argsort(-power, kind="stable")[: np.count_nonzero(power > 0)]
        top, rest = order[: count // 2], order[count // 2 :]
        odds = power[rest] ** 2
        drawn = min(count - len(top), len(rest))
        chosen = self.rng.choice(rest, drawn, replace=False, p=odds / odds.sum()) if drawn else rest[:0]
        return possible[np.concatenate([top, chosen]).astype(np.int64)]

    def breathe(self, batch, state: State, count, breath) -> tuple[State, bool]:
        """Try `breath` splits and as many merges, and keep those that pay; whether the objective rose enough.

        Splits and merges are first tried apart and judged each by its own particles: a merge often pays only when
        its particles have found their common poses, and a bad move would hide what the others gain.
        """
        filled = np.flatnonzero(state.counts)
        if len(filled) < len(state.model):
            state = self._without(batch, state, filled)
        split = self._split_trial(batch, state, breath + count - len(filled))
        merged = self._merge_trial(batch, state, breath)
        again = self._resplit_trial(batch, state, merged)
        trial = _composed(state, split, merged, again, count)
        if trial is None:
            return state, False
        trial = self.iterate(batch, self._state(batch, *trial), 2)
        gain = trial.objective - state.objective
        return (trial if gain > 0 else state), gain >= _LEAST_GAIN * abs(state.objective)

    def _split_trial(self, batch, state, count) -> _Trial:
        parents = self.mixtures(batch, state, count)
        if not len(parents):
            return _Trial(state, np.arange(len(state.model)), [])
        after = self.iterate(batch, self.grow(batch, state, parents), _TRIAL_ITERATIONS)
        moves = [(parent, len(state.model) + number) for number, parent in enumerate(parents.tolist())]
        return _Trial(after, np.arange(len(state.model)), _judged(state, after, moves, parents[:, None]))

    def _merge_trial(self, batch, state, count) -> _Trial:
        pairs = alike_pairs(state.poses, len(state.model), count)
        if not pairs:
            return _Trial(state, np.arange(len(state.model)), [])
        keep = np.setdiff1d(np.arange(len(state.model)), [removed for _, removed in pairs])
        after = self.iterate(batch, self._without(batch, state, keep), _TRIAL_ITERATIONS)
        numbers = np.full(len(state.model), -1)
        numbers[keep] = np.arange(len(keep))
        return _Trial(after, numbers, _judged(state, after, pairs, pairs))

    def _resplit_trial(self, batch, state, merged) -> _Trial:
        pairs = [pair for _, pair in merged.moves]
        if not pairs:
            return merged
        parents = merged.numbers[[kept for kept, _ in pairs]]
        after = self.iterate(batch, self.grow(batch, merged.state, parents), _TRIAL_ITERATIONS)
        numbers = merged.numbers.copy()
        numbers[[removed for _, removed in pairs]] = len(merged.state.model) + np.arange(len(pairs))
        return _Trial(after, numbers, _judged(state, after, pairs, pairs))

    # ------------------------------------------------------------------------------------------------- streaming
    def learn(self, batch, model, total: Sums, seen) -> tuple[ClassModel, Sums, float, np.ndarray]:
        """One step of online expectation-maximisation on particles that are not kept.

        With t the number of full batches before, the sums so far fade by ``1 - (t + 2)**-0.7`` (Cappe and
        Moulines, J. R. Stat. Soc. B 71 (2009), 593), and by less for a smaller batch. Classes that are all but
        empty are replaced by the worse fitting halves of others.

        Parameters
        ----------
        batch : Batch
        model : ClassModel
        total : Sums
            So far.
        seen : (float, float)
            Full batches before this one, and what share of a full one this one is.

        Returns
        -------
        The new model, the new sums, the mean log-likelihood gain of these particles, and the numbers of the
        classes that were replaced.
        """
        state = self.start(batch, model)
        new, _ = sums(batch, model, state.poses)
        rate = (seen[0] + 2.0) ** -0.7 * min(1.0, seen[1])
        total = total.faded(1.0 - rate, new)
        dead = np.flatnonzero(state.counts < _DEAD_SHARE * len(batch) / len(model))
        parents = self.mixtures(batch, state, len(dead))
        dead = dead[: len(parents)]
        if len(dead):
            grown = self.grow(batch, state, parents).model
            for ours, theirs in ((total.numerator, grown.numerator), (total.denominator, grown.denominator)):
                ours[parents], ours[dead] = theirs[parents], theirs[len(model) :]
        return model_of(batch.typical, total, state.poses), total, state.objective, dead


@dataclasses.dataclass(frozen=True)
class _Trial:
    """State after some moves, the numbers of the old classes there, and ``(gain, move)``, best first."""

    state: State
    numbers: np.ndarray
    moves: list


def _judged(before, after, moves, classes):
    """Moves with what the particles of their classes gained by them, best first."""
    change = (after.poses.score[:, 0] - before.poses.score[:, 0]).astype(np.float64)
    gain = np.bincount(before.labels, change, minlength=len(before.model))
    return sorted(((float(gain[list(own)].sum()), move) for own, move in zip(classes, moves)), reverse=True)


def _composed(state, split, merged, again, count):
    """Model and shares with the moves that pay, or None if none does.

    A class that a merge leaves without particles makes room for a new one, which gets its number.
    """
    places = [(0, number) for number in range(count)]
    free = list(range(len(state.model), count))
    touched: set[int] = set()
    for gain, (parent, child) in split.moves:
        if parent in touched:
            continue
        if free:
            room = free.pop(0)
        else:
            others = (
                (loss, pair) for loss, pair in merged.moves if not touched & set(pair) and parent not in pair
            )
            change, (kept, room) = next(others, (-np.inf, (-1, -1)))
            if gain + change <= 0:
                continue
            places[kept] = (2, int(merged.numbers[kept]))
            touched |= {kept, room}
        places[parent], places[room] = (1, parent), (1, child)
        touched |= {parent, room}
    for gain, pair in again.moves:
        if gain > 0 and not touched & set(pair):
            touched |= set(pair)
            for number in pair:
                places[number] = (3, int(again.numbers[number]))
    if not touched:
        return None
    return _joined((state, split.state, merged.state, again.state), places[: count - len(free)])


def _joined(states, places):
    """Model of classes from several states, given as (state, class), and the particles' shares in it."""
    model = states[0].model
    for other in states[1:]:
        model = model.joined(other.model)
    first = np.cumsum([0] + [len(state.model) for state in states])
    model = model.take(np.array([first[source] + number for source, number in places]))
    shares = []
    for source, state in enumerate(states):
        numbers = np.full(len(state.model), -1)
        for place, (where, number) in enumerate(places):
            if where == source:
                numbers[number] = place
        shares.append(state.shares.renumbered(numbers))
    return model, Shares(*(np.concatenate([getattr(s, f) for s in shares], axis=1) for f in ("label", "weight")))


def model_of(typical, total, poses) -> ClassModel:
    """Model of sums, with its averages centred."""
    numerator = shift_coefficients(total.numerator, -decentring(poses, len(total.numerator)), typical.grid)
    return fit_model(numerator, total.denominator, typical, total.residual)


def decentring(poses, count):
    """How far (count, 2) each average lies from where it should, (y, x) px.

    The particles of a class have no common offset in their own frames, so the mean of the shifts that act after
    the turns is the offset of the average. An average off the centre puts some of its particles out of reach.
    """
    shift = to_average_frame(poses.shift[:, 0], poses.theta[:, 0], poses.mirrored[:, 0])
    total = [np.bincount(poses.label[:, 0], shift[:, axis], minlength=count) for axis in (0, 1)]
    members = np.bincount(poses.label[:, 0], minlength=count)
    return np.stack(total, axis=1) / (members[:, None] + 1.0)


def shift_coefficients(coefficients, shifts, grid):
    """Harmonics (C, K, Q) of images shifted by `shifts` (C, 2), (y, x) px."""
    return angular_coefficients(shift_samples(samples_from_coefficients(coefficients, grid), shifts, grid), grid)


def leading_component(values) -> tuple[float, np.ndarray]:
    """Power of the leading principal component of the rows of `values` (n, D), and their scores (n,)."""
    values = values - values.mean(axis=0)
    gram = (values @ values.T).astype(np.float64)
    if len(gram) <= _SMALL_GRAM:
        power, scores = np.linalg.eigh(gram)
    else:
        start = np.random.default_rng(0).normal(size=len(gram))
        power, scores = eigsh(gram, k=1, which="LA", v0=start, tol=_COMPONENT_TOLERANCE)
    return float(power[-1]), scores[:, -1]


def most_useful(poses, total, count) -> np.ndarray:
    """Which `count` of `total` classes to keep, ascending, so that the particles lose least."""
    keep = np.ones(total, dtype=bool)
    score, label = poses.score.astype(np.float64), poses.label
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


def alike_pairs(poses, total, count) -> list[tuple[int, int]]:
    """Up to `count` disjoint pairs (kept, removed) of classes whose particles lose least in the other one."""
    if poses.score.shape[1] < 2 or total < 2:
        return []
    first, second = poses.label[:, 0], poses.label[:, 1]
    known = np.isfinite(poses.score[:, 1])
    step = np.where(known, poses.score[:, 0] - np.where(known, poses.score[:, 1], 0.0), poses.score[:, 0])
    loss = np.bincount(first, step, minlength=total)
    votes = np.zeros((total, total), dtype=np.int64)
    np.add.at(votes, (first[known], second[known]), 1)
    np.fill_diagonal(votes, 0)
    free = np.ones(total, dtype=bool)
    pairs: list[tuple[int, int]] = []
    for removed in np.argsort(loss, kind="stable"):
        kept = int((votes[removed] * free).argmax())
        if len(pairs) < count and free[removed] and free[kept] and votes[removed, kept]:
            pairs.append((kept, int(removed)))
            free[[kept, removed]] = False
    return pairs
