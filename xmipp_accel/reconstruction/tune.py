"""Measures what is fastest for reconstructions of one box, and tells what was measured before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import numpy as np

from xmipp_accel.backend import Device, good_fft_size
from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.fastest import DEFAULTS
from xmipp_accel.reconstruction.geometry import SMALLEST_BOX
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views
from xmipp_accel.tuning.cache import Entry, TuningCache
from xmipp_accel.tuning.fft_sizes import candidate_sizes, measure_sizes

DIFFERENT = 16  # random images; a batch holds them many times
MOST_TRANSFORMS = 256  # images at a time


def tune(device: Device, box: int, symmetry: str = "c1") -> Iterator[str]:
    """Measure all ways of insertion and FFT sizes on a device, store the results, and yield lines of tables.

    Parameters
    ----------
    device : Device
    box : int
        Edge of the images, px.
    symmetry : str
        Point group of the maps.

    Raises
    ------
    ParameterError
        The box is too small, or there is no such group.
    """
    if box < SMALLEST_BOX:
        raise ParameterError(f"--box: expected {SMALLEST_BOX} px or more, found {box}")
    yield f"{device}: {device.model}; images of {box} px, symmetry {symmetry}; * is the fastest"
    for method in DEFAULTS if device.kind == "cuda" else ():
        yield f"insertion, {method}, microseconds an image"
        yield from _table(measure_ways(device, box, symmetry, method))
    yield "transform, padded size (--padding-images), microseconds an image"
    sizes = tune_sizes(device, box)
    # Rounded down, since the size is rounded up from it.
    yield from _table({f"{size} ({math.floor(1e4 * size / box) / 1e4:g})": times for size, times in sizes.items()})


def measure_ways(device: Device, box: int, symmetry: str, method: str) -> dict[str, list[float]]:
    """Seconds for each image by way of insertion on a GPU."""
    parameters = ReconstructFourierParameters(method=method, symmetry=symmetry, ctf="none")
    accumulator = FourierAccumulator(parameters, device, box, 1.0)
    count, rng = accumulator.batch_size(), np.random.default_rng(0)
    images = np.resize(rng.normal(size=(DIFFERENT, box, box)).astype(np.float32), (count, box, box))
    images = device.asarray(images)
    views = Views(random_matrices(count, rng), np.zeros((count, 2)), halves=1 + np.arange(count) % 2)
    accumulator.ways.anew = True
    accumulator.ways.expect(math.inf)
    while not accumulator.ways.settled:
        accumulator.insert(images, views)
        with device.mark():
            pass  # whose end waits for the device
    (tuner,) = accumulator.ways.tuners.values()
    return tuner.times


def tune_sizes(device: Device, box: int) -> dict[int, list[float]]:
    """Measure and store the seconds for each image by FFT size, the most promising sizes first."""
    smallest = good_fft_size(2 * box)
    count = int(min(MOST_TRANSFORMS, max(1, device.free_memory() // (64 * smallest**2))))
    times = measure_sizes(device, box, candidate_sizes(smallest), count)
    best = min(times, key=lambda size: statistics.median(times[size]))
    entry = Entry.of(str(best), {str(size): found for size, found in times.items()})
    TuningCache().store(f"transform on {device.model}, box {box}, padded {smallest} or more", entry)
    return times


def describe_known() -> Iterator[str]:
    """Lines of tables of what was measured before."""
    cache = TuningCache()
    yield f"{cache.path}:"
    for key, entry in cache.entries().items():
        yield f"{key} ({entry.date})"
        yield from _table(entry.trials)


def _table(trials):
    medians = {name: statistics.median(times) for name, times in trials.items() if times}
    best = min(medians.values())
    for name, median in medians.items():
        yield f"  {name:20}{1e6 * median:12.2f}{' *' if median == best else ''}"
