"""Particles on disk to a map, half maps and their FSC."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xmipp_accel.backend import CPU, Device
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.scratch import scratch
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.geometry import plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.halves import read_mask, read_reference
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.result import ReconstructFourierResult
from xmipp_accel.reconstruction.run import Insertion
from xmipp_accel.reconstruction.selection import decide, select
from xmipp_accel.reconstruction.state import has_state, held, load_state, save_state
from xmipp_accel.reconstruction.update import join_states, plan_update


class ReconstructFourierExecutor:
    """3D Fourier reconstruction on one device or several.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
    devices : Device
        The CPU by default; maps are made on the first one.
    """

    def __init__(self, parameters: ReconstructFourierParameters, *devices: Device):
        self.parameters = parameters
        self.devices = devices or (CPU,)

    def new_accumulator(self, box: int, sampling_rate: float) -> FourierAccumulator:
        """Empty sums for a map of `box` px at `sampling_rate` A/px; ``"auto"`` means no CTF here."""
        parameters = self.parameters
        if parameters.ctf == "auto":
            parameters = dataclasses.replace(parameters, ctf="none")
        return FourierAccumulator(parameters, self.devices[0], box, sampling_rate)

    def check(self, particles):
        """Raise the `ParameterError` by which :meth:`reconstruct` would refuse particles like these."""
        parameters = decide(self.parameters, particles)
        plan_volume(parameters, plan_gridding(parameters), particles.box, float(particles.sampling_rate))

    def reconstruct(
        self, particles, output_folder, name="volume", progress=None, state=None
    ) -> ReconstructFourierResult:
        """Reconstruct a set of particles.

        The map has box and pixels of the first particle's optics group.

        With `state`, the sums are saved, and the next call with that folder adds the particles that are new, takes
        out those that are gone, and does both for those that have changed. Half sets and groups of particles that
        have none of their own stay; noise and the scale of scores stay those of the first call. The map is that of
        a reconstruction of all particles at once, up to the rounding that :mod:`~.update` tells of.

        Parameters
        ----------
        particles : xmipp_accel.io.particles.Particles
            With poses.
        output_folder : path
            Receives ``<name>.mrc``, with half maps ``<name>_half1.mrc`` and ``<name>_half2.mrc``, and at last
            ``<name>.json``.
        name : str
        progress : callable, optional
            Called with (particles done, particles in all).
        state : path, optional
            Folder of a state, made by the first call.

        Raises
        ------
        ParameterError
            The particles lack what the parameters ask for.
        InputFileError
            An image cannot be read, or the state does not fit the parameters, the box or the pixels.
        ProcessingError
            No particle is left, memory is short, or another run uses the state.
        """
        started = time.perf_counter()
        parameters, folder = decide(self.parameters, particles), Path(output_folder)
        box, rate = particles.box, float(particles.sampling_rate)
        mask = _mask(parameters, box, rate)
        reference = read_reference(parameters.subtract, box, rate) if parameters.subtract else None

        def preview(accumulator):
            os.makedirs(folder, exist_ok=True)
            with accumulator.device.activate():
                write_volume(folder / f"{name}_preview.mrc", accumulator.preview(), rate)

        options = dict(devices=self.devices, progress=progress, reference=reference, preview=preview)
        with scratch(parameters.scratch) as copied:
            insertion = functools.partial(_insertion, copied, parameters, **options)
            if state is None:
                selection, changes = select(parameters, particles), {}
                job, number = insertion(particles=particles, selection=selection), len(selection.rows)
                accumulator = job.run(box, rate)
            else:
                with held(state):
                    update = plan_update(state, parameters, particles, reference)
                    job, accumulator, changes = update.run(state, insertion)
                number = update.number
        known = dict(skipped=len(particles) - number, unusable=int((~job.usable).sum()), state=changes)
        return self._finish(accumulator, job, mask, folder, name, started, **known)

    def _finish(self, accumulator, job, mask, folder, name, started, **known):
        """Make and publish the maps, and at last the result."""
        inserted = time.perf_counter()
        maps = accumulator.finish(mask)
        result = self._publish(maps, accumulator, folder, name)
        now = time.perf_counter()
        seconds = dict(wait=job.waited, insert=inserted - started, finish=now - inserted, total=now - started)
        result = dataclasses.replace(
            result,
            device=", ".join(map(str, self.devices)),
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
            **known,
        )
        write_json(folder / f"{name}.json", result.to_json())
        return result

    def _publish(self, maps, accumulator, folder, name):
        """Write the maps; the result still lacks its times and skipped particles."""
        rate = accumulator.volume.sampling_rate
        os.makedirs(folder, exist_ok=True)
        volumes = {"volume": ("", maps.full), "half1": ("_half1", maps.half1), "half2": ("_half2", maps.half2)}
        volumes["error_map"] = "_error", None if maps.errors is None else maps.errors.map
        files = {
            field: "" if volume is None else f"{name}{ending}.mrc" for field, (ending, volume) in volumes.items()
        }

        def write(field):
            if files[field]:
                with accumulator.device.activate():
                    write_volume(folder / files[field], volumes[field][1], rate)

        with ThreadPoolExecutor(len(files)) as writers:
            list(writers.map(write, files))
        return _result(files, accumulator, maps.statistics(rate), self.parameters)


def merge_states(states, state, output_folder, name="volume", devices=()) -> ReconstructFourierResult:
    """Join the states of reconstructions of disjoint sets of particles, and make the map of them all.

    Parameters
    ----------
    states : sequence of path
        Folders of states of equal parameters, box and pixel size; they stay as they are.
    state : path
        Folder of the joint state, as yet without one.
    output_folder : path
    name : str
    devices : sequence of Device
        See :class:`ReconstructFourierExecutor`.

    Raises
    ------
    InputFileError
        A state is damaged, does not fit the first one, or holds a particle of one before it.
    ProcessingError
        Another run uses the folder of the joint state.
    """
    started = time.perf_counter()
    found = [load_state(folder) for folder in states]
    joint = join_states(states, found)
    parameters, sizes = joint.parameters, (joint.settings["box"], joint.settings["sampling_rate"])
    executor, mask = ReconstructFourierExecutor(parameters, *devices), _mask(parameters, *sizes)
    with held(state):
        if has_state(state):
            raise InputFileError(state, "a folder without a state", "one")
        nothing = joint.members.take(slice(0)).to_insert()
        job = Insertion(parameters, *nothing, executor.devices, earlier=[(one.sums, one.counts) for one in found])
        accumulator = job.run(*sizes)
        sums, counts = accumulator.export()
        save_state(state, dataclasses.replace(joint, sums=sums, counts=counts))
    changes = dict(added=0, removed=0, kept=len(joint.members), anew=False)
    return executor._finish(accumulator, job, mask, Path(output_folder), name, started, state=changes)


def _insertion(copied, parameters, particles, selection, **options):
    """An `Insertion` of images from copies of those stacks that it needs."""
    return Insertion(parameters, copied(particles, selection.rows), selection, **options)


def _mask(parameters, box, sampling_rate):
    """The mask for the FSC and the support, if there is one in a file."""
    if not (parameters.mask_file and (parameters.halves or parameters.refine_support)):
        return None
    return read_mask(parameters.mask_file, box, sampling_rate)


def _result(files, accumulator, statistics, requested):
    counts, groups = accumulator.counts, accumulator.groups
    return ReconstructFourierResult(
        **files,
        **statistics,
        box=accumulator.volume.box,
        sampling_rate=accumulator.volume.sampling_rate,
        particles=sum(counts),
        particles_half1=sum(counts[:groups]) if requested.halves else 0,
        particles_half2=sum(counts[groups:]),
        skipped=0,
        symmetry=accumulator.parameters.symmetry.lower(),
        method="least_squares" if requested.refine_iterations else requested.method,
        ctf=accumulator.parameters.ctf,
        device="",
        seconds={},
        parameters=requested.to_dict(),
    )
