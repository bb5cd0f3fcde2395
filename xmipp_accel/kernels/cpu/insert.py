"""Insertion of projections into a Fourier volume on the CPU.

Layouts are those of :mod:`xmipp_accel.kernels.reference.insert`. Each thread owns tiles of the volume, as large in
z and y as a core's cache, and adds only to those, in the order of the images: there are no races, the number of
threads changes nothing, and a tile is fetched from memory once for all images of a call.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TILE_BYTES = 600_000  # of a core's second-level cache, which the records go through as well
_FAR = 1e9


def _add_record(typing_context, flat, index, factor, re, im, weight):
    """``flat[index : index + 3] += factor * (re, im, weight)`` as one addition of four lanes.

    LLVM does not find these by itself, and adds one by one at three times the cost.
    """

    def build(context, builder, signature, arguments):
        flat, index, factor, *values = arguments
        array = context.make_array(signature.args[0])(context, builder, flat)
        lanes = ir.VectorType(ir.FloatType(), 4)
        pointer = builder.bitcast(builder.gep(array.data, [index]), lanes.as_pointer())
        word = ir.IntType(32)
        record, part = ir.Constant(lanes, [0.0] * 4), ir.Constant(lanes, ir.Undefined)
        for lane, value in enumerate(values):
            record = builder.insert_element(record, value, ir.Constant(word, lane))
        part = builder.insert_element(part, factor, ir.Constant(word, 0))
        part = builder.shuffle_vector(part, part, ir.Constant(ir.VectorType(word, 4), [0] * 4))
        product = builder.fmul(record, part, flags=("contract",))
        total = builder.fadd(product, builder.load(pointer, align=4), flags=("contract",))
        builder.store(total, pointer, align=4)
        return context.get_dummy_value()

    return types.void(flat, index, factor, re, im, weight), build


add_record: Any = intrinsic(_add_record)


def insert_trilinear(sums, first, slices, matrices, curvature, images):
    """As the reference, in place on float32 sums."""
    _insert_trilinear(sums, first, slices, matrices, curvature, images, _tile(sums), numba.get_num_threads())


def insert_blob(sums, first, slices, matrices, curvature, images, table, radius, reach):
    """As the reference, in place on float32 sums."""
    kernel = table, float(radius), float(reach)
    threads = numba.get_num_threads()
    _insert_blob(sums, first, slices, matrices, curvature, images, *kernel, _tile(sums), threads)


def _tile(sums):
    """Edge in voxels of the tiles in z and y."""
    return max(4, math.isqrt(TILE_BYTES // (16 * sums.shape[2])))


@numba.njit(parallel=True, cache=True)
def _insert_trilinear(sums, first, slices, matrices, curvature, images, edge, threads):
    tiles_z, tiles_y = -(-sums.shape[0] // edge), -(-sums.shape[1] // edge)
    for thread in numba.prange(threads):
        # Interleaved, because central tiles get more samples.
        for number in range(thread, tiles_z * tiles_y, threads):
            tile = tile_bounds(sums, first, number // tiles_y, number % tiles_y, edge)
            for image in images:
                for op in range(matrices.shape[1]):
                    for sign in (1.0, -1.0):
                        axes, curve = signed_axes(matrices[image, op], sign), sign * float(curvature[image])
                        _trilinear_tile(sums, first, slices[image], axes, curve, sign, tile)


@numba.njit(cache=True)
def tile_bounds(sums, first, tile_z, tile_y, edge):
    """(z0, z1, y0, y1) of a tile relative to the volume's origin, the ends excluded."""
    centre = sums.shape[1] // 2
    z0, y0 = tile_z * edge, tile_y * edge
    z1, y1 = min(z0 + edge, sums.shape[0]), min(y0 + edge, sums.shape[1])
    return z0 + first - centre, z1 + first - centre, y0 - centre, y1 - centre


@numba.njit(cache=True)
def signed_axes(matrix, sign):
    """Rows a, b, n of a slice, or those of its opposite samples; the viewing direction stays."""
    return (
        (sign * matrix[0, 0], sign * matrix[0, 1], sign * matrix[0, 2]),
        (sign * matrix[1, 0], sign * matrix[1, 1], sign * matrix[1, 2]),
        (matrix[2, 0], matrix[2, 1], matrix[2, 2]),
    )


@numba.njit(cache=True)
def line_range(inverse, offset, low, high, first, last):
    """Integers k of [first, last] that may satisfy low <= k / inverse + offset <= high; some more are possible."""
    if inverse == 0:
        if offset < low - 1e-3 or offset > high + 1e-3:
            return 1, 0
        return first, last
    a, b = (low - offset) * inverse, (high - offset) * inverse
    if a > b:
        a, b = b, a
    # Far-away bounds are cut before they become integers.
    a, b = max(a, first - 1.0), min(b, last + 1.0)
    return max(first, math.floor(a - 1e-6)), min(last, math.ceil(b + 1e-6))


