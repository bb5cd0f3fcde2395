"""Which devices exist, which one a request means, and why a GPU is not used."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import threading
import time
from typing import Any

import numpy as np

from xmipp_accel.backend.arrays import free_bytes, to_host
from xmipp_accel.backend.threads import cpu_name
from xmipp_accel.errors import DeviceError

logger = logging.getLogger(__name__)
_thread = threading.local()

UPLOAD_BYTES = 8 << 20
PEER_ACCESS_ALREADY_ENABLED = 704  # CUDA's error


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU or the CPU.

    Attributes
    ----------
    kind : {"cpu", "cuda"}
    index : int
        Among the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible.
    """

    kind: str = "cpu"
    index: int = 0

    @property
    def xp(self):
        """`numpy` or `cupy`."""
        if self.kind == "cpu":
            return np
        import cupy

        return cupy

    def activate(self):
        """Context manager that makes this the current device of the thread."""
        return contextlib.nullcontext() if self.kind == "cpu" else self.xp.cuda.Device(self.index)

    def make_current(self):
        """Make this the current device of the calling thread for good, with a stream of its own."""
        if self.kind == "cuda":
            self.xp.cuda.Device(self.index).use()
            _thread.stream = self.xp.cuda.Stream(non_blocking=True)  # lives as long as the thread
            _thread.stream.use()

    def asarray(self, array, dtype=None):
        """Copy `array` to this device, if it is not there already."""
        if self.kind == "cpu":
            return np.asarray(to_host(array), dtype=dtype)
        with self.activate():
            if isinstance(array, self.xp.ndarray) and array.device.id != self.index:
                _enable_peer_access(self.index, array.device.id)
                near = self.xp.empty(array.shape, array.dtype)
                self.xp.copyto(near, array)  # from GPU to GPU, where an operation on both would need peer access
                array = near
            copied = self.xp.asarray(array, dtype=dtype)
            self.xp.cuda.get_current_stream().synchronize()  # other threads have streams of their own
        return copied

    def host_buffer(self, shape, dtype):
        """Empty array on the host, from which copies to this device are fastest."""
        if self.kind == "cpu":
            return np.empty(shape, dtype)
        import cupyx

        return cupyx.empty_pinned(shape, dtype)

    def upload(self, buffer, part_bytes=UPLOAD_BYTES):
        """Copy a :meth:`host_buffer` to this device while others compute; on the CPU it is the array itself.

        It goes in parts, since small copies of those who compute wait for the one that is under way. The memory
        returns to the copies' own pool: whoever drops the array must have waited for what reads it.
        """
        if self.kind == "cpu":
            return buffer
        with self.copying():
            array = self.xp.empty(buffer.shape, buffer.dtype)
            source, target = buffer.reshape(-1), array.reshape(-1)
            step = max(1, part_bytes // buffer.itemsize)
            for first in range(0, source.size, step):
                target[first : first + step].set(source[first : first + step])
            self.xp.cuda.get_current_stream().synchronize()
        return array

    @contextlib.contextmanager
    def copying(self):
        """Context of work that is done while others compute, in the order of the copies of :meth:`upload`."""
        if self.kind == "cpu":
            yield
            return
        with self.activate(), _copy_stream(self.index):
            yield

    def mark(self):
        """Context manager whose end waits for what this thread has enqueued on this device so far."""
        if self.kind == "cpu":
            return contextlib.nullcontext()
        with self.activate():
            event = self.xp.cuda.Event(disable_timing=True)
            event.record()
        return contextlib.closing(_Mark(event))

    def stopwatch(self):
        """Begin to take the time of what this thread enqueues on this device from now on.

        Its method ``stop`` ends that; ``seconds`` tells the time, or None as long as the device has not come so
        far. Neither waits.
        """
        return _HostStopwatch() if self.kind == "cpu" else _CudaStopwatch(self)

    @property
    def model(self) -> str:
        """What speeds depend on: the processor, or a GPU with its compute capability and CUDA's version."""
        return cpu_name() if self.kind == "cpu" else _gpu_model(self.index)

    def free_memory(self) -> int:
        """Bytes that can still be allocated."""
        with self.activate():
            return free_bytes(self.xp)

    def release_memory(self):
        """Give memory back that is kept for later use."""
        if self.kind == "cuda":
            with self.activate():
                self.xp.get_default_memory_pool().free_all_blocks()
                self.xp.get_default_pinned_memory_pool().free_all_blocks()

    def __str__(self):
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


@functools.cache  # CUDA takes a millisecond to tell
def _gpu_model(index):
    from cupy.cuda import runtime

    found = runtime.getDeviceProperties(index)
    capability = f"{found['major']}.{found['minor']}"
    return f"{found['name'].decode()}, {capability}, CUDA {runtime.runtimeGetVersion()}"


@dataclasses.dataclass
class _Mark:
    event: Any

    def close(self):
        self.event.synchronize()


class _HostStopwatch:
    def __init__(self):
        self._begin, self._end = time.perf_counter(), None

    def stop(self):
        self._end = time.perf_counter()

    def seconds(self):
        return None if self._end is None else self._end - self._begin


class _CudaStopwatch:
    def __init__(self, device):
        self._device = device
        self._begin, self._end = self._event(), None

    def _event(self):
        with self._device.activate():
            event = self._device.xp.cuda.Event()
            event.record()  # in the current stream
        return event

    def stop(self):
        self._end = self._event()

    def seconds(self):
        if self._end is None or not self._end.done:
            return None
        return self._device.xp.cuda.get_elapsed_time(self._begin, self._end) / 1e3  # from ms


CPU = Device()


@functools.cache
def _copy_stream(index):
    import cupy

    with cupy.cuda.Device(index):
        return cupy.cuda.Stream(non_blocking=True)


@functools.cache
def _enable_peer_access(index, other):
    """Let copies from another GPU go straight to this one, where they can; else they go through the host."""
    import cupy

    runtime = cupy.cuda.runtime
    if not runtime.deviceCanAccessPeer(index, other):
        return
    with cupy.cuda.Device(index):
        try:
            runtime.deviceEnablePeerAccess(other)
        except runtime.CUDARuntimeError as error:
            if error.status != PEER_ACCESS_ALREADY_ENABLED:
                raise


@functools.cache
def cuda_status() -> tuple[int, str]:
    """Number of GPUs that can run a kernel now, and the reason when there are none.

    A kernel is really run: an import or a device count that succeeds proves little.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0, 'CUDA_VISIBLE_DEVICES is "", which hides every GPU'
    try:
        import cupy
    except ModuleNotFoundError:
        return 0, "CuPy is not installed (pip install 'scipion-em-xmipp-accel[cuda12]')"
    except Exception as error:  # a broken installation may raise anything at all
        return 0, f"CuPy cannot be imported: {_first_line(error)}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        if count and int(cupy.arange(3).sum()) != 3:
            return 0, "the GPU returns wrong sums"
    except Exception as error:  # the runtime's own error types are many; each means: no GPU
        return 0, f"CuPy finds no usable GPU: {_first_line(error)}"
    return count, "" if count else "no GPU is visible"


def _first_line(error) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def resolve_device(request: str = "auto") -> Device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a :class:`Device`.

    Without a usable GPU, ``auto`` and ``cuda`` give the CPU and log the reason in one line.

    Raises
    ------
    DeviceError
        The request has another form, or names a GPU beyond those that are there.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", request)
    if match is None:
        raise DeviceError(f"--device: expected auto, cpu, cuda or cuda:N, found {request!r}")
    if request == "cpu":
        return CPU
    count, reason = cuda_status()
    if count == 0:
        logger.log(logging.INFO if request == "auto" else logging.WARNING, "Using the CPU: %s", reason)
        return CPU
    index = int(match.group(1) or 0)
    if index >= count:
        raise DeviceError(f"--device: expected cuda:0 to cuda:{count - 1}, found {request!r}")
    return Device("cuda", index)


def resolve_devices(request: str = "auto") -> tuple[Device, ...]:
    """Turn requests as :func:`resolve_device` takes them, with commas between them, into different devices."""
    return tuple(dict.fromkeys(resolve_device(part.strip()) for part in request.split(",")))
