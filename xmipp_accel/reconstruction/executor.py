"""Particles on disk to a map, half maps and their FSC."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from xmipp_accel.backend import CPU, Device, to_host
from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.halves import assign_halves, compare_halves, weigh_by_fsc
from xmipp_accel.reconstruction.optics import ParticleOptics
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.result import ReconstructFourierResult

logger = logging.getLogger(__name__)


class ReconstructFourierExecutor:
    """3D Fourier reconstruction on one device.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
    device : Device
    """

    def __init__(self, parameters: ReconstructFourierParameters, device: Device):
        self.parameters = parameters
        self.device = device

    def new_accumulator(self, box: int, sampling_rate: float) -> FourierAccumulator:
        """Empty sums for images of `box` px at `sampling_rate` A/px; ``"auto"`` means no CTF here."""
        parameters = self.parameters
        if parameters.ctf == "auto":
            parameters = dataclasses.replace(parameters, ctf="none")
        return FourierAccumulator(parameters, self.device, box, sampling_rate)

    def reconstruct(self, particles, output_folder, name="volume", progress=None) -> ReconstructFourierResult:
        """Reconstruct a set of particles.

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
            No particle is left, or memory is short on the GPU and the CPU.
        """
        started = time.perf_counter()
        parameters = self._decide(particles)
        chosen = self._chosen(particles)
        halves = assign_halves(particles.half[chosen], parameters.seed) if parameters.halves else None
        accumulator = self._accumulator(parameters, particles)
        seconds = self._insert_all(accumulator, particles, chosen, halves, progress)
        finishing = time.perf_counter()
        maps = accumulator.finish()
        result = self._publish(maps, accumulator, Path(output_folder), name)
        now = time.perf_counter()
        seconds.update(finish=now - finishing, total=now - started)
        result = dataclasses.replace(
            result,
            skipped=len(particles) - len(chosen),
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
        )
        write_json(Path(output_folder) / f"{name}.json", result.to_json())
        return result

    def _decide(self, particles):
        """Check the particles against the parameters and return these with a definite `ctf`."""
        if not particles.has_pose:
            raise ParameterError("particles: expected angles for a reconstruction, found none")
        rates = np.unique(np.round(np.asarray(particles.sampling_rate, dtype=np.float64), 5))
        if len(rates) != 1:
            raise ParameterError(f"particles: expected one pixel size, found {', '.join(map(str, rates))} A/px")
        ctf = self.parameters.ctf
        if ctf == "auto":
            ctf = "weight" if particles.has_ctf else "none"
        elif ctf != "none" and not particles.has_ctf:
            raise ParameterError(f"ctf: expected particles with a CTF for {ctf!r}, found none")
        return dataclasses.replace(self.parameters, ctf=ctf)

    def _chosen(self, particles):
        wanted = np.asarray(particles.enabled, dtype=bool).copy()
        if self.parameters.use_weights:
            weight = np.asarray(particles.weight, dtype=np.float64)
            if not (np.isfinite(weight) & (weight >= 0)).all():
                raise ParameterError(
                    "use_weights: expected weights of 0 or more, found negative or undefined ones"
                )
            wanted &= weight > 0
        chosen = np.flatnonzero(wanted)
        if len(chosen) < (2 if self.parameters.halves else 1):
            raise ProcessingError(f"reconstruction: expected enabled particles, found {len(chosen)}")
        return chosen

    def _accumulator(self, parameters, particles):
        sizes = (int(particles.box), float(np.asarray(particles.sampling_rate).flat[0]))
        try:
            return FourierAccumulator(parameters, self.device, *sizes)
        except (ProcessingError, MemoryError) as error:
            if self.device.kind == "cpu":
                raise
            logger.warning("Using the CPU: %s", error)
            return FourierAccumulator(parameters, CPU, *sizes)

    def _insert_all(self, accumulator, particles, chosen, halves, progress):
        """Read and insert in batches, the next one being read meanwhile; returns seconds by stage."""
        size = accumulator.batch_size()
        batches = [slice(first, first + size) for first in range(0, len(chosen), size)]
        seconds = dict(read=0.0, insert=0.0)
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending = reader.submit(particles.images, chosen[batches[0]])
            for number, batch in enumerate(batches):
                begun = time.perf_counter()
                images = pending.result()
                if number + 1 < len(batches):
                    pending = reader.submit(particles.images, chosen[batches[number + 1]])
                arrived = time.perf_counter()
                self._insert(accumulator, particles.take(chosen[batch]), images, halves, batch)
                seconds["read"] += arrived - begun
                seconds["insert"] += time.perf_counter() - arrived
                if progress is not None:
                    progress(min(batch.stop, len(chosen)), len(chosen))
        return seconds

    def _insert(self, accumulator, members, images, halves, batch):
        accumulator.insert(
            images,
            euler_to_matrix(members.rot, members.tilt, members.psi),
            np.stack([members.shift_y, members.shift_x], axis=1),
            weights=members.weight if self.parameters.use_weights else None,
            optics=ParticleOptics.from_particles(members) if members.has_ctf else None,
            flips=members.flip,
            halves=None if halves is None else halves[batch],
        )

    def _publish(self, maps, accumulator, folder, name):
        """Compare the halves and write the maps; the result still lacks its times and skipped particles."""
        parameters, grid = accumulator.parameters, accumulator.volume
        os.makedirs(folder, exist_ok=True)
        files = {"volume": f"{name}.mrc", "half1": "", "half2": ""}
        agreement, full = None, maps.full
        if maps.half1 is not None:
            files.update(half1=f"{name}_half1.mrc", half2=f"{name}_half2.mrc")
            with accumulator.device.activate():
                agreement = compare_halves(maps.half1, maps.half2, grid.sampling_rate, parameters.mask_diameter)
                if parameters.fsc_weighting:
                    full = weigh_by_fsc(full, agreement.fsc_masked)
        for volume, key in ((full, "volume"), (maps.half1, "half1"), (maps.half2, "half2")):
            if volume is not None:
                write_volume(folder / files[key], to_host(volume), grid.sampling_rate)
        return _result(files, accumulator, agreement, self.parameters)


def _result(files, accumulator, agreement, requested):
    counts, curve = accumulator.counts, lambda name: [] if agreement is None else getattr(agreement, name).tolist()
    return ReconstructFourierResult(
        **files,
        box=accumulator.volume.box,
        sampling_rate=accumulator.volume.sampling_rate,
        particles=sum(counts),
        particles_half1=counts[0] if len(counts) == 2 else 0,
        particles_half2=counts[1] if len(counts) == 2 else 0,
        skipped=0,
        symmetry=accumulator.parameters.symmetry.lower(),
        method=accumulator.parameters.method,
        ctf=accumulator.parameters.ctf,
        device=str(accumulator.device),
        mask_diameter=0.0 if agreement is None else agreement.mask_diameter,
        frequencies=curve("frequencies"),
        fsc_unmasked=curve("fsc_unmasked"),
        fsc_masked=curve("fsc_masked"),
        resolution=0.0 if agreement is None else agreement.resolution,
        resolution_unmasked=0.0 if agreement is None else agreement.resolution_unmasked,
        seconds={},
        parameters=requested.to_dict(),
    )
