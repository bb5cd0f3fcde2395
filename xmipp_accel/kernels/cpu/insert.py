"""Insertion of projections into a Fourier volume on the CPU.

Layouts are those of :mod:`xmipp_accel.kernels.reference.insert`. Each thread owns planes of the volume and adds
only to those, in the order of the images: there are no races, and the number of threads changes nothing.
"""

from __future__ import annotations

import math

import numba
import numpy as np

SLAB = 6  # planes; fewer repeat more samples at the borders, more balance worse between threads


def prepare_slices(transforms, ramp_y, ramp_x, optics, weights, rows, limit, ctf_mode, keep_outside):
    """As the reference; returns float32."""
    slices = np.empty((len(transforms), rows, transforms.shape[2], 4), np.float32)
    _prepare(transforms, ramp_y, ramp_x, optics, weights, float(limit), ctf_mode, keep_outside, slices)
    return slices


@numba.njit(parallel=True, cache=True, fastmath=True)
def _prepare(transforms, ramp_y, ramp_x, optics, weights, limit, ctf_mode, keep_outside, slices):
    n, rows, columns, _ = slices.shape
    padded = transforms.shape[1]
    for task in numba.prange(n * rows):
        image, row = task // rows, task % rows
        ky = row - rows // 2
        source = ky % padded
        o0, o1, o2 = optics[image, 0], optics[image, 1], optics[image, 2]
        o3, o4 = optics[image, 3], optics[image, 4]
        for kx in range(columns):
            k2 = np.float32(kx * kx + ky * ky)
            inside = k2 <= limit
            factor = np.float32(1.0)
            if not keep_outside:
                if not inside or (kx == 0 and ky < 0):
                    factor = np.float32(0.0)
                elif k2 == 0:
                    factor = np.float32(0.5)
            if factor == 0:
                slices[image, row, kx] = 0
                continue
            ctf = np.float32(1.0)
            if ctf_mode > 0:
                phase = o0 * k2 + o1 * (kx * kx - ky * ky) + o2 * (2 * kx * ky) - o3 * k2 * k2 + o4
                ctf = np.float32(math.sin(phase))
                if ctf_mode == 2:
                    ctf = abs(ctf)
            weight = ctf * weights[image] * factor
            value = transforms[image, source, kx] * ramp_y[image, row] * ramp_x[image, kx]
            shown = weight if inside else np.float32(0.0)
            slices[image, row, kx, 0] = value.real * shown
            slices[image, row, kx, 1] = value.imag * shown
            slices[image, row, kx, 2] = weight * ctf
            slices[image, row, kx, 3] = 0


def insert_trilinear(accumulator, slices, matrices, images):
    """As the reference, in place on a float32 accumulator."""
    _insert_trilinear(accumulator, slices, matrices, images, SLAB, numba.get_num_threads())


def insert_blob(accumulator, slices, matrices, images, table, radius):
    """As the reference, in place on a float32 accumulator."""
    _insert_blob(accumulator, slices, matrices, images, table, float(radius), SLAB, numba.get_num_threads())


def insert_nearest(accumulator, slices, matrices, images):
    """As the reference, in place on a float32 accumulator."""
    _insert_nearest(accumulator, slices, matrices, images, numba.get_num_threads())


@numba.njit(cache=True)
def _interval(slope, offset, low, high, first, last):
    """Integers k of [first, last] that may satisfy low <= slope k + offset <= high; one too many is possible."""
    if abs(slope) < 1e-7:
        if offset < low - 1e-3 or offset > high + 1e-3:
            return 1, 0
        return first, last
    a, b = (low - offset) / slope, (high - offset) / slope
    if a > b:
        a, b = b, a
    # Far-away bounds are cut before they become integers.
    a, b = max(a, first - 1.0), min(b, last + 1.0)
    return max(first, math.floor(a - 1e-6)), min(last, math.ceil(b + 1e-6))


