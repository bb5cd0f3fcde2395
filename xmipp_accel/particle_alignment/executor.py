"""Align Significant: particles against all references, exhaustively; files in, poses out."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np

from xmipp_accel.backend import CPU, Device, one_blas_thread
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.particles import write_particles
from xmipp_accel.io.publish import write_json
from xmipp_accel.particle_alignment.align import PolarAligner
from xmipp_accel.particle_alignment.assignment import assign, write_updated_references
from xmipp_accel.particle_alignment.compat import OriginalAligner
from xmipp_accel.particle_alignment.gallery import References, open_references
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters


@dataclasses.dataclass(frozen=True)
class AlignSignificantResult:
    """What an alignment produced.

    Attributes
    ----------
    kind : {"projection", "2d"}
        Whether the references had projection directions. Poses are in the projection convention either way: the
        image is shifted by (shift_x, shift_y), then turned by psi; with "2d", rot and tilt are 0 and `flip` tells
        that the mirrored reference fitted (`xmipp_accel.particle_alignment.poses.align2d_matrix` gives Scipion's).
    particles_xmd, particles_star : str
        Absolute paths of ``aligned.xmd`` and ``aligned.star``: one row for each particle and kept reference, best
        first, with ``maxCC``, ``weight``, ``ref``, ``margin`` and ``entropy``.
    references_xmd : str
        Absolute path of ``references.xmd``, the updated references' table; empty unless they were asked for.
    n_particles, n_unusable, n_aligned, n_rows, n_references : int
        Particles given, those whose images are constant or not finite, those with a positive score, rows written,
        references compared.
    n_rings, n_harmonics, n_shifts : int
        Size of the search: Fourier rings, angular harmonics, shifts; 0 with the original's algorithm.
    resolution : float
        A, of the outermost ring (0 if the sampling rate is unknown).
    mask_radius : float
        Px.
    mean_cc : float
        Mean correlation of the best rows.
    at_shift_limit : float
        Share of the best rows whose shift is within half a pixel of the largest one allowed.
    device : str
        Or several, with commas between them.
    parameters : dict
        Of the run.
    seconds : float
    """

    kind: str
    particles_xmd: str
    particles_star: str
    references_xmd: str
    n_particles: int
    n_unusable: int
    n_aligned: int
    n_rows: int
    n_references: int
    n_rings: int
    n_harmonics: int
    n_shifts: int
    resolution: float
    mask_radius: float
    mean_cc: float
    at_shift_limit: float
    device: str
    parameters: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """One line for people."""
        unusable = f", {self.n_unusable} unusable images left out" if self.n_unusable else ""
        return (
            f"{self.n_aligned} of {self.n_particles} particles aligned to {self.n_references} references in "
            f"{self.seconds:.1f} s, mean correlation {self.mean_cc:.3f}{unusable}; {self.particles_star}"
        )


class AlignSignificantExecutor:
    """Aligns particle sets; long-lived, bound to its devices.

    Parameters
    ----------
    parameters : AlignSignificantParameters
    devices : Device
        With several, each takes the next batch of particles when it is free; the result is the same.
    """

    def __init__(self, parameters: AlignSignificantParameters, *devices: Device):
        self.parameters = parameters
        self.devices = devices or (CPU,)

    def align(
        self,
        particles,
        references,
        output_folder: str | Path,
        progress: Callable[[int, int], None] | None = None,
        candidate_mask=None,
    ) -> AlignSignificantResult:
        """Align `particles` to `references` and write the result into `output_folder`.

        Parameters
        ----------
        particles : Particles
            Their CTF is used if they have one; their poses are not.
        references : path, Particles or References
            A volume; a gallery table (.doc, .xmd, .star, or `Particles`) whose rot and tilt are the directions;
            or a stack of 2D averages (.mrcs, .stk, or a table without angles).
        output_folder : path
            Made if absent. Receives ``aligned.xmd``, ``aligned.star``, with `update_references` also
            ``references.mrcs`` and ``references.xmd``, and, last, ``aligned.json``.
        progress : callable, optional
            Called as ``progress(done, total)`` with numbers of particles.
        candidate_mask : (n_particles, n_references) bool array, optional
            False excludes a pair.

        Raises
        ------
        InputFileError, ParameterError, ProcessingError
        """
        start = time.perf_counter()
        if not len(particles):
            raise ParameterError("particles: expected at least one, found none")
        particles.require_uniform()
        chosen = self.parameters
        if not isinstance(references, References):
            references = open_references(references, **chosen.gallery())
        folder = Path(output_folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with one_blas_thread():  # its threads would take cores from the kernels, and change the last digits
            aligners = make_aligners(references, particles, chosen, self.devices)
            rows = assign(aligners, particles, references, chosen, progress, candidate_mask)
        write_particles(folder / "aligned.xmd", rows.particles)
        write_particles(folder / "aligned.star", rows.particles)
        updated = ""
        if chosen.update_references:
            with self.devices[0].activate():
                updated = str(write_updated_references(folder, rows, references, self.devices[0]))
        result = self._summarize(aligners[0], references, particles, rows, folder, updated, start)
        write_json(folder / "aligned.json", result.to_json())
        return result

    def _summarize(self, aligner, references, particles, rows, folder, updated, start):
        best = rows.particles.take(rows.first)
        length = np.hypot(best.shift_x, best.shift_y)
        return AlignSignificantResult(
            kind=references.kind,
            particles_xmd=str(folder / "aligned.xmd"),
            particles_star=str(folder / "aligned.star"),
            references_xmd=updated,
            n_particles=len(particles),
            n_unusable=len(rows.unusable),
            n_aligned=int(rows.first.sum()),
            n_rows=len(rows.particles),
            n_references=len(references),
            **aligner.description,
            mean_cc=float(np.mean(best.extra["maxCC"])) if len(best) else 0.0,
            at_shift_limit=float(np.mean(length > aligner.max_shift - 0.5)) if len(best) else 0.0,
            device=", ".join(map(str, self.devices)),
            parameters=self.parameters.to_dict(),
            seconds=time.perf_counter() - start,
        )


def make_aligners(references, particles, parameters, devices) -> list[PolarAligner | OriginalAligner]:
    """One aligner for each device, all at the same time, as each has the references transformed on its own."""
    kind = PolarAligner if parameters.algorithm == "polar" else OriginalAligner

    def make(device):
        with device.activate():
            return kind(references, particles, parameters, device)

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(make, devices))
