"""2D classification of a particle set: files in, class averages and assigned particles out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from xmipp_accel.backend import one_blas_thread
from xmipp_accel.backend.devices import CPU, Device
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import open_stack, write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.scratch import scratch
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.classify2d_run import ClassificationRun
from xmipp_accel.particle_alignment.classify2d_source import ParticleSource
from xmipp_accel.particle_alignment.classify2d_state import (
    DONE,
    Checkpoint,
    RunState,
    continued,
    fingerprint,
    load_state,
    with_earlier,
)
from xmipp_accel.particle_alignment.classify2d_tables import classified_particles, write_shares
from xmipp_accel.particle_alignment.classify2d_workers import Workers

_RATE_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Classify2DResult:
    """What a classification produced.

    Attributes
    ----------
    averages : str
        Absolute path of ``classes.mrcs``: (K, n, n) float32, class 1 first; a class without particles is zero.
    state : str
        Absolute path of ``classes_state.npz``, to go on with.
    particles_star, particles_xmd : str
        Absolute paths of ``classes.star`` and ``classes.xmd``: every particle with its class (from 1), its pose as
        `xmipp_accel.particle_alignment.poses` defines it (`align2d_matrix` gives Scipion's ALIGN_2D transform from
        particle to average), and the columns ``score`` (log-likelihood gain over noise alone), ``pmax`` (posterior
        probability of the class) and ``margin`` (of the score to the second class). An image that cannot be used
        has class 0 and is disabled.
    counts : list of int
        Particles of each class, those of earlier runs included; K numbers.
    resolutions : list of float
        A; Fourier ring correlation 0.5 between the averages of two halves of each class, 0 where it has fewer than
        two particles.
    sampling_rate : float
        A/px of the averages.
    objective : list of float
        Mean log-likelihood gain of a particle over noise alone, after each iteration.
    n_particles, n_used, n_averaged : int
        Particles in the tables, those of them whose images could be used, and those in the averages.
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
    state: str
    counts: list[int]
    resolutions: list[float]
    sampling_rate: float
    objective: list[float]
    n_particles: int
    n_used: int
    n_averaged: int
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
    """The 2D classification bound to one or several devices.

    Parameters
    ----------
    parameters : Classify2DParameters
    *devices : Device
        They share the particles; the result does not depend on how many there are.
    """

    def __init__(self, parameters: Classify2DParameters, *devices: Device):
        self.parameters = parameters
        self.devices = devices or (CPU,)

    def classify(
        self,
        particles: Particles,
        output_folder: str | Path,
        initial_references=None,
        progress: Callable[[int, int], None] | None = None,
        state: str | Path | None = None,
    ) -> Classify2DResult:
        """Sort `particles` into classes and write the result into `output_folder`.

        Parameters
        ----------
        particles : Particles
            Poses that it may hold are not used.
        output_folder : path
            Made if absent. Receives ``classes.mrcs``, ``classes.star``, ``classes.xmd``, with soft assignment
            ``shares.star``, ``classes_state.npz`` and, last, ``classes.json`` with
            :meth:`Classify2DResult.to_json`.
        initial_references : path or (K, n, n) array, optional
            Images to start from instead of seeding; they set the number of classes, and none is split or merged.
        progress : callable, optional
            Called as ``progress(done, total)`` after each iteration.
        state : path, optional
            ``classes_state.npz`` of an earlier run. If that was interrupted, it is finished, with the same
            particles and parameters and the same result. Else its classes learn from `particles`, which are new:
            until there is a batch of them, all particles so far are sorted anew and are in the tables again; later
            the new ones alone are read. The averages and counts are those of all particles. With
            `fixed_references` the classes stay as they are, and the averages are those of `particles` alone unless
            the earlier run had fixed references, too.

        Raises
        ------
        InputFileError, ParameterError, ProcessingError
        """
        start = time.perf_counter()
        self._check(particles, initial_references, state)
        folder = Path(output_folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        references = read_references(initial_references, particles)
        everything, current = self._state(particles, state)
        save = Checkpoint(folder / "classes_state.npz")
        # What is left to BLAS is small; its threads would take cores from the kernels and change the last digits.
        with scratch(self.parameters.scratch) as copied, Workers(self.devices) as workers, one_blas_thread():
            source = ParticleSource(copied(everything), self.parameters, workers, current.noise)
            current.noise = source.noise
            run = ClassificationRun(source, self.parameters, current, save, progress)
            run.run(references)
        averages, resolutions = current.averages.finish(source.mask_radius, source.uses_ctf, source.sampling_rate)
        write_stack(folder / "classes.mrcs", averages, particles.sampling_rate)
        table = current.table
        rows = classified_particles(everything, table)
        write_particles(folder / "classes.star", rows)
        write_particles(folder / "classes.xmd", rows)
        if "share" in table:
            write_shares(folder / "shares.star", everything, table)
        current.table = {}
        save.now(current)
        rings = source.grid.n_rings
        result = Classify2DResult(
            averages=str(folder / "classes.mrcs"),
            particles_star=str(folder / "classes.star"),
            particles_xmd=str(folder / "classes.xmd"),
            state=str(folder / "classes_state.npz"),
            counts=current.counts.tolist(),
            resolutions=[float(value) for value in resolutions],
            sampling_rate=particles.sampling_rate,
            objective=current.objective,
            n_particles=len(everything),
            n_used=int((table["label"] >= 0).sum()),
            n_averaged=current.seen,
            n_rings=rings,
            resolution=source.box * particles.sampling_rate / rings,
            mask_radius=source.mask_radius,
            device=", ".join(map(str, self.devices)),
            parameters=self.parameters.to_dict(),
            seconds=time.perf_counter() - start,
        )
        write_json(folder / "classes.json", result.to_json())
        return result

    def _check(self, particles, references, state):
        if not len(particles):
            raise ParameterError("particles: expected at least one, found none")
        particles.require_uniform()
        if references is not None and state is not None:
            raise ParameterError("initial references: expected none together with the state of an earlier run")
        if self.parameters.fixed_references and references is None and state is None:
            raise ParameterError("fixed_references: expected initial references or an earlier run, found neither")
        fewest = self.parameters.number_of_classes
        if references is None and state is None and len(particles) < fewest:
            raise ParameterError(
                f"number_of_classes: expected at most {len(particles)}, the number of particles, found {fewest}"
            )

    def _state(self, particles, path):
        """Particles to go on with, the new ones last, and the state to begin in."""
        settings = dict(
            box=particles.box,
            sampling_rate=particles.sampling_rate,
            has_ctf=particles.has_ctf,
            parameters=self.parameters.to_dict(),
            particles=fingerprint(particles),
        )
        if path is None:
            return particles, RunState(settings)
        state = load_state(path)
        state.check(path, settings)
        state = continued(state, settings) if state.stage == DONE else state
        return with_earlier(state.kept, particles), state


def read_references(references, particles):
    """Images (K, n, n) of a stack, whose header must agree with the particles; an array stays what it is."""
    if references is None or isinstance(references, np.ndarray):
        return references
    stack = open_stack(references)
    box, rate, expected = particles.box, stack.sampling_rate, particles.sampling_rate
    if stack.shape[1:] != (box, box):
        found = f"{stack.shape[1]} x {stack.shape[2]} px"
        raise InputFileError(references, f"images of {box} x {box} px, as the particles have", found)
    if rate and expected and abs(rate - expected) > _RATE_TOLERANCE * expected:
        raise InputFileError(references, f"the particles' {expected:g} A/px", f"{rate:g} A/px")
    return stack.read()
