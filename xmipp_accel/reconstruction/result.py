"""What a Fourier reconstruction leaves behind."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class ReconstructFourierResult:
    """Result of one reconstruction, written as ``<name>.json`` after every other file.

    Attributes
    ----------
    volume, half1, half2 : str
        File names relative to the folder of the JSON; the halves are empty without half maps.
    box : int
        Edge in px.
    sampling_rate : float
        A/px.
    particles, particles_half1, particles_half2, skipped : int
        How many were inserted, in which half, and how many were disabled or had weight 0.
    unusable : int
        How many were left out because their images hold values that are not finite.
    symmetry, method, ctf, device : str
        As used, so never ``"auto"``.
    seconds : dict
        Wall time by stage: ``insert`` (all until the last image is in), ``finish`` and ``total``; of ``insert``,
        ``wait`` is what devices waited for images.
    parameters : dict
        The parameters of the run.
    frequencies : list of float
        1/A, of each element of the FSC curves and of `relative_error`; empty without half maps.
    fsc_unmasked, fsc_masked, fsc_randomised, fsc_corrected : list of float
        Half-map FSC without mask, within the mask, within it with random phases beyond `randomised_from` A (0 if
        none were randomised), and the masked one without what the mask adds.
    mask_diameter : float
        A; 0 where the mask came from a file.
    resolution, resolution_unmasked : float
        A, where the corrected and unmasked FSC fall below 0.143; 0 without half maps.
    coverage : dict
        How the views cover Fourier space: see :class:`~.coverage.Coverage`, with the `frequencies` in 1/A of its
        shells.
    error_map : str
        File of the standard error of each voxel; empty without `error_groups`, like what follows.
    relative_error : list of float
        Standard error of each shell over the map's amplitude.
    residuals : list of float
        Of each iteration of a least-squares map: what its fit leaves of the samples brought to the voxels, as a
        fraction; empty for direct maps.
    growth : dict
        Resolution against the number of particles: see :class:`~.jackknife.Growth`.
    state : dict
        With a state, how many particles were ``added`` to its sums, ``removed`` and ``kept``, one that changed
        being removed and added; ``anew`` tells whether all of them were inserted.
    """

    volume: str
    half1: str
    half2: str
    box: int
    sampling_rate: float
    particles: int
    particles_half1: int
    particles_half2: int
    skipped: int
    symmetry: str
    method: str
    ctf: str
    device: str
    seconds: dict[str, float]
    parameters: dict[str, Any]
    frequencies: list[float] = dataclasses.field(default_factory=list)
    fsc_unmasked: list[float] = dataclasses.field(default_factory=list)
    fsc_masked: list[float] = dataclasses.field(default_factory=list)
    fsc_randomised: list[float] = dataclasses.field(default_factory=list)
    fsc_corrected: list[float] = dataclasses.field(default_factory=list)
    randomised_from: float = 0.0
    mask_diameter: float = 0.0
    resolution: float = 0.0
    resolution_unmasked: float = 0.0
    coverage: dict[str, Any] = dataclasses.field(default_factory=dict)
    error_map: str = ""
    relative_error: list[float] = dataclasses.field(default_factory=list)
    growth: dict[str, Any] = dataclasses.field(default_factory=dict)
    unusable: int = 0
    residuals: list[float] = dataclasses.field(default_factory=list)
    state: dict[str, Any] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """The result in a few lines for a terminal."""
        lines = [
            f"{self.volume}: {self.box} px at {self.sampling_rate:g} A/px, {self.symmetry}, from {self.particles} "
            f"particles ({self.skipped} skipped, {self.unusable} unusable), method {self.method}, CTF {self.ctf}"
        ]
        if self.state:
            line = "sums: {added} particles added, {removed} removed, {kept} kept".format(**self.state)
            lines.append(line + (", all inserted anew" if self.state["anew"] and self.state["kept"] else ""))
        if self.frequencies:
            mask = f"{self.mask_diameter:.0f} A" if self.mask_diameter else "the mask"
            lines.append(
                f"resolution at FSC 0.143: {self.resolution:.2f} A within {mask}, "
                f"{self.resolution_unmasked:.2f} A without mask"
            )
        if self.residuals:
            lines.append(f"least squares: {len(self.residuals)} iterations, residual {self.residuals[-1]:.1e}")
        if self.coverage:
            lines.append(_coverage_line(self.coverage))
        if self.growth.get("b_factor"):
            lines.append(f"B factor from resolution against particles: {self.growth['b_factor']:.0f} A^2")
        lines.append(f"{self.seconds.get('total', 0.0):.1f} s on {self.device}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for :func:`xmipp_accel.io.publish.write_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ReconstructFourierResult:
        """Build from the content of ``<name>.json``."""
        return cls(**values)


def _coverage_line(coverage):
    line = f"coverage by views: SCF {coverage['scf']:.2f} (1 is uniform)"
    if coverage["empty_directions"] > 0:
        rot, tilt = coverage["weakest"]
        line += (
            f", {coverage['empty_directions']:.0%} of the directions empty, around rot {rot:.0f}, tilt {tilt:.0f}"
        )
    return line
