"""Weights spread alone, on a grid of their own."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel
from xmipp_accel.kernels.cpu import weights as cpu

BLOCK = 256


def insert_weights(sums, slices, matrices, curvature, images, table, radius):
    """See :func:`xmipp_accel.kernels.reference.weights.insert_weights`; float32, on the device of `sums`."""
    xp = array_module(sums)
    matrices = xp.ascontiguousarray(xp.asarray(matrices, dtype=xp.float32))
    curvature, table = xp.asarray(curvature, dtype=xp.float32), xp.asarray(table, dtype=xp.float32)
    if xp is np:
        cpu.insert_weights(sums, slices, matrices, curvature, images, table, radius)
    elif len(images):
        rows, columns = slices.shape[1:3]
        sizes = map(np.int32, (rows, columns, matrices.shape[1]))
        arrays = slices, matrices, curvature, xp.asarray(images, dtype=xp.int32)
        cuda_kernel("weights", "insert_weights")(
            (-(-rows * columns // BLOCK), len(images)),
            (BLOCK,),
            (sums, np.int32(sums.shape[0] // 2), *arrays, *sizes, table, np.int32(len(table)), np.float32(radius)),
        )
