"""Spreading of the samples' weights alone on the CPU.

Layouts are those of :mod:`xmipp_accel.kernels.reference.weights`. Each thread owns tiles of the sums, as in
:mod:`xmipp_accel.kernels.cpu.insert`.
"""

from __future__ import annotations

import math

import numba

from xmipp_accel.kernels.cpu.insert import (
    TILE_BYTES,
    inverse_slopes,
    rows_of,
    samples_of_row,
    signed_axes,
    tile_bounds,
    voxel_range,
)


def insert_weights(sums, first, slices, matrices, curvature, images, table, radius):
    """As the reference, in place on float32 sums."""
    edge = max(4, math.isqrt(TILE_BYTES // (4 * sums.shape[2])))
    threads = numba.get_num_threads()
    _insert_weights(sums, first, slices, matrices, curvature, images, table, float(radius), edge, threads)


@numba.njit(parallel=True, cache=True)
def _insert_weights(sums, first, slices, matrices, curvature, images, table, radius, edge, threads):
    tiles_z, tiles_y = -(-sums.shape[0] // edge), -(-sums.shape[1] // edge)
    for thread in numba.prange(threads):
        # Interleaved, because central tiles get more samples.
        for number in range(thread, tiles_z * tiles_y, threads):
            tile = tile_bounds(sums, first, number // tiles_y, number % tiles_y, edge)
            for image in images:
                for op in range(matrices.shape[1]):
                    for sign in (1.0, -1.0):
                        axes, curve = signed_axes(matrices[image, op], sign), sign * float(curvature[image])
                        # The plane kx = 0 takes a sample itself but not its mate: they are joined later.
                        smallest = 0 if sign > 0 else 1
                        _spread(sums, first, slices[image], axes, curve, smallest, tile, table, radius)


@numba.njit(cache=True)
def _spread(sums, first, records, axes, curve, smallest, tile, table, radius):
    z0, z1, y0, y1 = tile
    rows, columns, _ = records.shape
    bounds = z0 - radius, z1 - 1 + radius, y0 - radius, y1 - 1 + radius
    ky0, ky1 = rows_of(axes, curve != 0, bounds, rows, columns)
    a, b, n = axes
    inverse = inverse_slopes(axes)
    for ky in range(ky0, ky1 + 1):
        start, stop = samples_of_row(axes, inverse, curve, ky, columns, -radius, bounds)
        for kx in range(start, stop + 1):
            weight = records[ky + rows // 2, kx, 2]
            if weight == 0:
                continue
            bend = curve * (kx * kx + ky * ky)
            x = a[0] * kx + b[0] * ky + bend * n[0]
            y = a[1] * kx + b[1] * ky + bend * n[1]
            z = a[2] * kx + b[2] * ky + bend * n[2]
            _add_ball(sums, first, weight, (x, y, z), smallest, tile, table, radius)


@numba.njit(cache=True)
def _add_ball(sums, first, weight, position, smallest, tile, table, radius):
    z0, z1, y0, y1 = tile
    x, y, z = position
    centre = sums.shape[1] // 2
    radius2 = radius * radius
    scale = (len(table) - 1) / radius2
    first_x, last_x = voxel_range(x, radius, smallest, centre)
    first_y, last_y = voxel_range(y, radius, y0, y1 - 1)
    first_z, last_z = voxel_range(z, radius, z0, z1 - 1)
    for iz in range(first_z, last_z + 1):
        for iy in range(first_y, last_y + 1):
            across = (iz - z) ** 2 + (iy - y) ** 2
            for ix in range(first_x, last_x + 1):
                squares = across + (ix - x) ** 2
                if squares <= radius2:
                    sums[iz + centre - first, iy + centre, ix] += table[int(squares * scale + 0.5)] * weight
