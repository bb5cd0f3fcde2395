"""To which size images are best padded for their transforms: the question of cuFFTAdvisor (Strelak and Filipovic,
ANDARE 2018).

The answer is advice for a parameter. No reconstruction takes it by itself: an image can only be taken out of sums
by the very samples that were put in, which depend on the size, and other machines may find others the fastest.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from xmipp_accel.backend import Device, fft_module, good_fft_size

GROWTH = 1.1  # larger sizes cost more elsewhere than they save here
RADICES = tuple(n for n in range(16, 1, -1) if good_fft_size(2 * n) == 2 * n)  # such passes stay in registers
REPETITIONS = 3


def candidate_sizes(smallest: int) -> list[int]:
    """Even sizes from `smallest` to 1.1 times that, of prime factors up to 7, the most promising ones first."""
    sizes = {good_fft_size(n) for n in range(smallest, math.floor(GROWTH * smallest) + 1)}
    fitting = {size for size in sizes if size <= GROWTH * smallest} or sizes
    return sorted(fitting, key=lambda size: (radix_passes(size), size & (size - 1) != 0, size))


@functools.cache
def radix_passes(size: int) -> int:
    """Into how few factors of at most 16 a size without prime factors above 7 can be taken apart."""
    if size == 1:
        return 0
    return 1 + min(radix_passes(size // radix) for radix in RADICES if size % radix == 0)


def measure_sizes(device: Device, box: int, sizes, count: int) -> dict[int, list[float]]:
    """Seconds that the transform of an image takes, several times for each size.

    Parameters
    ----------
    device : Device
    box : int
        Edge of the images, px; they are padded with zeros.
    sizes : sequence of int
    count : int
        Images at a time.
    """
    images = device.asarray(np.random.default_rng(0).normal(size=(count, box, box)), np.float32)
    fft, found = fft_module(images), {}
    with device.activate():
        for size in sizes:
            times = [_time(device, fft, images, size) for _ in range(1 + REPETITIONS)]
            found[size] = [seconds / count for seconds in times[1:]]  # the first one makes plans
    return found


def _time(device, fft, images, size):
    watch = device.stopwatch()
    fft.fft(fft.rfft(images, n=size, axis=2), n=size, axis=1)  # zeros are transformed only where they must be
    watch.stop()
    with device.mark():
        pass  # whose end waits for the device
    return watch.seconds()
