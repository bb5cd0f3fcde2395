"""The processor and the threads of this process: how many, and who may use them."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401 - its BLAS must be there before the libraries are looked for
import threadpoolctl

# For whoever calls a kernel of Numba that takes all cores: not every threading layer of it takes two callers.
kernel_turn = threading.Lock()


def cpu_count() -> int:
    """Cores this process may use, which under a batch system are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def on_all_cores(function, items):
    """Results of `function`, which should do without Python's lock for most of the time, for all `items`."""
    items = list(items)
    workers = min(cpu_count(), len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def rows_on_all_cores(function, array, rows):
    """The result of a function of rows, which is an array of as many: called with some `rows` at a time."""
    parts = [array[first : first + rows] for first in range(0, max(1, len(array)), rows)]
    return np.concatenate(on_all_cores(function, parts))


class _BlasThreads:
    """Number of threads of NumPy's and SciPy's BLAS, which the whole process shares."""

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._limit: Any = None

    @contextlib.contextmanager
    def one(self):
        """Keep BLAS to one thread until the last of those who want that is done.

        Its threads wait for more by turning round and round for a tenth of a second, and meanwhile take the cores
        from those who read, write and compute.
        """
        with self._lock:
            if not self._users:
                self._limit = _libraries().limit(limits=1, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._limit.restore_original_limits()


@functools.cache
def _libraries():
    return threadpoolctl.ThreadpoolController()


one_blas_thread = _BlasThreads().one
