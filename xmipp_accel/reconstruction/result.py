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
    symmetry, method, ctf, device : str
        As used, so never ``"auto"``.
    frequencies : list of float
        1/A, of each element of the curves below; empty without half maps.
    fsc_unmasked, fsc_masked : list of float
        Half-map FSC, without mask and within the soft sphere of `mask_diameter` A.
    resolution, resolution_unmasked : float
        A, where the masked and unmasked FSC fall below 0.143; 0 without half maps.
    seconds : dict
        Wall time by stage: ``read``, ``insert``, ``finish``, ``total``.
    parameters : dict
        The parameters of the run.
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
    mask_diameter: float
    frequencies: list[float]
    fsc_unmasked: list[float]
    fsc_masked: list[float]
    resolution: float
    resolution_unmasked: float
    seconds: dict[str, float]
    parameters: dict[str, Any]

    def summary(self) -> str:
        """The result in a few lines for a terminal."""
        lines = [
            f"{self.volume}: {self.box} px at {self.sampling_rate:g} A/px, {self.symmetry}, from {self.particles} "
            f"particles ({self.skipped} skipped), method {self.method}, CTF {self.ctf}"
        ]
        if self.frequencies:
            lines.append(
                f"resolution at FSC 0.143: {self.resolution:.2f} A within {self.mask_diameter:.0f} A, "
                f"{self.resolution_unmasked:.2f} A without mask"
            )
        lines.append(f"{self.seconds.get('total', 0.0):.1f} s on {self.device}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for :func:`xmipp_accel.io.publish.write_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ReconstructFourierResult:
        """Build from the content of ``<name>.json``."""
        return cls(**values)
