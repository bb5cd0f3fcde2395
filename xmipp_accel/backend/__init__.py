"""The only place that tells NumPy from CuPy."""

from xmipp_accel.backend.arrays import (
    array_module,
    chunks,
    fft_module,
    free_bytes,
    from_host,
    from_host_at_once,
    good_fft_size,
    inverse_into,
    mean,
    solve_positive,
    to_host,
    trim_heap,
)
from xmipp_accel.backend.devices import CPU, Device, resolve_device, resolve_devices
from xmipp_accel.backend.kernels import allow_shared_memory, cuda_kernel, gpu_limits, kernel_digest
from xmipp_accel.backend.threads import kernel_turn, on_all_cores, one_blas_thread, rows_on_all_cores

__all__ = [
    "CPU",
    "Device",
    "allow_shared_memory",
    "array_module",
    "chunks",
    "cuda_kernel",
    "fft_module",
    "free_bytes",
    "from_host",
    "from_host_at_once",
    "good_fft_size",
    "gpu_limits",
    "inverse_into",
    "kernel_digest",
    "kernel_turn",
    "mean",
    "on_all_cores",
    "one_blas_thread",
    "resolve_device",
    "resolve_devices",
    "rows_on_all_cores",
    "solve_positive",
    "to_host",
    "trim_heap",
]
