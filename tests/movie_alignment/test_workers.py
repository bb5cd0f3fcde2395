"""Movies at a time, and what happens when memory runs out."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xmipp_accel.backend import CPU
from xmipp_accel.errors import ProcessingError
from xmipp_accel.io.images import write_stack
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters, workers
from xmipp_accel.movie_alignment.one_movie import OneMovie


class Memory:
    """Room for so many movies; keeps what was tried. Until two have met in it, each waits for another one."""

    def __init__(self, room):
        self.room, self.patience = room, 20.0
        self.held = self.most = self.failures = 0
        self.changed = threading.Condition()

    def compute(self, movie):
        with self.changed:
            self.held += 1
            self.most = max(self.most, self.held)
            full = self.held > self.room
            self.failures += full
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= 2, self.patience)
            self.held -= 1
        if full:
            raise MemoryError("no room")
        return 2 * movie


@pytest.fixture
def two_at_a_time():
    return workers.Workers(CPU, 2, 4)


class FreeMemory:
    """A GPU with so many free bytes."""

    kind = "cuda"

    def __init__(self, free):
        self.free_memory = lambda: free


def test_a_gpu_computes_two_at_a_time_where_there_is_room():
    assert workers.movies_at_a_time(CPU) == (1, 1)
    assert workers.movies_at_a_time(FreeMemory(7 << 30)) == (1, 2)
    assert workers.movies_at_a_time(FreeMemory(79 << 30)) == (2, 3)


def run_all(these, memory, movies):
    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(lambda movie: these.run(lambda: movie, memory.compute), movies))


def test_as_many_are_computed_at_a_time_as_fit(two_at_a_time):
    memory = Memory(2)
    assert run_all(two_at_a_time, memory, range(12)) == list(range(0, 24, 2))
    assert (memory.most, memory.failures) == (2, 0)


def test_without_room_for_two_all_are_computed_one_by_one(two_at_a_time, caplog):
    memory = Memory(1)
    assert run_all(two_at_a_time, memory, range(12)) == list(range(0, 24, 2))
    assert 1 <= memory.failures <= 6  # those that had begun before
    assert "short of memory" in caplog.text
    memory.most, memory.failures, memory.patience = 0, 0, 0.05
    run_all(two_at_a_time, memory, range(6))
    assert (memory.most, memory.failures) == (1, 0)


def test_a_movie_that_does_not_fit_is_named(tmp_path, monkeypatch):
    write_stack(tmp_path / "movie.mrc", np.random.default_rng(0).normal(size=(4, 32, 32)).astype(np.float32), 1.0)
    executor = MovieAlignmentExecutor(MovieAlignmentParameters())

    def no_room(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(OneMovie, "_motion", no_room)
    with pytest.raises(ProcessingError, match=r"movie.mrc: too large for the memory of cpu: no room"):
        executor.process(tmp_path / "movie.mrc", tmp_path)
