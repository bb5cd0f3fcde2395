"""Which way of insertion is the fastest on a GPU, learnt from the batches of a reconstruction.

All ways add the same, up to the rounding of float32 sums in another order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np

from xmipp_accel.backend import Device, kernel_digest, to_host
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.symmetry import complete_plane
from xmipp_accel.tuning.cache import TuningCache
from xmipp_accel.tuning.online import Budget, Option, Tuner

WAYS = (
    Option("scatter", lambda problem: problem["kernel"] == "trilinear"),
    Option("columns"),
    Option("bricks"),
)
DEFAULTS = {"trilinear": insert.FASTEST[insert.TRILINEAR], "blob": insert.FASTEST[insert.BLOB]}
SIZES = 64  # edges of slices and volumes that differ by less are one class; those of a box of 32 px, padded twice
SMALL = 16  # columns of the slices by which ways are compared


@dataclasses.dataclass
class FastestInsertion:
    """The ways of insertion of one accumulator, with a tuner for each grid of images.

    Attributes
    ----------
    device : Device
    gridding : Gridding
    problem : dict
        What their speeds depend on besides the images.
    budget : Budget
        Nothing is tried as long as it is empty.
    cache : TuningCache
    anew : bool
        Whether what was measured before is left out.
    tuners : dict of ImageGrid to Tuner
    """

    device: Device
    gridding: Gridding
    problem: dict[str, Any]
    budget: Budget = dataclasses.field(default_factory=Budget)
    cache: TuningCache = dataclasses.field(default_factory=TuningCache)
    anew: bool = False
    tuners: dict[Any, Tuner] = dataclasses.field(default_factory=dict)
    background: Executor = dataclasses.field(default_factory=lambda: ThreadPoolExecutor(1))

    def expect(self, images: float):
        """Allow for trials by the number of images that are to come."""
        self.budget.expect(images)

    def choose(self, grid, images: int):
        """Context that gives the way in which to insert images of an `ImageGrid` into one part of the sums."""
        if not images:
            return contextlib.nullcontext("")
        if grid not in self.tuners:
            self.tuners[grid] = self._tuner(grid, images)
        return self.tuners[grid].trial(images)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be tried for the grids that there are."""
        return bool(self.tuners) and all(tuner.settled for tuner in self.tuners.values())

    def _tuner(self, grid, images):
        problem = dict(self.problem, slices=_rounded(grid.rows), images=1 << round(math.log2(images)))
        named = [f"{name} {value}" for name, value in problem.items()]
        key = ", ".join([f"insertion on {self.device.model}", f"source {kernel_digest('insert')}", *named])
        entry = None if self.anew else self.cache.entries().get(key)
        return Tuner(
            [way.name for way in WAYS if way.suits(problem)],
            DEFAULTS[self.gridding.kernel],
            self.budget,
            self.device.stopwatch,
            self._difference,
            self.background,
            known=entry.trials if entry else None,
            store=lambda entry: self.cache.store(key, entry),
        )

    def _difference(self, way):
        """By how much two random images end up differently than by default, relative to the largest sum."""
        self.device.make_current()
        rng = np.random.default_rng(0)
        slices = rng.uniform(-1, 1, (2, 2 * SMALL - 1, SMALL, 4)).astype(np.float32)
        slices[..., 2] = abs(slices[..., 2])
        y, x = np.meshgrid(np.arange(1 - SMALL, SMALL), np.arange(SMALL), indexing="ij")
        slices[:, y**2 + x**2 > (SMALL - 1) ** 2] = 0
        matrices = random_matrices(6, rng).reshape(2, 3, 3, 3)
        curvature = rng.uniform(-1, 1, 2).astype(np.float32) / SMALL**2
        reach = SMALL + self.gridding.reach
        centre = int(np.ceil(reach)) + 1
        shape = 2 * centre + 1, 2 * centre + 1, centre + 1, 4
        expected, found = (
            self._inserted(np.zeros(shape, np.float32), slices, matrices, curvature, reach, how)
            for how in (DEFAULTS[self.gridding.kernel], way)
        )
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    def _inserted(self, sums, slices, matrices, curvature, reach, how):
        sums = self.device.asarray(sums)
        arguments = self.device.asarray(slices), matrices, curvature, np.arange(len(slices)), reach
        self.gridding.insert(sums, 0, *arguments, how)
        sums = to_host(sums)
        complete_plane(sums)  # rounding decides which of two opposite voxels takes a sample
        return sums


class UsualInsertion:
    """In place of a `FastestInsertion` where there is nothing to choose."""

    def expect(self, images: float):
        """Nothing is tried."""

    def choose(self, grid, images: int):
        """Context that gives an empty string."""
        return contextlib.nullcontext("")


def plan_insertion(parameters, device, gridding, volume, planes, operators):
    """A `FastestInsertion`, or a `UsualInsertion` on the CPU, for sums that are to be repeatable and for nearest.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
    device : Device
    gridding : Gridding
    volume : VolumeGrid
    planes : (int, int)
    operators : int
        Insertions of each image.
    """
    if device.kind == "cpu" or gridding.how or gridding.kernel not in DEFAULTS:
        return UsualInsertion()
    problem = dict(
        kernel=gridding.kernel if gridding.kernel == "trilinear" else f"blob of {gridding.radius:g}",
        volume=_rounded(volume.shape[0]),
        planes=_rounded(planes[1] - planes[0]),
        insertions=operators,
        curved=parameters.ewald != "none",
        weights_apart=parameters.refine_iterations > 0,
    )
    return FastestInsertion(device, gridding, problem)


def _rounded(size):
    return SIZES * -(-size // SIZES)
