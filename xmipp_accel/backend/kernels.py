"""Loading of the CUDA kernels that stand in ``xmipp_accel/kernels/cuda``."""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path

CUDA_FOLDER = Path(__file__).resolve().parent.parent / "kernels" / "cuda"

_limits = threading.Lock()


def kernel_digest(subject: str) -> str:
    """What changes with the text of ``kernels/cuda/<subject>.cu``."""
    return hashlib.sha1((CUDA_FOLDER / f"{subject}.cu").read_bytes()).hexdigest()[:12]


def cuda_kernel(subject: str, expression: str):
    """Return a kernel compiled for the current device.

    Parameters
    ----------
    subject : str
        The file ``kernels/cuda/<subject>.cu``.
    expression : str
        C++ name of the kernel, such as ``"warp<float>"``.

    Returns
    -------
    cupy.RawKernel
    """
    import cupy

    return _compile(subject, expression, cupy.cuda.Device().id)


@functools.cache
def _compile(subject, expression, device_index):
    # CuPy keeps on disk what it compiled, but not where C++ names are to be looked up, as those of templates.
    names = (expression,) if "<" in expression else None
    return _module(subject, names, device_index).get_function(expression)


@functools.cache
def _module(subject, names, device_index):  # CuPy loads a module into one context only
    import cupy

    path = CUDA_FOLDER / f"{subject}.cu"
    # #line makes the compiler name the file instead of a temporary one.
    source = f'#line 1 "{path.name}"\n' + path.read_text()
    return cupy.RawModule(code=source, options=("-std=c++17",), name_expressions=names)


def gpu_limits() -> tuple[int, int]:
    """Compute capability of the current GPU, such as 90, and bytes of shared memory that a block can have."""
    import cupy

    return _limits_of(cupy.cuda.Device().id)


@functools.cache
def _limits_of(device_index):
    import cupy

    device = cupy.cuda.Device(device_index)
    return int(device.compute_capability), device.attributes["MaxSharedMemoryPerBlockOptin"]


def allow_shared_memory(kernel, size):
    """Let `kernel` be launched with `size` bytes of dynamic shared memory.

    The limit is the kernel's on its device and never lowered: another thread may be about to launch with more.
    """
    with _limits:
        if kernel.max_dynamic_shared_size_bytes < size:
            kernel.max_dynamic_shared_size_bytes = size
