"""Chooses the twin of each insertion kernel by the device that holds the arrays."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel
from xmipp_accel.kernels.cpu import insert as cpu

BLOCK = 256


def prepare_slices(transforms, ramp_y, ramp_x, optics, weights, rows, limit, ctf_mode, keep_outside):
    """See :func:`xmipp_accel.kernels.reference.insert.prepare_slices`; returns float32 on the same device."""
    xp = array_module(transforms)
    if xp is np:
        return cpu.prepare_slices(transforms, ramp_y, ramp_x, optics, weights, rows, limit, ctf_mode, keep_outside)
    count, padded, columns = transforms.shape
    slices = xp.empty((count, rows, columns, 4), dtype=xp.float32)
    arrays = [xp.ascontiguousarray(a) for a in (transforms, ramp_y, ramp_x, optics, weights)]
    sizes = (*map(np.int32, (padded, rows, columns)), np.float32(limit))
    cuda_kernel("insert", "prepare_slices")(
        (_blocks(rows * columns), count),
        (BLOCK,),
        (*arrays, slices, *sizes, np.int32(ctf_mode), np.int32(keep_outside)),
    )
    return slices


def insert_trilinear(accumulator, slices, matrices, images):
    """See :func:`xmipp_accel.kernels.reference.insert.insert_trilinear`."""
    if array_module(accumulator) is np:
        cpu.insert_trilinear(accumulator, slices, matrices, images)
    else:
        samples = slices.shape[1] * slices.shape[2]
        _launch("insert_trilinear", samples, accumulator, slices, matrices, images)


def insert_blob(accumulator, slices, matrices, images, table, radius):
    """See :func:`xmipp_accel.kernels.reference.insert.insert_blob`."""
    xp = array_module(accumulator)
    if xp is np:
        cpu.insert_blob(accumulator, slices, matrices, images, table, radius)
    else:
        table = xp.asarray(table, dtype=xp.float32)
        extra = (table, np.int32(len(table)), np.float32(radius))
        _launch("insert_blob", accumulator.shape[0] ** 2, accumulator, slices, matrices, images, *extra)


def insert_nearest(accumulator, slices, matrices, images):
    """See :func:`xmipp_accel.kernels.reference.insert.insert_nearest`."""
    if array_module(accumulator) is np:
        cpu.insert_nearest(accumulator, slices, matrices, images)
    else:
        _launch("insert_nearest", accumulator.shape[0] ** 2, accumulator, slices, matrices, images)


def _launch(name, threads, accumulator, slices, matrices, images, *extra):
    """Run a CUDA kernel with one thread for each sample or voxel column, and one grid row for each image."""
    xp = array_module(accumulator)
    if len(images) == 0:
        return
    matrices = xp.ascontiguousarray(xp.asarray(matrices, dtype=xp.float32))
    images = xp.asarray(images, dtype=xp.int32)
    sizes = map(np.int32, (slices.shape[1], slices.shape[2], matrices.shape[1]))
    cuda_kernel("insert", name)(
        (_blocks(threads), len(images)),
        (BLOCK,),
        (accumulator, np.int32(accumulator.shape[0] // 2), slices, matrices, images, *sizes, *extra),
    )


def _blocks(threads):
    return (threads + BLOCK - 1) // BLOCK
