"""2D classification of a particle set: files in, class averages and assigned particles out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.backend.devices import CPU, Device
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.publish import write_json
from xmipp_accel.particle_alignment.classify2d import Classifier, State, Sums
from xmipp_accel.particle_alignment.classify2d_averages import AverageSums
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.classify2d_source import ParticleSource

_OVERSEEDING = 1.5


@dataclasses.dataclass(frozen=True)
class Classify2DResult:
    """What a classification produced.

    Attributes
    ----------
    averages : str
        Absolute path of ``classes.mrcs``: (K, n, n) float32, class 1 first; a class without particles is zero.
    particles_star, particles_xmd : str
        Absolute paths of ``classes.star`` and ``classes.xmd``: every particle with its class (from 1), its pose as
        `xmipp_accel.particle_alignment.poses` defines it (`align2d_matrix` gives Scipion's ALIGN_2D transform from
        particle to average), and the columns ``score`` (log-likelihood gain over noise alone), ``pmax`` (posterior
        probability of the class) and ``margin`` (of the score to the second class). An image that cannot be used
        has class 0 and is disabled.
    counts : list of int
        Particles of each class, K numbers.
    resolutions : list of float
        A; Fourier ring correlation 0.5 between the averages of two halves of each class, 0 where it has fewer than
        two particles.
    sampling_rate : float
        A/px of the averages.
    objective : list of float
        Mean log-likelihood gain of a particle over noise alone, after each iteration.
    n_particles, n_used : int
        Particles given, and those whose images could be used.
    n_rings : int
        Fourier rings that were compared.
    resolution : float
        A, of the outermost one; 0 if the sampling rate is unknown.
    mask_radius : float
        Px.
    device : str
    parameters : dict
        Of the run.
    seconds : float
        Time taken.
    """

    averages: str
    particles_star: str
    particles_xmd: str
    counts: list[int]
    resolutions: list[float]
    sampling_rate: float
    objective: list[float]
    n_particles: int
    n_used: int
    n_rings: int
    resolution: float
    mask_radius: float
    device: str
    parameters: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """One line for people."""
        used = sum(count > 0 for count in self.counts)
        return (
            f"{self.n_used} of {self.n_particles} particles in {used} of {len(self.counts)} classes in "
            f"{self.seconds:.1f} s; {self.averages}"
        )


class Classify2DExecutor:
    """The 2D classification bound to one device.

    Parameters
    ----------
    parameters : Classify2DParameters
    device : Device
    """

    def __init__(self, parameters: Classify2DParameters, device: Device = CPU):
        self.parameters = parameters
        self.device = device

    def classify(
        self,
        particles: Particles,
        output_folder: str | Path,
        initial_references=None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Classify2DResult:
        """Sort `particles` into classes and write the result into `output_folder`.

        Parameters
        ----------
        particles : Particles
            Poses that it may hold are not used.
        output_folder : path
            Made if absent. Receives ``classes.mrcs``, ``classes.star``, ``classes.xmd`` and, last,
            ``classes.json`` with :meth:`Classify2DResult.to_json`.
        initial_references : (K, n, n) array, optional
            Images to start from instead of seeding; they set the number of classes, and none is split or merged.
        progress : callable, optional
            Called as ``progress(done, total)`` after each iteration.

        Raises
        ------
        InputFileError, ParameterError, ProcessingError
        """
        start = time.perf_counter()
        if not len(particles):
            raise ParameterError("particles: expected at least one, found none")
        folder = Path(output_folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with self.device.activate():
            source = ParticleSource(particles, self.parameters, self.device)
            run = _Run(source, self.parameters, progress)
            table = run.classify(initial_references)
            averages, resolutions = self._averages(source, table)
            write_stack(folder / "classes.mrcs", averages, particles.sampling_rate)
        rows = _particle_rows(particles, source.usable, table)
        write_particles(folder / "classes.star", rows)
        write_particles(folder / "classes.xmd", rows)
        rate, rings = particles.sampling_rate, source.grid.n_rings
        result = Classify2DResult(
            averages=str(folder / "classes.mrcs"),
            particles_star=str(folder / "classes.star"),
            particles_xmd=str(folder / "classes.xmd"),
            counts=np.bincount(table["label"], minlength=len(averages)).tolist(),
            resolutions=[float(value) for value in resolutions],
            sampling_rate=rate,
            objective=run.objective,
            n_particles=len(particles),
            n_used=len(source.usable),
            n_rings=rings,
            resolution=source.box * rate / rings,
            mask_radius=source.mask_radius,
            device=str(self.device),
            parameters=self.parameters.to_dict(),
            seconds=time.perf_counter() - start,
        )
        write_json(folder / "classes.json", result.to_json())
        return result

    def _averages(self, source, table):
        sums = AverageSums(table["count"], source.box, source.particles.sampling_rate or 1.0, self.device.xp)
        # Halves alternate within each class, so that both are there and of one size.
        order = np.argsort(table["label"], kind="stable")
        halves = np.empty(len(order), dtype=np.int64)
        halves[order] = np.arange(len(order)) % 2
        for places in source.chunks(np.arange(len(source.usable))):
            rows = source.usable[places]
            pose = {name: table[name][places] for name in ("theta", "shift", "mirrored")}
            images = source.images(rows)
            sums.add(images, table["label"][places], halves[places], optics=source.optics(rows), **pose)
        return sums.finish(source.mask_radius, source.uses_ctf)


class _Run:
    """One classification: what it draws at random, and what it tells on its way."""

    def __init__(self, source, parameters, progress):
        self.source, self.parameters, self.progress = source, parameters, progress
        self.classifier = Classifier(source.max_shift, parameters.mirrors, parameters.seed)
        self.objective: list[float] = []
        self.total = parameters.split_merge_rounds + parameters.iterations

    def classify(self, references):
        """Columns of the result: the best pose of each usable particle, in its order."""
        source, rows = self.source, self.source.usable
        count = self.parameters.number_of_classes if references is None else len(references)
        count = min(count, len(rows)) if references is None else count
        batch = self.parameters.batch_size or max(2000, 200 * count)
        online = batch < len(rows)
        first = np.sort(self.classifier.rng.choice(len(rows), batch, replace=False)) if online else slice(None)
        particles = source.prepare(rows[first])
        state = self._seeded(particles, count, references)
        if not online:
            state = self.classifier.converge(particles, state, self.parameters.iterations, self._report)
            self._finish()
            return _table([state])
        model = self._online(particles, state, batch)
        states = []
        for start in range(0, len(rows), batch):
            states.append(_light(self.classifier.start(source.prepare(rows[start : start + batch]), model)))
        self._finish()
        return _table(states)

    def _seeded(self, particles, count, references) -> State:
        classifier, parameters = self.classifier, self.parameters
        if references is not None:
            state = classifier.seed_from(particles, self.source.prepare_references(references))
            return classifier.anneal(particles, state, parameters.initial_temperature)
        state = classifier.seed(particles, max(count + 1, int(_OVERSEEDING * count)))
        state = classifier.anneal(particles, state, parameters.initial_temperature)
        if len(state.model) > count:
            state = classifier.iterate(particles, classifier.shrink(particles, state, count), 2)
        return classifier.breathe(particles, state, count, parameters.split_merge_rounds, self._report)

    def _online(self, particles, state, batch):
        """Model after the iterations, each of which reads the next batch of shuffled particles."""
        rows, model = self.source.usable, state.model
        total = Sums(model.numerator, model.denominator, model.noise, None)
        order = np.empty(0, dtype=np.int64)
        for step in range(self.parameters.iterations):
            if len(order) < batch:
                order = np.concatenate([order, self.classifier.rng.permutation(len(rows))])
            now, order = np.sort(order[:batch]), order[batch:]
            model, total, objective = self.classifier.learn(self.source.prepare(rows[now]), model, total, step)
            self._report_value(objective)
        return model

    def _report(self, state):
        self._report_value(state.objective)

    def _report_value(self, objective):
        self.objective.append(objective)
        if self.progress is not None:
            self.progress(min(len(self.objective), self.total), self.total)

    def _finish(self):
        if self.progress is not None and len(self.objective) < self.total:
            self.progress(self.total, self.total)


def _light(state):
    """The state without the membership, which grows with the batch."""
    return dataclasses.replace(state, membership=None)


def _table(states):
    """Host columns of the best poses; ``count`` is the number of classes."""
    score = np.concatenate([to_host(state.poses.score) for state in states]).astype(np.float64)
    columns = {
        name: np.concatenate([to_host(getattr(state.poses, name)[:, 0]) for state in states])
        for name in ("label", "mirrored", "theta", "shift")
    }
    likelihood = np.exp(score - score[:, :1])
    finite = np.where(np.isfinite(score), score, score[:, :1] - 1e3)
    margin = score[:, 0] - finite[:, 1] if score.shape[1] > 1 else np.zeros(len(score))
    return dict(
        columns, score=score[:, 0], pmax=1 / likelihood.sum(axis=1), margin=margin, count=len(states[0].model)
    )


def _particle_rows(particles, usable, table) -> Particles:
    """All particles with class and pose, in the convention of `particle_alignment.poses`."""
    n = len(particles)

    def spread(values, default=0.0):
        column = np.full(n, default, dtype=np.asarray(values).dtype)
        column[usable] = values
        return column

    mirrored = table["mirrored"]
    enabled = particles.enabled.copy()
    enabled[np.setdiff1d(np.arange(n), usable)] = False
    extra = {name: spread(table[name]) for name in ("score", "pmax", "margin")}
    return dataclasses.replace(
        particles,
        rot=np.zeros(n),
        tilt=np.zeros(n),
        psi=spread(np.rad2deg(np.where(mirrored, table["theta"], -table["theta"])).astype(np.float64)),
        shift_x=spread(np.where(mirrored, -1.0, 1.0) * table["shift"][:, 1]),
        shift_y=spread(table["shift"][:, 0].astype(np.float64)),
        flip=spread(mirrored, False),
        class_id=spread(table["label"] + 1, 0),
        enabled=enabled,
        has_pose=True,
        extra=dict(particles.extra, **extra),
    )
