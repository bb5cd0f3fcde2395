"""Array code takes its module from its arguments: ``xp = array_module(x)``."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys

import numpy as np
import scipy.fft
from scipy.linalg.lapack import dposv

from xmipp_accel.backend.kernels import cuda_kernel
from xmipp_accel.backend.threads import cpu_count, on_all_cores

PINNED_BYTES = 1 << 20
SMALL_BYTES = 1 << 16
SOLVE_THREADS = 256
ROWS = 128


def array_module(*arrays):
    """Return `cupy` if any argument is a CuPy array, else `numpy`."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(array, cupy.ndarray) for array in arrays):
        return cupy
    return np


def to_host(array):
    """Return `array` as a NumPy array, copying only from a GPU."""
    xp = array_module(array)
    if xp is np:
        return array
    if array.nbytes < PINNED_BYTES:
        return xp.asnumpy(array)
    import cupyx

    # Page-locked memory, which CuPy keeps for the next time, takes such copies at the speed of the bus.
    out = cupyx.empty_pinned(array.shape, array.dtype)
    return xp.ascontiguousarray(array).get(out=out)


def from_host(array, xp, dtype=None):
    """Return `array`, on the host or of `xp` already, as a contiguous array of `xp`."""
    if array_module(array) is not np:
        return xp.ascontiguousarray(array, dtype)
    array = np.asarray(array, dtype, order="C")
    if xp is np or not 0 < array.nbytes <= SMALL_BYTES:
        return xp.asarray(array)
    # CUDA takes small arrays along at once; CuPy's own way over page-locked memory takes three times as long.
    out = xp.empty(array.shape, array.dtype)
    out.set(array, stream=xp.cuda.get_current_stream())
    return out


def from_host_at_once(arrays, xp) -> list:
    """Return arrays of four-byte numbers on the host as arrays of `xp`, by one copy: each costs some time."""
    if xp is np:
        return list(arrays)
    words = [np.ascontiguousarray(array).reshape(-1).view(np.int32) for array in arrays]
    copied, edges = from_host(np.concatenate(words), xp), np.cumsum([0, *map(len, words)]).tolist()
    return [
        copied[first:last].view(array.dtype).reshape(array.shape)
        for array, first, last in zip(arrays, edges, edges[1:])
    ]


def free_bytes(xp) -> int:
    """Bytes that can still be allocated on the current device of `xp`."""
    if xp is np:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    pool = xp.get_default_memory_pool()
    free = int(xp.cuda.runtime.memGetInfo()[0]) + pool.free_bytes()
    return min(free, pool.get_limit() - pool.used_bytes()) if pool.get_limit() else free


def mean(array):
    """Mean of all values, where they lie; CuPy's own takes seconds to be compiled when it is new to a machine."""
    return array.sum() / array.size


def trim_heap(xp):
    """Give the system back what the C library keeps of freed arrays, in the heaps of other threads above all."""
    trim = _malloc_trim()
    if xp is np and trim is not None:
        trim(0)


@functools.cache
def _malloc_trim():
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def chunks(xp, length, size):
    """Slices of `length` items of `size` numbers each: few for a processor's cache, many for a GPU."""
    step = max(1, (1 << 19 if xp is np else 1 << 25) // size)
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]


class _HostFFT:
    """`scipy.fft` with every core; single precision stays single, which `numpy.fft` does not promise."""

    def __init__(self, workers):
        self._workers = workers

    def __getattr__(self, name):
        function = getattr(scipy.fft, name)
        if name.endswith(("freq", "shift")):
            return function
        return lambda *args, **kwargs: function(*args, workers=self._workers, **kwargs)

    def irfft2(self, x, s):
        """`scipy.fft.irfft2` in two steps, which needs one array less and two thirds of the time."""
        return self.irfft(self.ifft(x, n=s[0], axis=-2), n=s[1], axis=-1)


def fft_module(*arrays, workers=None):
    """Return the FFT functions for `array_module(*arrays)`: `cupyx.scipy.fft`, or `scipy.fft` on every core.

    Whoever calls them from threads of their own asks for one worker.
    """
    if array_module(*arrays) is np:
        return _HostFFT(workers or cpu_count())
    import cupyx.scipy.fft

    return cupyx.scipy.fft


def inverse_into(images, spectra, overwrite=False):
    """Write the images (b, my, mx) of half-plane `spectra` (b, my, mx // 2 + 1).

    The images may lie in the memory of the spectra, from their beginning on, if these may be overwritten. On the
    host that holds for one image; its rows follow each other, so that little more than the two is needed.
    """
    fft = fft_module(spectra)
    if array_module(spectra) is not np:
        images[...] = fft.irfft2(spectra, s=images.shape[1:], overwrite_x=overwrite)
        return
    columns = fft.ifft(spectra, axis=1, overwrite_x=overwrite)
    for first in range(0, images.shape[1], ROWS):
        rows = slice(first, first + ROWS)
        images[:, rows] = fft.irfft(columns[:, rows], n=images.shape[2], axis=2)


def solve_positive(matrices, right):
    """Solve systems with symmetric positive definite `matrices` (..., n, n).

    Parameters
    ----------
    matrices : array of float64, shape (..., n, n)
    right : array of float64, shape broadcastable to (..., n)

    Returns
    -------
    array of float64, shape (..., n)

    Raises
    ------
    LinAlgError
        A matrix on the host is not positive definite. On a GPU the result is wrong: a check would wait for it.
    """
    xp = array_module(matrices)
    shape = matrices.shape[:-1]
    right = xp.broadcast_to(right, shape)
    out = xp.empty(shape)
    if xp is np:

        def solve(index):
            _, out[index], info = dposv(matrices[index], right[index])
            if info:
                raise np.linalg.LinAlgError(f"leading minor {info} of a matrix is not positive")

        on_all_cores(solve, np.ndindex(shape[:-1]))
        return out
    factors = xp.linalg.cholesky(matrices)
    arguments = factors, xp.ascontiguousarray(right), out, np.int32(shape[-1])
    kernel = cuda_kernel("solve", "solve_factored")
    kernel((math.prod(shape[:-1]),), (SOLVE_THREADS,), arguments, shared_mem=out.itemsize * shape[-1])
    return out


@functools.lru_cache(maxsize=1 << 14)
def good_fft_size(n: int) -> int:
    """Smallest even number of at least `n` whose prime factors are all 2, 3, 5 or 7."""
    size = max(2, n + n % 2)
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
