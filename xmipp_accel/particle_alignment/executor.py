"""Align Significant: particles against all references, exhaustively; files in, poses out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable

from xmipp_accel.backend.devices import CPU, Device
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
    n_particles, n_aligned, n_rows, n_references : int
        Particles given, particles with a positive score, rows written, references compared.
    n_rings, n_harmonics, n_shifts : int
        Size of the search: Fourier rings, angular harmonics, shifts.
    resolution : float
        A, of the outermost ring (0 if the sampling rate is unknown).
    mask_radius : float
        Px.
    mean_cc : float
        Mean correlation of the best rows.
    at_shift_limit : float
        Share of the best rows whose shift is within half a pixel of the largest one allowed.
    device : str
    parameters : dict
        Of the run.
    seconds : float
    """

    kind: str
    particles_xmd: str
    particles_star: str
    references_xmd: str
    n_particles: int
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
        return (
            f"{self.n_aligned} of {self.n_particles} particles aligned to {self.n_references} references in "
            f"{self.seconds:.1f} s, mean correlation {self.mean_cc:.3f}; {self.particles_star}"
        )


class AlignSignificantExecutor:
    """Aligns particle sets; long-lived, bound to one device.

    Parameters
    ----------
    parameters : AlignSignificantParameters
    device : Device
    """

    def __init__(self, parameters: AlignSignificantParameters, device: Device = CPU):
        self.parameters = parameters
        self.device = device

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
        references : path or Particles
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
        raise NotImplementedError
