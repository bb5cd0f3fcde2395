"""Images from disk to a device, while it computes."""

from __future__ import annotations

import collections
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xmipp_accel.backend import Device, array_module, cuda_kernel, to_host
from xmipp_accel.backend.threads import cpu_count

MOST_READERS = 16
TASK_BYTES = (
    16 << 20
)  # of images: each task waits twice for Python's lock, long ones leave readers idle at the end
SCREEN_THREADS = 1024
AHEAD = {"cpu": 1, "cuda": 3}  # batches that are read or uploaded while one is inserted


class BatchSource:
    """Batches of images in their order, read by many threads into buffers that are used again.

    Parameters
    ----------
    particles : xmipp_accel.io.particles.Particles
    device : Device
        Where the images are wanted.
    inspect : callable, optional
        Called by the readers with rows and their images (n, box, box), on the host and as they are.
    """

    def __init__(self, particles, device: Device, inspect=None):
        self._particles, self._device, self._inspect = particles, device, inspect
        # One batch is inserted, another one's images may still be in use when it is enqueued.
        self._ahead = AHEAD[device.kind]
        self._stacks: dict = {}
        self._buffers: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(self._ahead + 2):
            self._buffers.put(np.empty(0, np.float32))

    def stream(self, batches):
        """Yield, for each batch, its images on the device and which of them are usable.

        Parameters
        ----------
        batches : iterable of (key, rows, box)
            Rows are numbers of particles of one box; asked for as far ahead as there is room.

        Yields
        ------
        key
        (n, box, box) float32 array
            Valid for what is enqueued before the next one is asked for. Images that hold a value that is not
            finite, or the same one everywhere, are zero.
        (n,) bool array
        """
        readers = ThreadPoolExecutor(min(MOST_READERS, cpu_count()))
        carriers = ThreadPoolExecutor(self._ahead)
        try:
            waiting: collections.deque = collections.deque()
            used: collections.deque = collections.deque()
            for batch in batches:
                waiting.append(carriers.submit(self._fetch, readers, *batch))
                if len(waiting) > self._ahead:
                    yield from self._deliver(waiting.popleft(), used)
            while waiting:
                yield from self._deliver(waiting.popleft(), used)
            while used:
                self._release(used.popleft())
        finally:
            carriers.shutdown(wait=True, cancel_futures=True)
            readers.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, readers, key, rows, box):
        buffer = self._buffers.get()
        size = len(rows) * box * box
        if buffer.size < size:
            buffer = self._device.host_buffer((size,), np.float32)
        images = buffer[:size].reshape(len(rows), box, box)
        step = max(1, TASK_BYTES // (4 * box * box))
        parts = [slice(first, first + step) for first in range(0, len(rows), step)]
        with self._particles.reading(rows, self._stacks) as read:

            def fill(part):
                read(rows[part], images[part])
                if self._inspect is not None:
                    self._inspect(rows[part], images[part])

            list(readers.map(fill, parts))
        images = self._device.upload(images, images.nbytes)
        if array_module(images) is np:
            usable = np.concatenate(list(readers.map(lambda part: _screen(images[part]), parts)))
        else:
            with self._device.copying():
                usable = _screen_on_gpu(images)
        return key, images, usable, buffer

    def _deliver(self, job, used):
        key, images, usable, buffer = job.result()
        yield key, images, usable
        used.append((buffer, images, self._device.mark()))
        if len(used) > 1:
            self._release(used.popleft())

    def _release(self, entry):
        buffer, _, mark = entry
        with mark:
            pass
        self._buffers.put(buffer)


def _screen(images) -> np.ndarray:
    """Which of images (n, box, box) hold finite numbers and more than one; the others become zero."""
    pixels = images.reshape(len(images), -1)
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    usable = np.isfinite(low) & np.isfinite(high) & (low < high)
    images[~usable] = 0
    return usable


def _screen_on_gpu(images) -> np.ndarray:
    """The same in one call, since each waits for Python's lock."""
    usable = array_module(images).empty(len(images), dtype=bool)
    arguments = images, usable, np.int64(images[0].size)
    cuda_kernel("screen", "screen_images")((len(images),), (SCREEN_THREADS,), arguments)
    return to_host(usable)


class Dealer:
    """Batches dealt to whoever asks next, from any thread."""

    def __init__(self, batches):
        self._batches, self._lock = iter(batches), threading.Lock()

    def __iter__(self):
        while True:
            with self._lock:
                batch = next(self._batches, None)
            if batch is None:
                return
            yield batch
