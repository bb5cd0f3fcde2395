"""Chooses the twin of each insertion kernel by the device that holds the arrays.

Those of the CPU are imported where they are called: Numba takes a while to load, and a GPU does without.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, from_host, kernel_turn

BLOCK = 256
BRICK, EDGE = 8, 32  # as in insert.cu
TRILINEAR, BLOB = 0, 1
# How a GPU inserts: "scatter" (trilinear alone) and "columns" add by atomics, "bricks" always in the same order.
FASTEST = {TRILINEAR: "columns", BLOB: "columns"}
REPEATABLE = "bricks"


def pad_images(images, padded):
    """Images (n, box, box) of a GPU in the first corner of ones of `padded` px of zeros."""
    xp, box = array_module(images), images.shape[1]
    out = xp.empty((len(images), padded, padded), xp.float32)
    blocks = _blocks(padded), padded, len(images)
    cuda_kernel("prepare", "pad_images")(blocks, (BLOCK,), (images, out, np.int32(box), np.int32(padded)))
    return out


def prepare_slices(
    transforms, factors, table, shape, origin, gain, limit, mode, sideband, inside_only, once, out=None
):
    """See :func:`xmipp_accel.kernels.reference.insert.prepare_slices`; float32, new or in the array `out`."""
    xp, (rows, columns) = array_module(transforms), shape
    count, padded, width = transforms.shape
    slices = xp.empty((count, rows, columns, 4), dtype=xp.float32) if out is None else out
    arrays: list[Any] = [xp.ascontiguousarray(a) for a in (transforms, factors, table)]
    flags = mode, sideband, inside_only, once
    if xp is np:
        from xmipp_accel.kernels.cpu import prepare as cpu

        cpu.prepare_slices(arrays, origin, gain, limit, flags, slices)
        return slices
    if not table.size:
        arrays[-1] = np.intp(0)
    sizes = (*map(np.int32, (padded, width, rows, columns, origin)), np.float32(gain), np.float32(limit))
    cuda_kernel("prepare", "prepare_slices")(
        (_blocks(rows * columns), count), (BLOCK,), (*arrays, slices, *sizes, *map(np.int32, flags))
    )
    return slices


def insert_trilinear(sums, first, slices, matrices, curvature, images, how=FASTEST[TRILINEAR]):
    """See :func:`xmipp_accel.kernels.reference.insert.insert_trilinear`; `how` matters on a GPU alone."""
    if array_module(sums) is np:
        from xmipp_accel.kernels.cpu import insert as cpu

        with kernel_turn:
            cpu.insert_trilinear(sums, first, slices, matrices, curvature, images)
    elif how == "scatter":
        blocks = _blocks(slices.shape[1] * slices.shape[2])
        _launch("insert_trilinear", blocks, sums, first, slices, matrices, curvature, images)
    else:
        # Samples lie in a sphere that ends a voxel before the faces; their corners are a diagonal farther out.
        reach, arguments = np.float32(sums.shape[1] // 2 + 1), (sums, first, slices, matrices, curvature, images)
        if how == "columns":
            _launch("insert_trilinear_columns", _tiles(sums), *arguments, reach)
        else:
            _launch_bricks(TRILINEAR, *arguments, reach, np.intp(0), np.int32(0), np.float32(1))


def insert_blob(sums, first, slices, matrices, curvature, images, table, radius, reach, how=FASTEST[BLOB]):
    """See :func:`xmipp_accel.kernels.reference.insert.insert_blob`; `how` matters on a GPU alone."""
    xp = array_module(sums)
    if xp is np:
        from xmipp_accel.kernels.cpu import insert as cpu

        with kernel_turn:
            cpu.insert_blob(sums, first, slices, matrices, curvature, images, table, radius, reach)
    else:
        extra = np.float32(reach), from_host(table, xp, xp.float32), np.int32(len(table)), np.float32(radius)
        arguments = sums, first, slices, matrices, curvature, images, *extra
        if how == "columns":
            _launch("insert_blob_columns", _tiles(sums), *arguments)
        else:
            _launch_bricks(BLOB, *arguments)


def insert_nearest(sums, first, slices, matrices, images, reach):
    """See :func:`xmipp_accel.kernels.reference.insert.insert_nearest`."""
    if array_module(sums) is np:
        from xmipp_accel.kernels.cpu import nearest as cpu

        with kernel_turn:
            cpu.insert_nearest(sums, first, slices, matrices, images, reach)
    else:
        flat = np.zeros(len(slices), np.float32)
        blocks = _blocks(sums.shape[1] ** 2)
        _launch("insert_nearest", blocks, sums, first, slices, matrices, flat, images, np.float32(reach))


def _launch(name, blocks, sums, first, slices, matrices, curvature, images, *extra):
    """Run a kernel with so many blocks for each image and operator."""
    if len(images):
        arrays, sizes = _arguments(sums, first, slices, matrices, curvature, images)
        kernel = cuda_kernel("insert", name)
        kernel((blocks, len(images), matrices.shape[1]), (BLOCK,), (*arrays, *sizes, *extra))


def _launch_bricks(kernel, sums, first, slices, matrices, curvature, images, *extra):
    """Run a kernel with one block for each brick of voxels."""
    if len(images):
        arrays, sizes = _arguments(sums, first, slices, matrices, curvature, images)
        planes, rows, columns, _ = sums.shape
        bricks = tuple(-(-size // BRICK) for size in (columns, rows, planes))
        function = cuda_kernel("insert", f"insert_bricks<{kernel}>")
        function(bricks, (BRICK**3,), (*arrays, np.int32(len(images)), *sizes, *extra))


def _arguments(sums, first, slices, matrices, curvature, images):
    xp = array_module(sums)
    matrices, curvature = (from_host(a, xp, xp.float32) for a in (matrices, curvature))
    volume = sums, *map(np.int32, (sums.shape[1] // 2, first, sums.shape[0]))
    sizes = tuple(map(np.int32, (slices.shape[1], slices.shape[2], matrices.shape[1])))
    return (*volume, slices, matrices, curvature, from_host(images, xp, xp.int32)), sizes


def _tiles(sums):
    """Blocks for the columns of voxels along one of the volume's axes."""
    return (-(-sums.shape[1] // EDGE)) ** 2


def _blocks(threads):
    return -(-threads // BLOCK)
