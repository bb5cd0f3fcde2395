"""How many movies are in memory and computed at a time, and what happens when memory runs out."""

from __future__ import annotations

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

logger = logging.getLogger(__name__)

# Free bytes of a GPU that computes two movies at a time: kernels of one run while Python prepares the other's, for
# twice the memory.
ROOM_FOR_TWO = 32 << 30


def movies_at_a_time(device):
    """How many movies are computed on a device at a time, and how many it holds with those that are being read.

    On the CPU, reading would take cores from the computing.
    """
    if device.kind == "cpu":
        return 1, 1
    return (2, 3) if device.free_memory() > ROOM_FOR_TWO else (1, 2)


class Workers:
    """Threads that compute on one device.

    They are few, since CuPy keeps the plans of Fourier transforms, and their memory, for each thread.

    Parameters
    ----------
    device : Device
    computed, in_memory : int
        Movies at a time, as from :func:`movies_at_a_time`.
    """

    def __init__(self, device, computed, in_memory):
        self.device = device
        self._pool = ThreadPoolExecutor(computed, "compute", device.make_current)
        self._places = in_memory
        self._free_places = threading.Semaphore(self._places)
        self._clearing = threading.Lock()

    def run(self, read, compute):
        """Return ``compute(read())``; the caller's thread reads, one of the workers computes.

        If memory runs out it is tried again with nothing else in memory, and all others follow one at a time.

        Raises
        ------
        MemoryError
            There is too little even so.
        """
        try:
            return self._run(read, compute)
        except MemoryError as error:
            logger.warning("%s is short of memory, one movie at a time from now on: %s", self.device, error)
        self._clear()  # behind the handler, whose traceback holds arrays
        return self._run(read, compute)

    def _run(self, read, compute):
        with self._free_places:
            return self._pool.submit(compute, read()).result()

    def _clear(self):
        """Wait until nobody reads or computes, give memory back and leave room for one."""
        with self._clearing:
            for _ in range(self._places):
                self._free_places.acquire()
            self._pool.shutdown()
            self._pool = ThreadPoolExecutor(1, "compute", self.device.make_current)
            self._places = 1
            gc.collect()
            self.device.release_memory()
            self._free_places.release()