@numba.njit(parallel=True, cache=True)
def _insert_trilinear(accumulator, slices, matrices, images, slab, threads):
    planes = accumulator.shape[0]
    slabs = (planes + slab - 1) // slab
    for thread in numba.prange(threads):
        # Interleaved, because central planes get more samples.
        for number in range(thread, slabs, threads):
            first = number * slab
            last = min(first + slab, planes)
            for image in images:
                for operator in range(matrices.shape[1]):
                    _trilinear_slab(accumulator, slices[image], matrices[image, operator], first, last)


@numba.njit(cache=True)
def _trilinear_slab(accumulator, records, matrix, first, last):
    centre = accumulator.shape[0] // 2
    rows, columns, _ = records.shape
    for row in range(rows):
        ky = row - rows // 2
        for sign in (1.0, -1.0):
            sx, sy, sz = sign * matrix[0, 0], sign * matrix[0, 1], sign * matrix[0, 2]
            ox, oy, oz = sign * matrix[1, 0] * ky, sign * matrix[1, 1] * ky, sign * matrix[1, 2] * ky
            start, stop = _interval(sx, ox, 0.0, 1e9, 0, columns - 1)
            start, stop = _interval(sz, oz, first - centre - 1.0, float(last - centre), start, stop)
            for kx in range(start, stop + 1):
                weight = records[row, kx, 2]
                x = sx * kx + ox
                # The two signs share no sample: exactly one of them sees x > 0, and x = 0 belongs to the first.
                if weight == 0 or x < 0 or (x == 0 and sign < 0):
                    continue
                z = sz * kx + oz + centre
                iz = math.floor(z)
                if iz < first - 1 or iz >= last:
                    continue
                _add_corners(accumulator, records, row, kx, sign, x, sy * kx + oy + centre, z, first, last)


@numba.njit(cache=True, inline="always")
def _add_corners(accumulator, records, row, kx, sign, x, y, z, first, last):
    ix, iy, iz = int(x), math.floor(y), math.floor(z)
    fx, fy, fz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
    one = np.float32(1.0)
    re, im, weight = records[row, kx, 0], np.float32(sign) * records[row, kx, 1], records[row, kx, 2]
    for dz in range(2):
        if iz + dz < first or iz + dz >= last:
            continue
        wz = fz if dz else one - fz
        for dy in range(2):
            wy = wz * (fy if dy else one - fy)
            for dx in range(2):
                part = wy * (fx if dx else one - fx)
                voxel = accumulator[iz + dz, iy + dy, ix + dx]
                voxel[0] += part * re
                voxel[1] += part * im
                voxel[2] += part * weight


@numba.njit(parallel=True, cache=True)
def _insert_blob(accumulator, slices, matrices, images, table, radius, slab, threads):
    planes = accumulator.shape[0]
    slabs = (planes + slab - 1) // slab
    for thread in numba.prange(threads):
        for number in range(thread, slabs, threads):
            first = number * slab
            last = min(first + slab, planes)
            for image in images:
                for operator in range(matrices.shape[1]):
                    _blob_slab(accumulator, slices[image], matrices[image, operator], table, radius, first, last)


@numba.njit(cache=True)
def _blob_slab(accumulator, records, matrix, table, radius, first, last):
    centre = accumulator.shape[0] // 2
    rows, columns, _ = records.shape
    for row in range(rows):
        ky = row - rows // 2
        for sign in (1.0, -1.0):
            sx, sy, sz = sign * matrix[0, 0], sign * matrix[0, 1], sign * matrix[0, 2]
            ox, oy, oz = sign * matrix[1, 0] * ky, sign * matrix[1, 1] * ky, sign * matrix[1, 2] * ky
            start, stop = _interval(sx, ox, -radius, 1e9, 0, columns - 1)
            start, stop = _interval(sz, oz, first - centre - radius, last - 1 - centre + radius, start, stop)
            for kx in range(start, stop + 1):
                position = (sx * kx + ox, sy * kx + oy, sz * kx + oz)
                _add_ball(accumulator, records[row, kx], position, sign, table, radius, columns, first, last)


