"""A pass over particles in batches, on one device or several at once."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor

from xmipp_accel.errors import ProcessingError

_BATCH = {"cpu": 256, "cuda": 512}
_AT_ONCE = {"cpu": 1, "cuda": 2}  # batches: while one computes, the other one is read or has its results sorted


def sweep(workers, count, visit, report):
    """Visit all rows in batches, each on whichever worker is free, and yield what was found in the rows' order.

    Parameters
    ----------
    workers : list
        Each has its `device`; one of a GPU is used by two threads at once.
    count : int
        Number of rows.
    visit : callable
        Called as ``visit(worker, rows)`` with a slice; returns a list of results. Where memory does not suffice,
        it is called for each half of the rows instead.
    report : callable
        Called with the number of rows of each batch that is done.
    """
    size = _BATCH[workers[0].device.kind]
    batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    free: queue.SimpleQueue = queue.SimpleQueue()
    # In turn, so that of a few batches each device gets one before any gets two.
    lanes = [worker for turn in range(max(_AT_ONCE.values())) for worker in workers if turn < _at_once(worker)]
    for worker in lanes:
        free.put(worker)

    def run(rows):
        worker = free.get()
        try:
            with worker.device.activate():
                return _visit(worker, rows, visit)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            for rows, results in zip(batches, pool.map(run, batches)):
                report(rows.stop - rows.start)
                yield from results
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _at_once(worker):
    return _AT_ONCE[worker.device.kind]


def _visit(worker, rows, visit):
    try:
        return visit(worker, rows)
    except MemoryError as error:
        if rows.stop - rows.start == 1:
            raise ProcessingError(f"{worker.device}: one particle alone does not fit into the memory") from error
    worker.device.release_memory()
    middle = (rows.start + rows.stop) // 2
    return _visit(worker, slice(rows.start, middle), visit) + _visit(worker, slice(middle, rows.stop), visit)
