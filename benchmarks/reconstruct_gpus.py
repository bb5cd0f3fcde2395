"""The Fourier reconstruction on more GPUs than one: seconds, energy, and whether the sums are the same."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.align_gpu import synchronize
from benchmarks.gpu_activity import joules
from xmipp_accel.backend import to_host
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.run import Insertion
from xmipp_accel.reconstruction.selection import decide, select
from xmipp_accel.reconstruction.source import Dealer

REPEATS = 3


def compare(particles, folder, device_sets):
    """Figures of the first set of devices and of each other one.

    Returns
    -------
    dict of int to dict
        By the number of devices: seconds of insertion of images that lie on the devices already, with the sums
        of all in one volume; of insertion from files; of the whole reconstruction; how many times faster each is
        than on the first set; kilojoules per 100,000 particles of the whole; and the largest difference of the
        sums from those of the first set, over the largest sum.
    """
    found, first, expected = {}, None, None
    for devices in device_sets:
        alone = min(_resident(particles, devices) for _ in range(REPEATS))
        from_files, sums = _from_files(particles, devices)
        expected = sums if expected is None else expected
        whole, energy = _whole(particles, folder, devices)
        seconds = {"insertion alone, s": alone, "from files, s": from_files, "whole, s": whole}
        first = first or seconds
        found[len(devices)] = {
            **seconds,
            **{name.replace(", s", ", times faster"): first[name] / value for name, value in seconds.items()},
            "kJ per 100,000": energy and energy / 1e3 * 100_000 / len(particles),
            "sums differ by": _difference(sums, expected, devices[0]),
        }
    return found


def _resident(particles, devices):
    """Seconds of insertion alone, of images that lie on each device and stand for all, as batches are dealt."""
    parameters = decide(ReconstructFourierParameters(), particles)
    selection, rate = select(parameters, particles), particles.sampling_rate
    sums = [FourierAccumulator(parameters, device, particles.box, rate) for device in devices]
    size = sums[0].batch_size()
    (part,) = selection.ranges()
    for accumulator in sums:
        accumulator.plan(selection.group(part), selection.views.optics)
    placement = sums[0].place(selection.views, selection.group(part))
    noise = np.random.default_rng(0).standard_normal((64, particles.box, particles.box), np.float32)
    images = [device.asarray(np.resize(noise, (size, *noise.shape[1:]))) for device in devices]
    dealer = Dealer(selection.batches(lambda box: size))

    def feed(accumulator, own):
        for batch in dealer:
            places = placement.take(batch)
            accumulator.insert(own[: len(places)], places, selection.group(part))
        with accumulator.device.activate():
            synchronize(accumulator.device)

    with ThreadPoolExecutor(len(devices)) as pool:
        start = time.perf_counter()
        list(pool.map(feed, sums, images))
        for other in sums[1:]:
            sums[0].merge(other.sums, other.counts)
        return time.perf_counter() - start


def _from_files(particles, devices):
    """Least seconds until all images are in the sums of one accumulator, and these sums."""
    parameters = decide(ReconstructFourierParameters(), particles)
    selection, sizes = select(parameters, particles), (particles.box, particles.sampling_rate)
    seconds: list[float] = []
    sums: list = []
    for _ in range(REPEATS):
        sums.clear()
        start = time.perf_counter()
        sums += Insertion(parameters, particles, selection, devices).run(*sizes).sums
        for device in devices:
            with device.activate():
                synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds), sums


def _whole(particles, folder, devices):
    """Least seconds of a whole reconstruction, and joules of one."""
    executor, seconds = ReconstructFourierExecutor(ReconstructFourierParameters(), *devices), []
    for number in range(REPEATS):
        start = time.perf_counter()
        executor.reconstruct(particles, folder / f"{len(devices)}-{number}")
        seconds.append(time.perf_counter() - start)
    return min(seconds), joules(lambda: executor.reconstruct(particles, folder / "energy"), *devices)


def _difference(sums, expected, device):
    """Largest difference over the largest sum, plane by plane."""
    worst = largest = 0.0
    with device.activate():
        for own, other in zip(sums, expected):
            for plane, reference in zip(own, other):
                worst = max(worst, float(to_host(abs(plane - reference).max())))
                largest = max(largest, float(to_host(abs(reference).max())))
    return worst / largest
