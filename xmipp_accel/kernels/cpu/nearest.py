"""Insertion by nearest neighbours on the CPU: each voxel next to an image's plane asks for one sample.

Layouts are those of :mod:`xmipp_accel.kernels.reference.insert`. Each thread owns planes of the volume.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from xmipp_accel.kernels.cpu.insert import inverse_slope, line_range


def insert_nearest(sums, first, slices, matrices, images, reach):
    """As the reference, in place on float32 sums."""
    _insert_nearest(sums, first, slices, matrices, images, float(reach), numba.get_num_threads())


@numba.njit(parallel=True, cache=True)
def _insert_nearest(sums, first, slices, matrices, images, reach, threads):
    for thread in numba.prange(threads):
        for plane in range(thread, len(sums), threads):
            for image in images:
                for operator in range(matrices.shape[1]):
                    _nearest_plane(sums, first, slices[image], matrices[image, operator], plane, reach)


@numba.njit(cache=True)
def _nearest_plane(sums, first, records, matrix, plane, reach):
    centre = sums.shape[1] // 2
    normal, inverse = matrix[2], _inverse(matrix)
    axis = 0
    for a in range(1, 3):
        if abs(normal[a]) > abs(normal[axis]):
            axis = a
    for sign in (1, -1):
        z = sign * (plane + first - centre)
        for i in range(-centre, centre + 1):
            if axis == 0:  # columns along x: i walks y
                x = math.floor(-(normal[1] * i + normal[2] * z) / normal[0] + 0.5)
                _add_nearest(sums, plane, records, inverse, sign, x, i, z, reach)
            elif axis == 1:  # columns along y: i walks x
                y = math.floor(-(normal[0] * i + normal[2] * z) / normal[1] + 0.5)
                _add_nearest(sums, plane, records, inverse, sign, i, y, z, reach)
            else:  # columns along z: i walks y, and x only where the plane passes here
                slope, offset = -normal[0] / normal[2], -normal[1] * i / normal[2] + 0.5
                start, stop = line_range(inverse_slope(slope), offset, float(z), z + 1.0, -centre, centre)
                for x in range(start, stop + 1):
                    if math.floor(slope * x + offset) == z:
                        _add_nearest(sums, plane, records, inverse, sign, x, i, z, reach)


@numba.njit(cache=True)
def _inverse(matrix):
    """Steps along (x, y, z) in samples of the plane: the pseudo-inverse of the first two rows, transposed."""
    a, b = matrix[0], matrix[1]
    aa, bb = a[0] ** 2 + a[1] ** 2 + a[2] ** 2, b[0] ** 2 + b[1] ** 2 + b[2] ** 2
    ab = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    inverse = np.empty((2, 3))
    for axis in range(3):
        inverse[0, axis] = (bb * a[axis] - ab * b[axis]) / (aa * bb - ab * ab)
        inverse[1, axis] = (aa * b[axis] - ab * a[axis]) / (aa * bb - ab * ab)
    return inverse


@numba.njit(cache=True, inline="always")
def _add_nearest(sums, plane, records, inverse, sign, x, y, z, reach):
    """Add to voxel (x, y, z), if that side of the volume is the one this sign is for."""
    centre = sums.shape[1] // 2
    rows, columns, _ = records.shape
    kept = x >= 0 if sign > 0 else x < 0
    if not kept or abs(x) > centre or abs(y) > centre or x * x + y * y + z * z > reach * reach:
        return
    u = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] * z
    if u < 0:
        return
    v = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] * z
    kx = min(max(math.floor(u + 0.5), 0), columns - 1)
    row = min(max(math.floor(v + 0.5) + rows // 2, 0), rows - 1)
    voxel = sums[plane, sign * y + centre, sign * x]
    voxel[0] += records[row, kx, 0]
    voxel[1] += np.float32(sign) * records[row, kx, 1]
    voxel[2] += records[row, kx, 2]
