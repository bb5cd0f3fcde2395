"""Parameters of the 2D classification."""

from __future__ import annotations

import dataclasses

from xmipp_accel.parameters import Parameters, parameter, scratch_parameter


@dataclasses.dataclass(frozen=True)
class Classify2DParameters(Parameters):
    """How particles are sorted into 2D classes; see :mod:`xmipp_accel.particle_alignment.classify2d`."""

    number_of_classes: int = parameter(
        16, "Most classes that can hold particles; initial references, if given, set it.", minimum=1
    )
    iterations: int = parameter(
        25, "Iterations after seeding; each one passes over one batch of particles.", minimum=1
    )
    max_shift: float = parameter(
        10.0, "Largest displacement of a particle from the centre.", unit="% of box", minimum=0.0, maximum=50.0
    )
    max_resolution: float = parameter(
        0.0,
        "Finest detail that takes part in the comparison; 0 means 0.7 of Nyquist, and 32 rings at most.",
        unit="A",
        minimum=0.0,
    )
    mask_radius: float = parameter(
        0.0,
        "Radius of the soft circle around the particle, at most half the box; 0 means 0.45 of the box.",
        unit="px",
        minimum=0.0,
    )
    mirrors: bool = parameter(False, "Let a class hold mirror images of its average.")
    ctf: str = parameter(
        "weight",
        "weight: compare and average with the CTF of each particle; none: ignore the CTF.",
        choices=("weight", "none"),
    )
    assignment: str = parameter(
        "hard",
        "hard: each particle counts for the average of its best class; soft: it is shared between classes by its"
        " likelihood, and the shares are written.",
        choices=("hard", "soft"),
    )
    fixed_references: bool = parameter(
        False,
        "Assign the particles to the initial references, or to the classes of an earlier run, as they are; neither"
        " is changed by the particles.",
    )
    split_merge_rounds: int = parameter(
        6,
        "Most rounds that look for a better set of classes by splitting poor ones and merging similar ones.",
        minimum=0,
        advanced=True,
    )
    initial_temperature: float = parameter(
        4.0,
        "Softness of the assignment at the start, relative to the likelihood of the noise; 1 is no annealing.",
        minimum=1.0,
        advanced=True,
    )
    batch_size: int = parameter(
        0,
        "Particles of one iteration; until as many have come, all are sorted anew with each further instalment."
        " 0 takes 200 for each class and at least 3000.",
        minimum=0,
        advanced=True,
    )
    seed: int = parameter(0, "Seed of every random choice.", minimum=0, advanced=True)
    scratch: str = scratch_parameter()
