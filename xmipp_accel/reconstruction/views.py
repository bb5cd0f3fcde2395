"""What is known of images besides their pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.reconstruction.optics import ParticleOptics


@dataclasses.dataclass(frozen=True)
class Views:
    """Geometry, optics and weight of n images; arrays on the host.

    Attributes
    ----------
    matrices : (n, 3, 3) float64 array
        Of :func:`xmipp_accel.numerics.rotations.euler_to_matrix`.
    shifts : (n, 2) float64 array
        To apply, (y, x) in px of the image.
    weights : (n,) float64 array, optional
        1 by default; negative takes an image out again.
    decays : (n,) float64 array, optional
        B factors in A^2: weights fall with ``exp(-B k^2 / 4)``. 0 by default.
    optics : ParticleOptics, optional
    halves : (n,) array of 1 and 2, optional
    groups : (n,) array of 0, 1, ..., optional
        For error bars.
    """

    matrices: Any
    shifts: Any
    weights: Any = None
    decays: Any = None
    optics: ParticleOptics | None = None
    halves: Any = None
    groups: Any = None

    def __post_init__(self):
        count = len(self.matrices)
        object.__setattr__(self, "matrices", np.asarray(self.matrices, np.float64).reshape(count, 3, 3))
        object.__setattr__(self, "shifts", np.asarray(self.shifts, np.float64).reshape(count, 2))
        for name, default in (("weights", 1.0), ("decays", 0.0)):
            values = default if getattr(self, name) is None else getattr(self, name)
            object.__setattr__(self, name, np.broadcast_to(np.asarray(values, np.float64), count))

    @classmethod
    def from_particles(cls, particles, **known) -> Views:
        """Views of `particles`; weights, decays, halves and groups are what `known` says.

        Where an image is to be mirrored in x before its shift and angles apply, which is how Scipion reads Xmipp's
        column ``flip``, the image as it is shows the same object from the other side.
        """
        side = np.where(particles.flip, -1.0, 1.0)
        matrices = euler_to_matrix(particles.rot, particles.tilt, particles.psi)
        matrices[:, [0, 2]] *= side[:, None, None]
        shifts = np.stack([particles.shift_y, side * particles.shift_x], axis=1)
        optics = ParticleOptics.from_particles(particles) if particles.has_ctf else None
        return cls(matrices, shifts, optics=optics, **known)

    def __len__(self):
        return len(self.matrices)

    def take(self, rows) -> Views:
        """The views at `rows`, a slice or numbers from 0."""
        taken = {}
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if values is not None:
                taken[field.name] = values.take(rows) if isinstance(values, ParticleOptics) else values[rows]
        return Views(**taken)
