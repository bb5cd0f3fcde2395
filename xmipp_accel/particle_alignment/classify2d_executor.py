"""2D classification of a particle set: files in, class averages and assigned particles out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable

from xmipp_accel.backend.devices import Device
from xmipp_accel.io.particles import Particles
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters


@dataclasses.dataclass(frozen=True)
class Classify2DResult:
    """What a classification produced.

    Attributes
    ----------
    averages : str
        Absolute path of ``classes.mrcs``: (K, n, n) float32, class 1 first; a class without particles is zero.
    particles_star, particles_xmd : str
        Absolute paths of ``classes.star`` and ``classes.xmd``: every particle with its class and 2D pose.
    counts : list of int
        Particles of each class, K numbers.
    resolutions : list of float
        A; Fourier ring correlation 0.5 between the averages of two halves of each class, 0 where it has fewer than
        two particles.
    sampling_rate : float
        A/px of the averages.
    objective : list of float
        Mean log-likelihood gain of a particle over the empty reference, for each iteration.
    parameters : dict
        Of the run.
    seconds : float
        Time taken.
    """

    averages: str
    particles_star: str
    particles_xmd: str
    counts: list[int]
    resolutions: list[float]
    sampling_rate: float
    objective: list[float]
    parameters: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return dataclasses.asdict(self)


class Classify2DExecutor:
    """The 2D classification bound to one device.

    Parameters
    ----------
    parameters : Classify2DParameters
    device : Device
    """

    def __init__(self, parameters: Classify2DParameters, device: Device):
        self.parameters = parameters
        self.device = device

    def classify(
        self,
        particles: Particles,
        output_folder: str | Path,
        initial_references=None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Classify2DResult:
        """Sort `particles` into classes and write the result into `output_folder`.

        Parameters
        ----------
        particles : Particles
            Poses that it may hold are not used.
        output_folder : path
            Made if absent. Receives ``classes.mrcs``, ``classes.star``, ``classes.xmd`` and, last,
            ``classes.json`` with :meth:`Classify2DResult.to_json`.
        initial_references : (K, n, n) array, optional
            Images to start from instead of seeding, which then set the number of classes.
        progress : callable, optional
            Called as ``progress(done, total)`` after each iteration.
        """
        raise NotImplementedError
