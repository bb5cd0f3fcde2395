"""What a user can choose when particles are aligned to references."""

from __future__ import annotations

import dataclasses
from typing import Any

from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.symmetry import normalize_symmetry
from xmipp_accel.parameters import Parameters, parameter


@dataclasses.dataclass(frozen=True)
class GalleryParameters(Parameters):
    """Which projections of a volume particles are compared with."""

    symmetry: str = parameter("c1", "Point group of the volume: c1, cn, dn, t, o, i1, i2, i3 or i4.")
    angular_sampling: float = parameter(
        5.0,
        "Distance between neighbouring projection directions of a volume.",
        unit="degrees",
        minimum=0.5,
        maximum=40.0,
    )
    min_tilt: float = parameter(0.0, "Smallest tilt of a projection.", unit="degrees", minimum=0.0, maximum=180.0)
    max_tilt: float = parameter(180.0, "Largest tilt of a projection.", unit="degrees", minimum=0.0, maximum=180.0)

    def __post_init__(self):
        super().__post_init__()
        if self.min_tilt > self.max_tilt:
            raise ParameterError(
                f"min_tilt: expected at most max_tilt ({self.max_tilt:g}), found {self.min_tilt:g}"
            )


@dataclasses.dataclass(frozen=True)
class AlignSignificantParameters(GalleryParameters):
    """Parameters of `xmipp_accel.particle_alignment.executor.AlignSignificantExecutor`."""

    symmetry: str = parameter(
        "c1",
        "Point group of the volume: c1, cn, dn, t, o, i1 to i4, or one with mirrors: ci, cs, cnv, cnh, sn, dnv, "
        "dnh, td, th, oh, i1h to i4h.",
    )
    perturb: float = parameter(
        0.0,
        "Standard deviation of random displacements of a volume's projection directions.",
        unit="degrees",
        minimum=0.0,
        maximum=20.0,
        advanced=True,
    )
    seed: int = parameter(0, "Seed of the random displacements.", minimum=0, advanced=True)
    keep_best: int = parameter(1, "How many references each particle is assigned to.", minimum=1)
    angular_distance: float = parameter(
        10.0,
        "References within this angle share one pool of scores when weights are computed.",
        unit="degrees",
        minimum=0.0,
        maximum=180.0,
    )
    symmetric_neighbours: bool = parameter(
        True, "Measure the angle between references modulo the symmetry.", advanced=True
    )
    use_weight: bool = parameter(False, "Rank the references of a particle by weight instead of by correlation.")
    max_shift: float = parameter(
        10.0, "Largest shift that is searched, at most half the box, in the unit below.", minimum=0.0
    )
    max_shift_unit: str = parameter(
        "%", "Unit of the largest shift: % of the box, pixels of the particles, or A.", choices=("%", "px", "A")
    )
    max_resolution: float = parameter(
        0.0,
        "Compare only information coarser than this; 0 means the coarsest of 6 A, 3/4 of Nyquist and 40 rings.",
        unit="A",
        minimum=0.0,
    )
    mask_radius: float = parameter(
        0.0, "Radius of the soft circular mask; 0 fits it to the references.", unit="px", minimum=0.0
    )
    mirrors: bool = parameter(False, "Compare the mirrored references, too.")
    ctf: str = parameter(
        "ctf",
        "How the particles' CTF enters: multiplied into the references, as a phase flip, or not at all.",
        choices=("ctf", "phase_flip", "none"),
    )
    phase_flipped: bool = parameter(False, "The particles' phases have been flipped already.")
    whiten: bool = parameter(False, "Divide each resolution ring by the particles' mean spectrum.", advanced=True)
    refine: bool = parameter(True, "Refine angle and shifts of the best references beyond the search grid.")
    update_references: bool = parameter(False, "Write the weighted averages of the particles of each reference.")
    algorithm: str = parameter(
        "polar",
        "Exhaustive search in polar Fourier space, or, for comparison, the original's iterated shifts and "
        "rotations of the unfiltered images, which knows no CTF, mask, band limit, mirrors or refinement.",
        choices=("polar", "xmipp"),
        advanced=True,
    )
    memory_limit: float = parameter(
        0.0,
        "Device memory the search may use; 0 means half of what is free.",
        unit="GB",
        minimum=0.0,
        advanced=True,
    )

    def __post_init__(self):
        super().__post_init__()
        normalize_symmetry(self.symmetry, mirrors=True)

    def largest_shift(self, box, sampling_rate) -> float:
        """Largest shift in px for particles of `box` px and `sampling_rate` A/px, 0 if that is unknown.

        Raises
        ------
        ParameterError
            It is more than half the box, or in A without a sampling rate.
        """
        if self.max_shift_unit == "A" and not sampling_rate:
            raise ParameterError(
                "max_shift: expected % or px, as the particles' sampling rate is unknown, found A"
            )
        pixels = {"%": box / 100, "px": 1.0, "A": 1 / (sampling_rate or 1.0)}[self.max_shift_unit] * self.max_shift
        if pixels > box / 2:
            raise ParameterError(f"max_shift: expected at most half the box ({box / 2:g} px), found {pixels:g} px")
        return pixels

    def gallery(self) -> dict[str, Any]:
        """Arguments of `gallery.open_references` that choose the projections of a volume."""
        names = ("symmetry", "angular_sampling", "min_tilt", "max_tilt", "perturb", "seed")
        return {name: getattr(self, name) for name in names}
