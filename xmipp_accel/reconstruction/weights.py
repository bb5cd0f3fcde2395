"""Weights spread alone, on a grid of their own."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, from_host, kernel_turn

BLOCK = 256


def insert_weights(sums, first, slices, matrices, curvature, images, table, radius):
    """See :func:`xmipp_accel.kernels.reference.weights.insert_weights`; in place on float32 sums."""
    xp = array_module(sums)
    if xp is np:
        from xmipp_accel.kernels.cpu import weights as cpu  # Numba takes a while to load

        with kernel_turn:
            cpu.insert_weights(sums, first, slices, matrices, curvature, images, table, radius)
    elif len(images):
        rows, columns = slices.shape[1:3]
        matrices, curvature, table = (from_host(a, xp, xp.float32) for a in (matrices, curvature, table))
        arrays = slices, matrices, curvature, from_host(images, xp, xp.int32)
        volume = sums, *map(np.int32, (sums.shape[1] // 2, first, sums.shape[0]))
        sizes = map(np.int32, (rows, columns, matrices.shape[1]))
        cuda_kernel("weights", "insert_weights")(
            (-(-rows * columns // BLOCK), len(images)),
            (BLOCK,),
            (*volume, *arrays, *sizes, table, np.int32(len(table)), np.float32(radius)),
        )
