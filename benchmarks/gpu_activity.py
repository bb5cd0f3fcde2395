"""What a GPU does and holds: memory, share of the time it is busy, and a trace of its kernels and copies."""

from __future__ import annotations

import ctypes
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SAMPLE_MS = 100


def device_bytes(device):
    """Bytes that are taken on the GPU, and those of them in CuPy's pool; the pool never shrinks by itself."""
    if device.kind == "cpu":
        return {"used": 0, "pool": 0}
    free, total = device.xp.cuda.runtime.memGetInfo()
    return {"used": total - free, "pool": device.xp.get_default_memory_pool().total_bytes()}


def release_device_memory(device):
    """Give the blocks and FFT plans of earlier work back, so that peaks are those of what follows."""
    if device.kind == "cuda":
        device.xp.fft.config.get_plan_cache().clear()
    device.release_memory()


def utilization(call, seconds, device):
    """Share of the time in which the GPU ran any kernel while `call` was repeated, as nvidia-smi samples it.

    Returns
    -------
    float or None
        None without a GPU, and where nvidia-smi does not tell.
    """
    if device.kind == "cpu" or shutil.which("nvidia-smi") is None:
        return None
    identity = device.xp.cuda.runtime.deviceGetPCIBusId(device.index)
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--id={identity}"]
    with subprocess.Popen([*query, f"--loop-ms={SAMPLE_MS}"], stdout=subprocess.PIPE, text=True) as watcher:
        try:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                call()
        finally:
            watcher.terminate()
        printed, _ = watcher.communicate()
    samples = [int(line) for line in printed.splitlines() if line.strip().isdigit()]
    # nvidia-smi looks back for up to a second: its first samples show the time before.
    samples = samples[len(samples) // 4 :]
    return statistics.mean(samples) / 100 if samples else None


def joules(call, *devices):
    """Energy that whole GPUs take during `call`, from their own counters (NVML); None without a GPU."""
    if devices[0].kind == "cpu":
        call()
        return None
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    _check_nvml(nvml.nvmlInit_v2())
    handles = []
    for device in devices:
        handles.append(ctypes.c_void_p())
        identity = device.xp.cuda.runtime.deviceGetPCIBusId(device.index).encode()
        _check_nvml(nvml.nvmlDeviceGetHandleByPciBusId_v2(identity, ctypes.byref(handles[-1])))
    before = _millijoules(nvml, handles)
    call()
    for device in devices:
        device.xp.cuda.Device(device.index).synchronize()
    return (_millijoules(nvml, handles) - before) / 1e3


def _millijoules(nvml, handles):
    total = 0
    for handle in handles:
        value = ctypes.c_ulonglong()
        _check_nvml(nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)))
        total += value.value
    return total


def _check_nvml(status):
    if status:
        raise OSError(f"NVML: expected status 0, found {status}")


def traced_activity(call):
    """Seconds in which kernels and copies ran during `call`, and the bytes copied, from PyTorch's profiler.

    It records all work of the process on the GPU, CuPy's too.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        call()
        wall = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return activity(events) | {"traced_wall_s": wall}


def activity(events):
    """Sum up the events of a Chrome trace (times in microseconds) as `traced_activity` says."""
    kernels = [event for event in events if event.get("cat") == "kernel"]
    copies = [event for event in events if event.get("cat") in ("gpu_memcpy", "gpu_memset")]
    up = [event for event in copies if "HtoD" in event["name"]]
    down = [event for event in copies if "DtoH" in event["name"]]
    return {
        "kernel_s": union_seconds(kernels),
        "copy_s": union_seconds(up + down),
        "kernel_or_copy_s": union_seconds(kernels + copies),
        "kernels": len(kernels),
        "up_gb": sum(event["args"].get("bytes", 0) for event in up) / 1e9,
        "down_gb": sum(event["args"].get("bytes", 0) for event in down) / 1e9,
    }


def union_seconds(events):
    """Length of the union of the events' spans."""
    total = reached = 0.0
    for start, length in sorted((event["ts"], event["dur"]) for event in events):
        total += max(0.0, start + length - max(start, reached))
        reached = max(reached, start + length)
    return total / 1e6
