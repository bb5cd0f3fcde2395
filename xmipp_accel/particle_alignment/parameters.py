"""What a user can choose when particles are aligned to references."""

from __future__ import annotations

import dataclasses

from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.symmetry import normalize_symmetry
from xmipp_accel.parameters import Parameters, parameter


@dataclasses.dataclass(frozen=True)
class AlignSignificantParameters(Parameters):
    """Parameters of `xmipp_accel.particle_alignment.executor.AlignSignificantExecutor`."""

    symmetry: str = parameter("c1", "Point group of the volume: c1, cn, dn, t, o, i1, i2, i3 or i4.")
    angular_sampling: float = parameter(
        5.0,
        "Distance between neighbouring projection directions of a volume.",
        unit="degrees",
        minimum=0.5,
        maximum=40.0,
    )
    min_tilt: float = parameter(0.0, "Smallest tilt of a reference.", unit="degrees", minimum=0.0, maximum=180.0)
    max_tilt: float = parameter(180.0, "Largest tilt of a reference.", unit="degrees", minimum=0.0, maximum=180.0)
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
        10.0,
        "Largest shift that is searched, as a share of the box.",
        unit="% of the box",
        minimum=0.0,
        maximum=50.0,
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
        normalize_symmetry(self.symmetry)
        if self.min_tilt > self.max_tilt:
            raise ParameterError(
                f"min_tilt: expected at most max_tilt ({self.max_tilt:g}), found {self.min_tilt:g}"
            )
