"""Particles on disk to a map, half maps and their FSC."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xmipp_accel.backend import CPU, Device, to_host
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.geometry import plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.halves import read_mask, read_reference
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.result import ReconstructFourierResult
from xmipp_accel.reconstruction.run import Insertion
from xmipp_accel.reconstruction.selection import decide, select


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

    def reconstruct(self, particles, output_folder, name="volume", progress=None) -> ReconstructFourierResult:
        """Reconstruct a set of particles.

        The map has box and pixels of the first particle's optics group.

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

        Raises
        ------
        ParameterError
            The particles lack what the parameters ask for.
        InputFileError
            An image cannot be read.
        ProcessingError
            No particle is left, or memory is short.
        """
        started = time.perf_counter()
        parameters, folder = decide(self.parameters, particles), Path(output_folder)
        box, rate = particles.box, float(particles.sampling_rate)
        mask = read_mask(parameters.mask_file, box, rate) if parameters.halves and parameters.mask_file else None
        reference = read_reference(parameters.subtract, box, rate) if parameters.subtract else None
        selection = select(parameters, particles)

        def preview(accumulator):
            os.makedirs(folder, exist_ok=True)
            write_volume(folder / f"{name}_preview.mrc", to_host(accumulator.preview()), rate)

        insertion = Insertion(parameters, particles, selection, self.devices, progress, reference, preview)
        accumulator = insertion.run(box, rate)
        inserted = time.perf_counter()
        maps = accumulator.finish(mask)
        result = self._publish(maps, accumulator, folder, name)
        now = time.perf_counter()
        seconds = dict(
            wait=insertion.waited, insert=inserted - started, finish=now - inserted, total=now - started
        )
        result = dataclasses.replace(
            result,
            skipped=len(particles) - len(selection.rows),
            unusable=insertion.unusable,
            device=", ".join(map(str, self.devices)),
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
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
                write_volume(folder / files[field], to_host(volumes[field][1]), rate)

        with ThreadPoolExecutor(len(files)) as writers:
            list(writers.map(write, files))
        return _result(files, accumulator, maps.statistics(rate), self.parameters)


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
        method=accumulator.parameters.method,
        ctf=accumulator.parameters.ctf,
        device="",
        seconds={},
        parameters=requested.to_dict(),
    )