@numba.njit(cache=True)
def _add_ball(accumulator, record, position, sign, table, radius, columns, first, last):
    centre = accumulator.shape[0] // 2
    x, y, z = position
    radius2, reach2 = radius * radius, (columns + radius) ** 2
    scale = (len(table) - 1) / radius2
    re, im, weight = record[0], np.float32(sign) * record[1], record[2]
    # The plane kx = 0 takes the sample itself but not its mate: its two halves are joined later.
    x0, x1 = _support(x, radius, 0 if sign > 0 else 1, centre)
    y0, y1 = _support(y, radius, -centre, centre)
    z0, z1 = _support(z, radius, first - centre, last - 1 - centre)
    for iz in range(z0, z1 + 1):
        dz = (iz - z) ** 2
        for iy in range(y0, y1 + 1):
            dy = dz + (iy - y) ** 2
            if dy > radius2:
                continue
            for ix in range(x0, x1 + 1):
                squares = dy + (ix - x) ** 2
                if squares <= radius2 and ix * ix + iy * iy + iz * iz <= reach2:
                    kernel = table[int(squares * scale + 0.5)]
                    voxel = accumulator[iz + centre, iy + centre, ix]
                    voxel[0] += kernel * re
                    voxel[1] += kernel * im
                    voxel[2] += kernel * weight


@numba.njit(cache=True)
def _support(position, radius, low, high):
    return max(math.ceil(position - radius), low), min(math.floor(position + radius), high)


@numba.njit(parallel=True, cache=True)
def _insert_nearest(accumulator, slices, matrices, images, threads):
    planes = accumulator.shape[0]
    for thread in numba.prange(threads):
        for plane in range(thread, planes, threads):
            for image in images:
                for operator in range(matrices.shape[1]):
                    _nearest_plane(accumulator, slices[image], matrices[image, operator], plane)


@numba.njit(cache=True)
def _nearest_plane(accumulator, records, matrix, plane):
    centre = accumulator.shape[0] // 2
    normal = matrix[2]
    axis = 0
    for a in range(1, 3):
        if abs(normal[a]) > abs(normal[axis]):
            axis = a
    for sign in (1, -1):
        z = sign * (plane - centre)
        for i in range(-centre, centre + 1):
            if axis == 0:  # columns along x: i walks y
                x = math.floor(-(normal[1] * i + normal[2] * z) / normal[0] + 0.5)
                _add_nearest(accumulator, records, matrix, sign, x, i, z)
            elif axis == 1:  # columns along y: i walks x
                y = math.floor(-(normal[0] * i + normal[2] * z) / normal[1] + 0.5)
                _add_nearest(accumulator, records, matrix, sign, i, y, z)
            else:  # columns along z: i walks y, and x only where the plane passes here
                slope, offset = -normal[0] / normal[2], -normal[1] * i / normal[2] + 0.5
                start, stop = _interval(slope, offset, float(z), z + 1.0, -centre, centre)
                for x in range(start, stop + 1):
                    if math.floor(slope * x + offset) == z:
                        _add_nearest(accumulator, records, matrix, sign, x, i, z)


@numba.njit(cache=True, inline="always")
def _add_nearest(accumulator, records, matrix, sign, x, y, z):
    """Add to voxel (x, y, z), if that side of the volume is the one this sign is for."""
    centre = accumulator.shape[0] // 2
    rows, columns, _ = records.shape
    kept = x >= 0 if sign > 0 else x < 0
    if not kept or abs(x) > centre or abs(y) > centre or x * x + y * y + z * z > columns * columns:
        return
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z
    if u < 0:
        return
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z
    kx = min(max(math.floor(u + 0.5), 0), columns - 1)
    row = min(max(math.floor(v + 0.5) + rows // 2, 0), rows - 1)
    voxel = accumulator[sign * z + centre, sign * y + centre, sign * x]
    voxel[0] += records[row, kx, 0]
    voxel[1] += np.float32(sign) * records[row, kx, 1]
    voxel[2] += records[row, kx, 2]
