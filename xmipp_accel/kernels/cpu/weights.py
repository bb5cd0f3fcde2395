"""Spreading of the samples' weights alone on the CPU.

Layouts are those of :mod:`xmipp_accel.kernels.reference.weights`. Each thread owns planes of the sums, as in
:mod:`xmipp_accel.kernels.cpu.insert`.
"""

from __future__ import annotations

import math

import numba

SLAB = 16  # planes; the grid is twice as fine as that of the values, its samples twice as far apart


def insert_weights(sums, slices, matrices, curvature, images, table, radius):
    """As the reference, in place on float32 sums."""
    threads = numba.get_num_threads()
    _insert(sums, slices, matrices, curvature, images, table, float(radius), SLAB, threads)


@numba.njit(parallel=True, cache=True)
def _insert(sums, slices, matrices, curvature, images, table, radius, slab, threads):
    planes = sums.shape[0]
    slabs = (planes + slab - 1) // slab
    for thread in numba.prange(threads):
        # Interleaved, because central planes get more samples.
        for number in range(thread, slabs, threads):
            first = number * slab
            last = min(first + slab, planes)
            for image in images:
                for operator in range(matrices.shape[1]):
                    matrix = matrices[image, operator]
                    _spread(sums, slices[image], matrix, curvature[image], table, radius, first, last)


@numba.njit(cache=True)
def _spread(sums, records, matrix, curvature, table, radius, first, last):
    """Add one image to the planes from `first` to before `last`."""
    centre = sums.shape[0] // 2
    rows, columns, _ = records.shape
    bend_x, bend_y, bend_z = curvature * matrix[2, 0], curvature * matrix[2, 1], curvature * matrix[2, 2]
    for row in range(rows):
        ky = row - rows // 2
        # Twice: as it is, and from its mate at the opposite position.
        for sign in (1.0, -1.0):
            low = first - centre - radius - max(sign * bend_z, 0.0) * (ky * ky + (columns - 1) ** 2)
            high = last - 1 - centre + radius - min(sign * bend_z, 0.0) * (ky * ky + (columns - 1) ** 2)
            start, stop = _between(sign * matrix[0, 2], sign * matrix[1, 2] * ky, low, high, columns)
            for kx in range(start, stop):
                weight = records[row, kx, 2]
                if weight == 0:
                    continue
                k2 = kx * kx + ky * ky
                x = sign * (matrix[0, 0] * kx + matrix[1, 0] * ky + bend_x * k2)
                y = sign * (matrix[0, 1] * kx + matrix[1, 1] * ky + bend_y * k2)
                z = sign * (matrix[0, 2] * kx + matrix[1, 2] * ky + bend_z * k2)
                # The plane kx = 0 takes the sample itself but not its mate: its two halves are joined later.
                _add_ball(sums, weight, x, y, z, 0 if sign > 0 else 1, table, radius, first, last)


@numba.njit(cache=True)
def _between(slope, offset, low, high, columns):
    """Range of the k in [0, columns) that may satisfy low <= slope k + offset <= high."""
    if abs(slope) * columns < 1e-3:
        return 0, (columns if low - 1e-3 <= offset <= high + 1e-3 else 0)
    a, b = (low - offset) / slope, (high - offset) / slope
    if a > b:
        a, b = b, a
    # Far-away bounds are cut before they become integers; one too many does no harm.
    return math.floor(min(max(a - 1e-6, 0.0), columns)), math.floor(min(max(b + 1 + 1e-6, 0.0), columns))


@numba.njit(cache=True)
def _add_ball(sums, weight, x, y, z, smallest, table, radius, first, last):
    centre = sums.shape[0] // 2
    radius2 = radius * radius
    scale = (len(table) - 1) / radius2
    x0, x1 = max(math.ceil(x - radius), smallest), min(math.floor(x + radius), centre)
    y0, y1 = max(math.ceil(y - radius), -centre), min(math.floor(y + radius), centre)
    z0, z1 = max(math.ceil(z - radius), first - centre), min(math.floor(z + radius), last - 1 - centre)
    for iz in range(z0, z1 + 1):
        dz = (iz - z) ** 2
        for iy in range(y0, y1 + 1):
            dy = dz + (iy - y) ** 2
            for ix in range(x0, x1 + 1):
                squares = dy + (ix - x) ** 2
                if squares <= radius2:
                    sums[iz + centre, iy + centre, ix] += table[int(squares * scale + 0.5)] * weight
