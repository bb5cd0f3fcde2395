"""All images of a selection into accumulators: on several devices, and in several passes where memory is short."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from xmipp_accel.backend import CPU, Device
from xmipp_accel.errors import ProcessingError
from xmipp_accel.io.particles import Particles
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.noise import noise_power
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.selection import Selection
from xmipp_accel.reconstruction.source import BatchSource, Dealer

logger = logging.getLogger(__name__)

SUMS_SHARE = 0.6  # of the memory, for the sums of a pass that does not hold the whole volume
# A batch's arrays and the compiled kernels want room besides sums and finishing.
SLACK = 1 << 28
STRETCH = 16  # batches that are placed at once


def plan_bands(planes: int, plane_bytes: int, finish_bytes: int, memory: float) -> list[tuple[int, int]]:
    """Planes of the volume that are summed in each pass over the images.

    Parameters
    ----------
    planes : int
        Of the volume.
    plane_bytes : int
        Of one plane of all sums.
    finish_bytes : int
        That making maps needs besides the sums.
    memory : float
        Bytes.

    Returns
    -------
    list of (int, int)
        One pair if sums and finishing fit; else as many as needed, and maps are made elsewhere.

    Raises
    ------
    ProcessingError
        Not even one plane fits.
    """
    if planes * plane_bytes + finish_bytes + SLACK <= memory:
        return [(0, planes)]
    fitting = int(SUMS_SHARE * memory // plane_bytes)
    if fitting < 1:
        raise ProcessingError(
            f"memory: expected room for one plane of the sums, {plane_bytes / 1e9:.3f} GB, "
            f"found {SUMS_SHARE * memory / 1e9:.3f} GB (padding, max_resolution and error_groups change it)"
        )
    passes = -(-planes // fitting)
    edges = np.linspace(0, planes, passes + 1).round().astype(int).tolist()
    return list(zip(edges, edges[1:]))


@dataclasses.dataclass
class Insertion:
    """Inserts a selection of particles.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`.
    particles : Particles
    selection : Selection
    devices : sequence of Device
    progress : callable, optional
        Called with (particles done, particles in all).
    reference : (box, box, box) array, optional
        Whose projections are subtracted.
    preview : callable, optional
        Called with an accumulator every `parameters.preview_interval` seconds.
    inspect : callable, optional
        See :class:`~.source.BatchSource`.
    earlier : sequence of (sums, counts)
        As :meth:`FourierAccumulator.export` returns them: what the images are added to.
    noise : dict of OpticsGroup to array
        Power of the noise where it is known; the rest is measured.

    Attributes
    ----------
    usable : (n,) bool array
        Which of the selected particles have images of finite numbers that are not all the same.
    waited : float
        Seconds that devices waited for images.
    """

    parameters: ReconstructFourierParameters
    particles: Particles
    selection: Selection
    devices: Sequence[Device]
    progress: Callable | None = None
    reference: Any = None
    preview: Callable | None = None
    inspect: Callable | None = None
    earlier: Sequence = ()
    noise: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.usable = np.ones(len(self.selection.rows), dtype=bool)
        self.waited = 0.0
        self._failed = threading.Event()
        self._done, self._lock, self._shown = 0, threading.Lock(), time.monotonic()
        if self.parameters.noise_weights:
            self.noise = self._with_new_noise()

    def run(self, box: int, sampling_rate: float) -> FourierAccumulator:
        """An accumulator with all images, for a map of `box` px at `sampling_rate` A/px.

        It lies on the first device, or on the CPU where its memory did not suffice.
        """
        sizes = box, sampling_rate
        first = FourierAccumulator(self.parameters, CPU, box, sampling_rate, planes=(0, 0))
        memory = self._memory()
        bands = plan_bands(first.volume.shape[0], first.plane_bytes(), first.finish_bytes(), memory)
        if len(bands) == 1:
            return self._pass(sizes, bands[0], passes=1)
        logger.warning(
            "%s: %.3g GB hold %d of %d planes of the sums: reading the images %d times, making maps on the CPU",
            self.devices[0],
            memory / 1e9,
            bands[0][1],
            bands[-1][1],
            len(bands),
        )
        whole = self._begun(FourierAccumulator(self.parameters, CPU, *sizes))
        for number, band in enumerate(bands):
            part = self._pass(sizes, band, passes=len(bands))
            sums, counts = part.export()
            whole.merge(sums, counts if number == 0 else [0] * len(counts), band)
        return whole

    def _begun(self, accumulator):
        """The accumulator with the earlier sums."""
        for sums, counts in self.earlier:
            accumulator.merge(sums, counts)
        return accumulator

    def _memory(self):
        if self.parameters.max_memory:
            return self.parameters.max_memory * 1e9
        # What the CPU's page cache would give back is not known.
        free = [device.free_memory() for device in self.devices if device.kind == "cuda"]
        return min(free, default=np.inf)

    def _pass(self, sizes, band, passes):
        """One pass over the images, for some planes; the accumulators of several devices become one."""
        accumulators = [
            FourierAccumulator(self.parameters, device, sizes[0], sizes[1], band) for device in self.devices
        ]
        if passes == 1:
            self._begun(accumulators[0])
        for accumulator in accumulators:
            if self.parameters.tune:
                accumulator.ways.expect(len(self.selection.rows) / len(accumulators))
            if self.reference is not None:
                accumulator.subtract_from_now_on(self.reference)
            self._plan(accumulator)
        if len(self.selection.rows):
            self._insert_all(accumulators, passes * len(self.selection.rows))
        first, *others = accumulators
        while others:
            other = others.pop()
            first.merge(other.sums, other.counts)
        return first

    def _insert_all(self, accumulators, total):
        size_of = accumulators[0].batch_size
        dealers = self._deal(self.selection.batches(size_of))
        with ThreadPoolExecutor(len(accumulators)) as pool, ThreadPoolExecutor(1) as placing:
            place = self._places(accumulators[0], size_of, placing)
            jobs = [
                pool.submit(self._feed_unless_failed, *pair, place, total) for pair in zip(accumulators, dealers)
            ]
            try:
                for job in jobs:
                    job.result()
            finally:
                placing.shutdown(cancel_futures=True)

    def _plan(self, accumulator):
        """Fix how the images of each optics group become slices."""
        for part in self.selection.ranges():
            group = self.selection.group(part)
            accumulator.plan(group, self.selection.views.take(part).optics, self.noise.get(group))

    def _places(self, accumulator, size_of, pool):
        """Function that tells where the images of a batch go, found for many batches at once by another thread."""
        views, group = self.selection.views, self.selection.group
        stretches = self.selection.batches(lambda box: STRETCH * size_of(box))
        jobs = [
            pool.submit(lambda part: accumulator.place(views.take(part), group(part)), part) for part in stretches
        ]
        starts = [part.start for part in stretches]

        def place(batch):
            number = bisect.bisect_right(starts, batch.start) - 1
            first = starts[number]
            return jobs[number].result().take(slice(batch.start - first, batch.stop - first))

        return place

    def _deal(self, batches):
        number = len(self.devices)
        if self.parameters.deterministic:
            return [batches[place::number] for place in range(number)]
        dealer = Dealer(batches)
        return [dealer] * number

    def _feed_unless_failed(self, accumulator, batches, place, total):
        """Stop at the next batch once another device has failed: its error is all that comes of the run."""
        try:
            batches = itertools.takewhile(lambda _: not self._failed.is_set(), batches)
            self._feed(accumulator, batches, place, total)
        except BaseException:
            self._failed.set()
            raise

    def _feed(self, accumulator, batches, place, total):
        selection, source = self.selection, BatchSource(self.particles, accumulator.device, self.inspect)
        wanted = ((batch, selection.rows[batch], selection.group(batch).box) for batch in batches)
        begun = time.perf_counter()
        for batch, images, usable in source.stream(wanted):
            placement = place(batch)
            arrived = time.perf_counter()
            if not usable.all():
                placement = placement.without(~usable)
            accumulator.insert(images, placement, selection.group(batch))
            with self._lock:
                self.waited += arrived - begun
                self.usable[batch] = usable
                self._done += len(usable)
                self._report(accumulator, total)
            begun = time.perf_counter()

    def _report(self, accumulator, total):
        if self.progress is not None:
            self.progress(self._done, total)
        interval = self.parameters.preview_interval
        whole = accumulator.planes == (0, accumulator.volume.shape[0])
        if self.preview and interval and whole and time.monotonic() - self._shown >= interval:
            self.preview(accumulator)
            self._shown = time.monotonic()

    def _with_new_noise(self):
        """Power of the noise around the particles, of each optics group."""
        selection, found = self.selection, dict(self.noise)
        diameter = self.parameters.mask_diameter
        for number, group in selection.groups.items():
            if group in found:
                continue
            rows = selection.rows[selection.numbers == number]
            found[group] = noise_power(self.particles, rows, group, diameter, self.parameters.seed)
        return found