@numba.njit(cache=True)
def rows_of(axes, curved, bounds, rows, columns):
    """Range of ky whose samples can lie within `bounds` (z, z, y, y)."""
    a, b, _ = axes
    first, last = -(rows // 2), rows - 1 - rows // 2
    determinant = a[1] * b[2] - a[2] * b[1]
    size = (a[0] ** 2 + a[1] ** 2 + a[2] ** 2) * (b[0] ** 2 + b[1] ** 2 + b[2] ** 2)
    if curved or determinant**2 < 1e-6 * size:
        return first, last
    # The inverse of (y, z) as a map of (kx, ky): where the four corners of the bounds lie.
    kx = _extremes(-b[1] / determinant, b[2] / determinant, bounds)
    if kx[1] < -1 or kx[0] > columns:
        return 1, 0
    ky = _extremes(a[1] / determinant, -a[2] / determinant, bounds)
    return max(first, math.floor(max(ky[0], -_FAR)) - 1), min(last, math.ceil(min(ky[1], _FAR)) + 1)


@numba.njit(cache=True)
def _extremes(by_z, by_y, bounds):
    """Least and largest ``by_z z + by_y y`` within bounds (z, z, y, y)."""
    z0, z1, y0, y1 = by_z * bounds[0], by_z * bounds[1], by_y * bounds[2], by_y * bounds[3]
    return min(z0, z1) + min(y0, y1), max(z0, z1) + max(y0, y1)


@numba.njit(cache=True)
def samples_of_row(axes, inverse, curve, ky, columns, low_x, bounds):
    """Range of kx of a row whose samples can lie within `bounds` (z, z, y, y) and at x of `low_x` or more."""
    _, b, n = axes
    # The curvature moves a sample by no more than that of the farthest one.
    bend = curve * float(columns * columns + ky * ky)
    x, y, z = abs(bend * n[0]), abs(bend * n[1]), abs(bend * n[2])
    start, stop = line_range(inverse[0], b[0] * ky, low_x - x, _FAR, 0, columns - 1)
    start, stop = line_range(inverse[1], b[1] * ky, bounds[2] - y, bounds[3] + y, start, stop)
    return line_range(inverse[2], b[2] * ky, bounds[0] - z, bounds[1] + z, start, stop)


@numba.njit(cache=True)
def inverse_slopes(axes):
    """Of a row's samples along x, y and z."""
    return inverse_slope(axes[0][0]), inverse_slope(axes[0][1]), inverse_slope(axes[0][2])


@numba.njit(cache=True)
def inverse_slope(slope):
    """What :func:`line_range` takes: 0 stands for a slope that does not move a line over its whole length."""
    return 1.0 / slope if abs(slope) > 1e-7 else 0.0


@numba.njit(cache=True)
def _trilinear_tile(sums, first, records, axes, curve, sign, tile):
    z0, z1, y0, y1 = tile
    rows, columns, _ = records.shape
    bounds = z0 - 1.0, float(z1), y0 - 1.0, float(y1)
    inverse = inverse_slopes(axes)
    ky0, ky1 = rows_of(axes, curve != 0, bounds, rows, columns)
    for ky in range(ky0, ky1 + 1):
        start, stop = samples_of_row(axes, inverse, curve, ky, columns, 0.0, bounds)
        _trilinear_line(sums, first, records, axes, curve, sign, tile, ky, start, stop)


@numba.njit(cache=True, error_model="numpy")
def _trilinear_line(sums, first, records, axes, curve, sign, tile, ky, start, stop):
    z0, z1, y0, y1 = tile
    a, b, n = axes
    row = ky + records.shape[0] // 2
    centre = sums.shape[1] // 2
    step_y = 4 * sums.shape[2]
    step_z = step_y * sums.shape[1]
    flat, one = sums.reshape(-1), np.float32(1.0)
    ox, oy, oz = b[0] * ky, b[1] * ky, b[2] * ky
    for kx in range(start, stop + 1):
        weight = records[row, kx, 2]
        bend = curve * (kx * kx + ky * ky)
        x = a[0] * kx + ox + bend * n[0]
        # The two signs share no sample: exactly one of them sees x > 0, and x = 0 belongs to the first.
        if weight == 0 or x < 0 or (x == 0 and sign < 0):
            continue
        y = a[1] * kx + oy + bend * n[1]
        z = a[2] * kx + oz + bend * n[2]
        ix, iy, iz = int(x), math.floor(y), math.floor(z)
        if iz < z0 - 1 or iz >= z1 or iy < y0 - 1 or iy >= y1:
            continue
        fx, fy, fz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
        re, im = records[row, kx, 0], np.float32(sign) * records[row, kx, 1]
        far = fx * re, fx * im, fx * weight
        near = re - far[0], im - far[1], weight - far[2]
        place = (iz + centre - first) * step_z + (iy + centre) * step_y + 4 * ix
        if iz >= z0:
            if iy >= y0:
                _add_pair(flat, place, (one - fz) * (one - fy), near, far)
            if iy + 1 < y1:
                _add_pair(flat, place + step_y, (one - fz) * fy, near, far)
        if iz + 1 < z1:
            if iy >= y0:
                _add_pair(flat, place + step_z, fz * (one - fy), near, far)
            if iy + 1 < y1:
                _add_pair(flat, place + step_z + step_y, fz * fy, near, far)


@numba.njit(cache=True, inline="always")
def _add_pair(flat, place, part, near, far):
    add_record(flat, place, part, near[0], near[1], near[2])
    add_record(flat, place + 4, part, far[0], far[1], far[2])


@numba.njit(parallel=True, cache=True)
def _insert_blob(sums, first, slices, matrices, curvature, images, table, radius, reach, edge, threads):
    tiles_z, tiles_y = -(-sums.shape[0] // edge), -(-sums.shape[1] // edge)
    for thread in numba.prange(threads):
        for number in range(thread, tiles_z * tiles_y, threads):
            tile = tile_bounds(sums, first, number // tiles_y, number % tiles_y, edge)
            for image in images:
                for op in range(matrices.shape[1]):
                    for sign in (1.0, -1.0):
                        axes = signed_axes(matrices[image, op], sign)
                        curve = sign * float(curvature[image])
                        kernel = table, radius, reach
                        _blob_tile(sums, first, slices[image], axes, curve, sign, tile, kernel)


@numba.njit(cache=True)
def _blob_tile(sums, first, records, axes, curve, sign, tile, kernel):
    z0, z1, y0, y1 = tile
    radius = kernel[1]
    rows, columns, _ = records.shape
    bounds = z0 - radius, z1 - 1 + radius, y0 - radius, y1 - 1 + radius
    inverse = inverse_slopes(axes)
    ky0, ky1 = rows_of(axes, curve != 0, bounds, rows, columns)
    a, b, n = axes
    for ky in range(ky0, ky1 + 1):
        start, stop = samples_of_row(axes, inverse, curve, ky, columns, -radius, bounds)
        for kx in range(start, stop + 1):
            record = records[ky + rows // 2, kx]
            if record[2] == 0:
                continue
            bend = curve * (kx * kx + ky * ky)
            x = a[0] * kx + b[0] * ky + bend * n[0]
            y = a[1] * kx + b[1] * ky + bend * n[1]
            z = a[2] * kx + b[2] * ky + bend * n[2]
            _add_ball(sums, first, record, (x, y, z), sign, tile, kernel)


@numba.njit(cache=True)
def _add_ball(sums, first, record, position, sign, tile, kernel):
    table, radius, reach = kernel
    z0, z1, y0, y1 = tile
    centre = sums.shape[1] // 2
    x, y, z = position
    radius2, reach2 = radius * radius, reach * reach
    scale = (len(table) - 1) / radius2
    step_y = 4 * sums.shape[2]
    step_z = step_y * sums.shape[1]
    flat = sums.reshape(-1)
    re, im, weight = record[0], np.float32(sign) * record[1], record[2]
    # The plane kx = 0 takes the sample itself but not its mate: its two halves are joined later.
    first_x, last_x = voxel_range(x, radius, 0 if sign > 0 else 1, sums.shape[2] - 1)
    first_y, last_y = voxel_range(y, radius, y0, y1 - 1)
    first_z, last_z = voxel_range(z, radius, z0, z1 - 1)
    for iz in range(first_z, last_z + 1):
        for iy in range(first_y, last_y + 1):
            across = (iz - z) ** 2 + (iy - y) ** 2
            if across > radius2:
                continue
            place = (iz + centre - first) * step_z + (iy + centre) * step_y
            for ix in range(first_x, last_x + 1):
                squares = across + (ix - x) ** 2
                if squares <= radius2 and ix * ix + iy * iy + iz * iz <= reach2:
                    part = table[int(squares * scale + 0.5)]
                    add_record(flat, place + 4 * ix, part, re, im, weight)


@numba.njit(cache=True)
def voxel_range(position, radius, low, high):
    """First and last voxel of [low, high] within `radius` of `position` along an axis."""
    return max(math.ceil(position - radius), low), min(math.floor(position + radius), high)
