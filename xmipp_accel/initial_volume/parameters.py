"""What a user can choose when an initial volume is made."""

from __future__ import annotations

import dataclasses

from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.symmetry import normalize_symmetry
from xmipp_accel.parameters import parameter
from xmipp_accel.particle_alignment.parameters import GalleryParameters


@dataclasses.dataclass(frozen=True)
class ReconstructSignificantParameters(GalleryParameters):
    """Parameters of `xmipp_accel.initial_volume.executor.ReconstructSignificantExecutor`."""

    starts: int = parameter(
        8, "Independent random starts; the one whose volume the images match best goes on.", minimum=1
    )
    iterations: int = parameter(
        50, "Iterations: half of them coarse and in every start, half finer and from the best start.", minimum=2
    )
    alpha_start: float = parameter(
        80.0,
        "Significance in the first iteration: the share of all directions that an image does not count in.",
        unit="%",
        minimum=0.0,
        maximum=99.99,
    )
    alpha_end: float = parameter(99.5, "Significance in the last iteration.", unit="%", minimum=0.0, maximum=99.99)
    max_resolution: float = parameter(
        12.0,
        "Finest resolution of the comparison and of the volume; the iterations sample directions no finer than it "
        "needs.",
        unit="A",
        minimum=1.0,
    )
    start_resolution: float = parameter(
        0.0,
        "Resolution of the first half of the iterations; 0 means a sixth of the mask's diameter.",
        unit="A",
        minimum=0.0,
    )
    max_shift: float = parameter(
        5.0,
        "Largest shift that is searched, as a share of the box.",
        unit="% of the box",
        minimum=0.0,
        maximum=50.0,
    )
    mask_radius: float = parameter(
        0.0, "Radius of the soft mask; 0 fits it to the images.", unit="px", minimum=0.0
    )
    ctf: str = parameter(
        "ctf",
        "How the images' CTF enters: multiplied into the references, or not at all.",
        choices=("ctf", "none"),
    )
    phase_flipped: bool = parameter(False, "The images' phases have been flipped already.")
    images_per_iteration: int = parameter(
        200, "Images drawn at random for each iteration; 0 takes all.", minimum=0, advanced=True
    )
    keep_intermediate: bool = parameter(False, "Write the volume after every iteration.", advanced=True)
    seed: int = parameter(0, "Seed of the random numbers.", minimum=0, advanced=True)

    def __post_init__(self):
        super().__post_init__()
        normalize_symmetry(self.symmetry)
        if self.alpha_start > self.alpha_end:
            raise ParameterError(
                f"alpha_start: expected at most alpha_end ({self.alpha_end:g}), found {self.alpha_start:g}"
            )
