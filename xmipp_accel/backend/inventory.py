"""What this machine has, which of it would be used, and why not more: the text of ``xmipp-accel doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from xmipp_accel.backend.devices import cuda_status, resolve_device
from xmipp_accel.backend.threads import cpu_count, cpu_name

LIBRARIES = (
    "scipion-em-xmipp-accel",
    "scipion-pyworkflow",
    "scipion-em",
    "scipion-app",
    "numpy",
    "scipy",
    "numba",
    "mrcfile",
    "tifffile",
    "imagecodecs",
    "emtable",
    "distributed",
    "dask-jobqueue",
    "matplotlib",
)


def describe_machine() -> list[tuple[str, str]]:
    """Pairs of a name and a value, in the order in which they should be read."""
    rows = [("Python", f"{platform.python_version()} ({sys.executable})"), ("system", platform.platform())]
    rows += [(name, _version(name)) for name in LIBRARIES]
    rows += [("CuPy", _cupy_version()), ("CPU", cpu_name()), ("CPU cores", f"{cpu_count()} of {os.cpu_count()}")]
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (os.sysconf(name) * page / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    rows.append(("memory", f"{free:.1f} of {total:.1f} GiB free"))
    rows += _gpus()
    rows.append(("would be used", str(resolve_device("auto"))))
    count, reason = cuda_status()
    if count == 0:
        rows.append(("why no GPU", reason))
    elif count > 1:
        rows.append(("more GPUs", "--device cuda:N takes another one, cuda:0,cuda:1 shares particles between two"))
    return rows


def _version(distribution) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cupy_version() -> str:
    found = [
        f"{name} {_version(name)}"
        for name in ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy")
        if _version(name) != "not installed"
    ]
    return ", ".join(found) or "not installed"


def _gpus() -> list[tuple[str, str]]:
    count, _ = cuda_status()
    if count == 0:
        return [("GPUs", "none usable")]
    import cupy

    runtime = cupy.cuda.runtime
    rows = [
        ("CUDA driver", _cuda_version(runtime.driverGetVersion())),
        ("CUDA runtime", _cuda_version(runtime.runtimeGetVersion())),
    ]
    for index in range(count):
        properties = runtime.getDeviceProperties(index)
        with cupy.cuda.Device(index):
            free, total = runtime.memGetInfo()
        rows.append(
            (
                f"GPU cuda:{index}",
                f"{properties['name'].decode()}, compute capability {properties['major']}.{properties['minor']}, "
                f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
            )
        )
    return rows


def _cuda_version(number) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
