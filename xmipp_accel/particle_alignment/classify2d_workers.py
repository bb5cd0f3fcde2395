"""Devices that share the particles of a classification in blocks.

Which block a particle is in does not depend on the number of devices, and results come in the order of the blocks,
so whoever adds them up gets the same sum on one device and on several.
"""

from __future__ import annotations

import collections
import gc
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable

from xmipp_accel.errors import ProcessingError

logger = logging.getLogger(__name__)

_BUDGET = {"cpu": 48 << 20, "cuda": 512 << 20}  # a cache's worth; enough to fill a GPU
_LEAST_BUDGET = 2 << 20
_AHEAD = 2


class Worker:
    """One device and the thread that computes on it.

    Parameters
    ----------
    device : Device

    Attributes
    ----------
    budget : int
        Bytes that one intermediate array may take; less after the device has run out of memory.
    """

    def __init__(self, device):
        self.device = device
        self.budget = _BUDGET[device.kind]
        self._pool = ThreadPoolExecutor(1, "classify", device.make_current)

    def submit(self, function: Callable, *arguments) -> Future:
        """Call ``function(worker, *arguments)`` on this worker's thread, and again if memory was too short for it.

        The future raises a `ProcessingError` if it is too short for the smallest pieces.
        """
        return self._pool.submit(self._run, function, arguments)

    def _run(self, function, arguments):
        while True:
            try:
                return function(self, *arguments)
            except MemoryError as error:
                if self.budget < 4 * _LEAST_BUDGET:
                    raise ProcessingError(
                        f"2D classification: {self.device} has too little memory ({error}); a smaller"
                        " batch_size or a coarser max_resolution needs less"
                    ) from error
                self.budget //= 4
                logger.warning("%s is short of memory, smaller pieces from now on: %s", self.device, error)
            gc.collect()  # behind the handler, whose traceback holds arrays
            self.device.release_memory()

    def close(self):
        """Wait for the thread and end it."""
        self._pool.shutdown(cancel_futures=True)


class Workers:
    """All devices of one classification; a context manager.

    Parameters
    ----------
    devices : sequence of Device
    """

    def __init__(self, devices):
        self.workers = [Worker(device) for device in devices]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.close()

    def of(self, number) -> Worker:
        """Who works on the block of this number."""
        return self.workers[number % len(self.workers)]

    def map(self, function, blocks, prepare=None) -> list[Any]:
        """Results of ``function(worker, prepared, *block)`` for each block that is not None, in their order.

        `prepare(worker)` is called once on each worker first; `prepared` is what it returned, or None.
        """
        prepared = [worker.submit(prepare) for worker in self.workers] if prepare else None

        def apply(worker, number, block):
            own = prepared[number % len(self.workers)].result() if prepared else None
            return function(worker, own, *block)

        present = [(number, block) for number, block in enumerate(blocks) if block is not None]
        futures = [self.of(number).submit(apply, number, block) for number, block in present]
        return [future.result() for future in futures]

    def stream(self, read, compute, blocks, first=0, ahead=_AHEAD):
        """Yield ``compute(worker, number, read(block))`` of each block, in order.

        Other threads read ahead by a few blocks, so that memory holds no more than these.

        Parameters
        ----------
        read, compute : callable
        blocks : sequence
        first : int
            Number of the block to begin with.
        ahead : int
            Blocks that are read beyond one for each device.
        """
        pending: collections.deque = collections.deque()
        most = ahead + len(self.workers)
        with ThreadPoolExecutor(most, "read") as readers:
            for number in range(first, len(blocks)):
                content = readers.submit(read, blocks[number])
                pending.append(self.of(number).submit(_compute, compute, number, content))
                if len(pending) >= most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


def _compute(worker, compute, number, content):
    return compute(worker, number, content.result())
