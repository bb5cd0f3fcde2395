"""A GPU whose arrays lie on the host and whose time passes as a test says."""

import contextlib
import dataclasses
from concurrent.futures import Future

import numpy as np

from xmipp_accel.backend import Device


class Clock:
    """Seconds; a stopwatch that was stopped knows its time only `lag` seconds later."""

    def __init__(self, lag=0.0):
        self.now, self.lag = 0.0, lag

    def stopwatch(self):
        return _Stopwatch(self)


class _Stopwatch:
    def __init__(self, clock):
        self._clock, self._begin, self._end = clock, clock.now, None

    def stop(self):
        self._end = self._clock.now

    def seconds(self):
        if self._end is None or self._clock.now < self._end + self._clock.lag:
            return None
        return self._end - self._begin


class AtOnce:
    """In place of a thread."""

    def __init__(self, threads=1):
        pass

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


@dataclasses.dataclass(frozen=True)
class FakeGpu(Device):
    kind: str = "cuda"
    clock: Clock = dataclasses.field(default_factory=Clock, compare=False)
    xp = np
    model = "Fake GPU, 9.0, CUDA 12040"

    def activate(self):
        return contextlib.nullcontext()

    def make_current(self):
        """There is no other device."""

    def asarray(self, array, dtype=None):
        return np.asarray(array, dtype=dtype)

    def host_buffer(self, shape, dtype):
        return np.empty(shape, dtype)

    def upload(self, buffer, part_bytes=0):
        return buffer

    def copying(self):
        return contextlib.nullcontext()

    def mark(self):
        return contextlib.nullcontext()

    def stopwatch(self):
        return self.clock.stopwatch()

    def free_memory(self):
        return 1 << 26
