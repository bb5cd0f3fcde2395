"""Passes over whole frames, on the frames' device; :mod:`xmipp_accel.kernels.cpu.frames` says what they do."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel

THREADS = 256
DEVICE_BYTES = 1 << 29
# Types that the kernels read as they are; others become single precision first.
C_NAMES = {"int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short"}
C_NAMES.update({"int32": "int", "uint32": "unsigned int", "float32": "float", "float64": "double"})


def frames_at_a_time(shape, xp):
    """How many frames to work on together: one fills a CPU's cores, a GPU has more launches to save."""
    return 1 if xp is np else max(1, DEVICE_BYTES // (4 * shape[0] * shape[1]))


def clean_frames(raw, frames, dark, gain, window, index, sources):
    """Frames (b, height, width), float32, without dark, gain and bad pixels."""
    xp = array_module(raw)
    frames = np.asarray(frames, dtype=np.int32)
    if raw.dtype.name not in C_NAMES:
        raw, sources = raw[frames].astype(xp.float32), sources[frames % len(sources)]
        frames = np.arange(len(frames), dtype=np.int32)
    if xp is np:
        from xmipp_accel.kernels.cpu.frames import clean_frames as cpu_clean

        return cpu_clean(raw, frames, dark, gain, window, index, sources)
    name = C_NAMES[raw.dtype.name]
    y0, x0, height, width = (np.int32(value) for value in window)
    out = xp.empty((len(frames), height, width), dtype=xp.float32)
    arrays = raw, xp.asarray(frames), _pointer(dark), _pointer(gain), out
    sizes = np.int32(raw.shape[1]), np.int32(raw.shape[2]), y0, x0
    kernel = cuda_kernel("frames", f"clean_frames<{name}>")
    kernel((_blocks(width), int(height), len(frames)), (THREADS,), (*arrays, *sizes, width))
    if len(index):
        counts = np.int32(len(index)), np.int32(len(sources))
        kernel = cuda_kernel("frames", f"fill_pixels<{name}>")
        arguments = *arrays, *sizes, height, width, index, sources, *counts
        kernel((_blocks(len(index)), len(frames)), (THREADS,), arguments)
    return out


def turn_phases(spectrum, ey, ex):
    """Translate the frame whose half-plane transform is `spectrum`, in place."""
    if array_module(spectrum) is np:
        from xmipp_accel.kernels.cpu.frames import turn_phases as cpu_turn

        cpu_turn(spectrum, ey, ex)
        return
    ky, kx = spectrum.shape
    cuda_kernel("frames", "turn_phases")((_blocks(kx), ky), (THREADS,), (spectrum, ey, ex, np.int32(kx)))


def add_weighted(total, power, spectrum, weight, noise):
    """Add to a weighted sum and to the power of its noise, in place."""
    if array_module(total) is np:
        from xmipp_accel.kernels.cpu.frames import add_weighted as cpu_add

        cpu_add(total, power, spectrum, weight, np.float32(noise))
        return
    arguments = total, power, spectrum, weight, np.float32(noise), np.int64(total.size)
    cuda_kernel("frames", "add_weighted")((_blocks(total.size),), (THREADS,), arguments)


def _blocks(count):
    return -(-int(count) // THREADS)


def _pointer(array):
    """What a kernel gets for an array that may be missing."""
    return np.uintp(0) if array is None else array
