"""Passes over whole frames, on the frames' device; :mod:`xmipp_accel.kernels.cpu.frames` says what they do."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, from_host

THREADS = 256
DEVICE_BYTES = 1 << 29
# Types that the kernels read as they are; others become single precision first.
C_NAMES = {"int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short"}
C_NAMES.update({"int32": "int", "uint32": "unsigned int", "float32": "float", "float64": "double"})


def frames_at_a_time(shape, xp):
    """How many frames to work on together: one fills a CPU's cores, a GPU has more launches to save."""
    return 1 if xp is np else max(1, DEVICE_BYTES // (4 * shape[0] * shape[1]))


def frame_batches(frames, shape, xp, copies=1):
    """Split frames into lists of about equal length that are worked on together, in so many copies."""
    together = max(1, frames_at_a_time(shape, xp) // copies)
    return np.array_split(np.asarray(frames), -(-len(frames) // together)) if len(frames) else []


def clean_frames(raw, frames, dark, gain, window, level, index, sources):
    """Frames (b, height, width), float32, without dark, gain, bad pixels and `level`."""
    xp = array_module(raw)
    raw, frames, sources = _readable(raw, frames, sources)
    if xp is np:
        from xmipp_accel.kernels.cpu.frames import clean_frames as cpu_clean

        return cpu_clean(raw, frames, dark, gain, window, level, index, sources)
    name = C_NAMES[raw.dtype.name]
    y0, x0, height, width = (np.int32(value) for value in window)
    out = xp.empty((len(frames), height, width), dtype=xp.float32)
    arrays = raw, from_host(frames, xp), _pointer(dark), _pointer(gain), out
    sizes, level = (np.int32(raw.shape[1]), np.int32(raw.shape[2]), y0, x0), np.float32(level)
    kernel = cuda_kernel("frames", f"clean_frames<{name}>")
    kernel((_blocks(width), int(height), len(frames)), (THREADS,), (*arrays, *sizes, width, level))
    if len(index):
        counts = np.int32(len(index)), np.int32(len(sources))
        kernel = cuda_kernel("frames", f"fill_pixels<{name}>")
        arguments = *arrays, *sizes, height, width, level, index, sources, *counts
        kernel((_blocks(len(index)), len(frames)), (THREADS,), arguments)
    return out


def sum_frames(raw, frames, dark, gain, index, sources):
    """Sum (ny, nx), float32, of frames without dark, gain and bad pixels."""
    xp = array_module(raw)
    raw, frames, sources = _readable(raw, frames, sources)
    if xp is np:
        from xmipp_accel.kernels.cpu.frames import sum_frames as cpu_sum

        return cpu_sum(raw, frames, dark, gain, index, sources)
    name = C_NAMES[raw.dtype.name]
    out = xp.empty(raw.shape[1:], dtype=xp.float32)
    arguments = (
        raw,
        from_host(frames, xp),
        _pointer(dark),
        _pointer(gain),
        out,
        np.int32(len(frames)),
        np.int64(out.size),
    )
    cuda_kernel("frames", f"sum_frames<{name}>")((_blocks(out.size),), (THREADS,), arguments)
    if len(index):
        counts = np.int32(len(index)), np.int32(len(sources))
        kernel = cuda_kernel("frames", f"fill_sum<{name}>")
        kernel((_blocks(len(index)),), (THREADS,), (*arguments, index, sources, *counts))
    return out


def _readable(raw, frames, sources):
    """The same frames in a type that the kernels read."""
    frames = np.asarray(frames, dtype=np.int32)
    if raw.dtype.name in C_NAMES:
        return raw, frames, sources
    converted = raw[frames].astype(array_module(raw).float32)
    return converted, np.arange(len(frames), dtype=np.int32), sources[frames % len(sources)]


def continued(images, padded, shifts):
    """Images (b, ny, nx) on a larger grid that repeats itself, as :class:`FrameGrid` has them, to be moved.

    They may be overwritten.
    """
    xp = array_module(images)
    if xp is np:
        from xmipp_accel.kernels.cpu.frames import continued as cpu_continued

        return cpu_continued(images, padded, shifts)
    out = xp.empty((len(images), *padded), dtype=xp.float32)
    arguments = images, from_host(shifts, xp, np.float64), out, *map(np.int32, (*images.shape[1:], padded[1]))
    cuda_kernel("frames", "continued")((_blocks(padded[1]), padded[0], len(images)), (THREADS,), arguments)
    return out


def turn_phases(spectra, ey, ex):
    """Translate frames whose half-plane transforms are `spectra` (b, ky, kx), in place."""
    if array_module(spectra) is np:
        from xmipp_accel.kernels.cpu.frames import turn_phases as cpu_turn

        cpu_turn(spectra, ey, ex)
        return
    b, ky, kx = spectra.shape
    cuda_kernel("frames", "turn_phases")((_blocks(kx), ky, b), (THREADS,), (spectra, ey, ex, np.int32(kx)))


def add_frames(total, power, frames, which, weights, noise):
    """Add those of the `frames` (b, ny, nx) to a weighted sum and to the power of its noise, in place."""
    xp = array_module(total)
    which, noise = from_host(which, xp, np.int32), from_host(noise, xp, np.float32)
    if xp is np:
        from xmipp_accel.kernels.cpu.frames import add_frames as cpu_add

        cpu_add(total, power, frames, which, weights, noise)
        return
    name = {"f": "float", "c": "float2"}[total.dtype.kind]
    arrays = total, _pointer(power), frames, which, _pointer(weights), noise
    sizes = np.int32(len(which)), np.int64(total.size)
    cuda_kernel("frames", f"add_frames<{name}>")((_blocks(total.size),), (THREADS,), (*arrays, *sizes))


def _blocks(count):
    return -(-int(count) // THREADS)


def _pointer(array):
    """What a kernel gets for an array that may be missing."""
    return np.uintp(0) if array is None else array
