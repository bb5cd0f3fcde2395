import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from xmipp_accel.backend import (
    CPU,
    Device,
    array_module,
    devices,
    fft_module,
    good_fft_size,
    resolve_device,
    to_host,
)
from xmipp_accel.errors import DeviceError

only_on_a_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)

BROKEN = "raise ImportError('libcuda.so.1: cannot open shared object file')"
OLD_DRIVER = """
class CUDARuntimeError(RuntimeError):
    pass


class cuda:
    class runtime:
        @staticmethod
        def getDeviceCount():
            raise CUDARuntimeError('cudaErrorInsufficientDriver: CUDA driver version is insufficient')
"""


def _device_lines(folder, request, fake_cupy=None, **environment):
    """What a fresh interpreter resolves `request` to, and what it logs."""
    if fake_cupy is not None:
        (folder / "cupy.py").write_text(fake_cupy)
    code = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from xmipp_accel.backend import resolve_device\n"
        f"print(resolve_device({request!r}))"
    )
    paths = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr.strip().splitlines()


@pytest.mark.parametrize("request_", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("fake", "environment", "reason"),
    [
        (None, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES"),
        (BROKEN, {"CUDA_VISIBLE_DEVICES": "0"}, "libcuda.so.1"),
        (OLD_DRIVER, {"CUDA_VISIBLE_DEVICES": "0"}, "cudaErrorInsufficientDriver"),
    ],
    ids=["hidden", "broken", "old driver"],
)
def test_without_a_usable_gpu_the_cpu_is_used_and_one_line_says_why(tmp_path, request_, fake, environment, reason):
    device, lines = _device_lines(tmp_path, request_, fake, **environment)
    assert device == "cpu"
    assert len(lines) == 1
    assert reason in lines[0]


@pytest.mark.parametrize("request_", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_a_malformed_request_is_refused(request_):
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda or cuda:N"):
        resolve_device(request_)


@only_on_a_gpu
def test_a_gpu_that_is_not_there_is_refused(device):
    with pytest.raises(DeviceError, match="cuda:99"):
        resolve_device("cuda:99")


def test_arrays_and_transforms_stay_on_their_device(device):
    x = device.asarray(np.arange(12).reshape(3, 4), dtype=np.float32)
    assert array_module(x) is device.xp
    spectrum = fft_module(x).rfft2(x)
    assert spectrum.dtype == np.complex64
    np.testing.assert_allclose(to_host(spectrum), np.fft.rfft2(np.arange(12).reshape(3, 4)), rtol=1e-6, atol=1e-5)


def test_the_cpu_has_memory():
    assert CPU.free_memory() > 2**20


@only_on_a_gpu
def test_a_limit_of_the_pool_counts_as_the_memory(device):
    pool = device.xp.get_default_memory_pool()
    before = pool.get_limit()
    try:
        pool.set_limit(size=pool.used_bytes() + 2**24)
        assert device.free_memory() == 2**24
    finally:
        pool.set_limit(size=before)


@pytest.mark.parametrize(("n", "size"), [(0, 2), (1, 2), (2, 2), (11, 12), (13, 14), (1084, 1120), (4092, 4096)])
def test_good_fft_size(n, size):
    assert good_fft_size(n) == size


def test_several_devices(monkeypatch):
    monkeypatch.setattr(devices, "cuda_status", lambda: (3, ""))
    assert devices.resolve_devices("cuda:1, cuda:0,cuda:1") == (Device("cuda", 1), Device("cuda", 0))
    assert devices.resolve_devices("cpu") == (CPU,)
    with pytest.raises(DeviceError, match="cuda:0 to cuda:2, found 'cuda:3'"):
        devices.resolve_devices("cuda:0,cuda:3")


def test_a_stopwatch_takes_the_time_of_the_device(device):
    watch = device.stopwatch()
    assert watch.seconds() is None
    device.xp.ones(1000).sum()
    watch.stop()
    with device.mark():
        pass
    assert 0 < watch.seconds() < 60
    assert len(device.model) > 3


def test_a_stopwatch_of_a_gpu_asks_and_does_not_wait():
    events = []

    class Event:
        def __init__(self):
            self.done = False

        def record(self):
            events.append(self)

    class Gpu(Device):
        xp = SimpleNamespace(
            cuda=SimpleNamespace(
                Event=Event, get_elapsed_time=lambda begin, end: 250.0 if [begin, end] == events else None
            )
        )

        def activate(self):
            return contextlib.nullcontext()

    watch = Gpu("cuda").stopwatch()
    events[0].done = True
    assert watch.seconds() is None
    watch.stop()
    assert watch.seconds() is None
    events[1].done = True
    assert watch.seconds() == 0.25
