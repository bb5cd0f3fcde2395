"""The course of one 2D classification, in stages that can be interrupted and gone on with."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.particle_alignment.classify2d import Classifier, State
from xmipp_accel.particle_alignment.classify2d_averages import AverageSums, aligned_sums
from xmipp_accel.particle_alignment.classify2d_batch import CANDIDATES, Sums, searcher, sums
from xmipp_accel.particle_alignment.classify2d_model import reference_model, rescaled
from xmipp_accel.particle_alignment.classify2d_state import (
    ASSIGN,
    BREATHE,
    CONVERGE,
    DONE,
    LEARN,
    START,
)
from xmipp_accel.particle_alignment.classify2d_tables import alternate, columns_of, join_columns, unusable_columns

_OVERSEEDING = 1.5
_SCALE_ROUNDS = 2


def batch_size(parameters, count) -> int:
    """Particles of one iteration with `count` classes."""
    return parameters.batch_size or max(3000, 200 * count)


class ClassificationRun:
    """Takes a state through the stages that are left.

    Small sets are sorted at once: seeded, split and merged, and iterated until they stand still. Of large ones
    this is done with a sample, and the rest of the way is online learning. Then all particles are assigned.

    Parameters
    ----------
    source : ParticleSource
    parameters : Classify2DParameters
    state : RunState
    save : callable
        Called as ``save(state)`` where the state can be gone on with.
    progress : callable, optional
        Called as ``progress(done, total)`` after each iteration.
    """

    def __init__(self, source, parameters, state, save, progress=None):
        self.source, self.parameters, self.state = source, parameters, state
        self._save, self._progress = save, progress
        self.classifier = Classifier(source.max_shift, parameters.mirrors, parameters.seed)
        if state.rng is not None:
            self.classifier.rng.bit_generator.state = state.rng
        self._total = parameters.split_merge_rounds + parameters.iterations
        self.rows = np.arange(len(source.particles))

    def run(self, references=None):
        """Finish the classification; `references` (C, N, N) are images to start from."""
        state = self.state
        batch = self._begin(references) if state.stage == START else None
        if state.stage in (BREATHE, CONVERGE):
            self._improve(batch or self.source.batch(state.sample)[0])
        batch = None  # whose memory the next stages may need
        if state.stage == LEARN:
            self._learn()
        if state.stage == ASSIGN:
            self._assign()
        if self._progress is not None:
            self._progress(self._total, self._total)

    # ------------------------------------------------------------------------------------------------ beginnings
    def _begin(self, references):
        """Make the first classes, unless an earlier run did; their particles, if more iterations need them."""
        state, fixed = self.state, self.parameters.fixed_references
        given = references if state.model is None else state.model
        state.batch = batch_size(
            self.parameters, self.parameters.number_of_classes if given is None else len(given)
        )
        if state.model is not None and (fixed or state.kept is None):
            self._enter(ASSIGN if fixed else LEARN)
            return None
        size = min(state.batch, len(self.rows))
        state.sample = np.sort(self.classifier.rng.choice(len(self.rows), size, replace=False))
        batch, state.used = self.source.batch(state.sample)
        if references is not None:
            references = self.source.prepare_references(references)
        if fixed:
            self._keep_references(batch, references)
            return None
        current = self._first_state(batch, references)
        self._hold(current)
        state.breath = max(1, len(current.model) // 2)
        self._enter(BREATHE if references is None else self._after_sample())
        return batch

    def _first_state(self, batch, references) -> State:
        classifier, parameters, count = self.classifier, self.parameters, self.parameters.number_of_classes
        if self.state.model is not None:
            current = classifier.start(batch, self.state.model)
        elif references is not None:
            current = classifier.seed_from(batch, references)
        else:
            if count > len(batch):
                most = f"{len(batch)}, the particles that can be used"
                raise ParameterError(f"number_of_classes: expected at most {most}, found {count}")
            current = classifier.seed(batch, max(count + 1, int(_OVERSEEDING * count)))
        current = classifier.anneal(batch, current, parameters.initial_temperature)
        if len(current.model) > count and references is None:
            current = classifier.iterate(batch, classifier.shrink(batch, current, count), 2)
        return current

    def _keep_references(self, batch, references):
        model = reference_model(batch.typical, references)
        for _ in range(_SCALE_ROUNDS):
            current = self.classifier.start(batch, model)
            model = rescaled(model, sums(batch, model, current.poses)[0])
        self.state.model = model
        self._enter(ASSIGN)

    def _enter(self, stage):
        self.state.stage, self.state.step = stage, 0
        self._checkpoint()

    def _after_sample(self):
        return LEARN if len(self.rows) > self.state.batch else CONVERGE

    def _hold(self, current):
        state = self.state
        state.model, state.poses, state.shares = current.model, current.poses, current.shares

    def _checkpoint(self):
        self.state.rng = self.classifier.rng.bit_generator.state
        self._save(self.state)

    def _report(self, objective):
        self.state.objective.append(float(objective))
        if self._progress is not None:
            self._progress(min(len(self.state.objective), self._total), self._total)

    # ---------------------------------------------------------------------------------------------- better classes
    def _improve(self, batch):
        state = self.state
        current = State(state.model, state.poses, state.shares)
        current = self._breathe(batch, current) if state.stage == BREATHE else current
        if state.stage == CONVERGE:
            self._converge(batch, current)

    def _breathe(self, batch, current) -> State:
        state, count = self.state, self.parameters.number_of_classes
        count = max(count, len(current.model))
        while state.step < self.parameters.split_merge_rounds and state.breath:
            current, bold = self.classifier.breathe(batch, current, count, state.breath)
            state.breath = state.breath if bold else state.breath // 2
            self._hold(current)
            self._report(current.objective)
            state.step += 1
            self._checkpoint()
        self._enter(self._after_sample())
        return current

    def _converge(self, batch, current):
        state, more = self.state, True
        while more and state.step < self.parameters.iterations:
            current, more = self.classifier.converge_step(batch, current, near=state.step > 0)
            self._hold(current)
            self._report(current.objective)
            state.step = state.step + 1 if more else self.parameters.iterations
            self._checkpoint()
        self._enter(ASSIGN)

    def _learn(self):
        """Online iterations, each with the next batch of shuffled particles, read during the one before."""
        state, size = self.state, min(self.state.batch, len(self.rows))
        passes = state.earlier > 0  # these particles come on top of others
        steps = -(-len(self.rows) // size) if passes else self.parameters.iterations
        total = state.total or Sums(state.model.numerator, state.model.denominator, state.model.noise)
        choices = (self._shuffled(step, size, once=passes) for step in range(state.step, steps))
        for batch, used in self.source.batches(choices):
            seen = (state.batches, len(used) / state.batch)
            model, total, objective, replaced = self.classifier.learn(batch, state.model, total, seen)
            state.model, state.total, state.batches = model, total, sum(seen)
            if state.averages is not None and len(replaced):
                state.averages.clear(replaced)
                state.counts[replaced] = 0
            self._report(objective)
            state.step += 1
            self._checkpoint()
        state.poses = state.shares = state.sample = state.used = None
        self._enter(ASSIGN)

    def _shuffled(self, step, size, once):
        """Rows of one batch: all particles in a random order, then all in another one, and so on."""
        count, first = len(self.rows), step * size
        orders = [
            np.random.default_rng((self.parameters.seed, epoch)).permutation(count)
            for epoch in range(first // count, (first + size - 1) // count + 1)
        ]
        first %= count
        return np.sort(np.concatenate(orders)[first : min(first + size, count) if once else first + size])

    # -------------------------------------------------------------------------------------------------- the result
    def _assign(self):
        """Find the class of each particle, or take the one that is known, and add up the averages."""
        state, source = self.state, self.source
        if state.averages is None:
            state.averages = AverageSums(len(state.model), source.box)
            state.counts = np.zeros(len(state.model), dtype=np.int64)
        blocks = source.blocks(self.rows)
        stream = source.workers.stream(source.read, self._assigner(), blocks, state.blocks)
        parts = [state.table] if state.table else []
        for columns, averages in stream:
            parts.append(columns)
            labels = columns["label"][columns["label"] >= 0]
            state.counts += np.bincount(labels, minlength=len(state.counts))
            state.seen += len(labels)
            if averages is not None:
                state.averages.add(averages)
            state.blocks += 1
            if state.blocks < len(blocks) and self._save.due():
                state.table = join_columns(parts)
                parts = [state.table]
                self._checkpoint()
        state.table = join_columns(parts)
        self._finish()

    def _assigner(self):
        """Function that finds the columns of the table, and the sums of the averages, for a block of images."""
        state, source, parameters = self.state, self.source, self.parameters
        known, count = state.poses, len(state.model)
        make = searcher(state.model, source.max_shift, parameters.mirrors)
        searches = {} if known else {worker: worker.submit(make) for worker in source.workers.workers}
        soft = parameters.assignment == "soft"
        parity = state.earlier  # another one for further particles, so that the halves stay of one size

        def assign(worker, number, images):
            if not len(images.rows):
                return unusable_columns(images), None
            if known is None:
                particles = source.prepare(worker, images)
                poses = searches[worker].result().poses(particles, CANDIDATES, budget=worker.budget).each(to_host)
            else:
                poses = known.each(lambda array: array[np.searchsorted(state.used, images.rows)])
            weight = poses.shares() if soft else np.float32(np.arange(poses.label.shape[1]) == 0)
            weight = np.broadcast_to(weight, poses.label.shape)
            optics, halves = source.optics(images.rows), alternate(poses.label[:, 0], number + parity)
            pixels = worker.device.asarray(images.pixels)
            averages = aligned_sums(
                pixels, poses, weight, halves, count, optics, source.sampling_rate, worker.budget
            )
            return columns_of(images, poses, weight if soft else None), averages

        return assign

    def _finish(self):
        state, particles = self.state, self.source.particles
        if state.total is None:
            state.total = Sums(state.model.numerator, state.model.denominator, state.model.noise)
            state.batches = len(self.rows) / state.batch
        used = np.flatnonzero(state.table["label"] >= 0)
        few = state.seen == len(used) and len(used) < state.batch
        state.kept = particles.take(used) if few else None
        state.poses = state.shares = state.sample = state.used = None
        state.stage = DONE
