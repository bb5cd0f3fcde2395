"""Insertion of projections into a Fourier volume, in float64 NumPy: the oracle of the other twins.

Layouts, shared by all twins
----------------------------
slices : (n, rows, columns, 4) float32
    Half of each image's transform as records (real, imaginary, weight, 0): columns ``kx = 0, 1, ...``, rows
    ``ky = -(rows // 2), ...``. Value and weight are multiplied by the CTF already.
accumulator : (2 c + 1, 2 c + 1, c + 1, 4) float32
    The same records for the volume's frequencies ``(kz, ky, kx)``, the centre at ``(c, c, 0)``; what falls on
    ``kx < 0`` is conjugated onto the opposite side. The plane ``kx = 0`` holds each pair of opposite samples
    only in part and is completed at the end of all insertions.
matrices : (n, g, 3, 3)
    For each image and symmetry operator: image x axis, image y axis and viewing direction as rows, in volume
    (x, y, z).
"""

from __future__ import annotations

import numpy as np


def prepare_slices(transforms, ramp_y, ramp_x, optics, weights, rows, limit, ctf_mode, keep_outside):
    """Cut the transforms of padded images to records, centre them and apply their CTF.

    Parameters
    ----------
    transforms : (n, p, columns) complex64
        Images' FFT over edge `p`, rows in FFT order.
    ramp_y, ramp_x : (n, rows), (n, columns) complex64
        Phase factors that move the particle's centre to pixel 0.
    optics : (n, 5) float32
        CTF phase ``o0 k2 + o1 (kx^2 - ky^2) + o2 2 kx ky - o3 k2^2 + o4`` of sample (ky, kx).
    weights : (n,) float32
    rows : int
    limit : float
        Samples with ``kx^2 + ky^2 > limit`` are zero.
    ctf_mode : int
        0: no CTF; 1: multiply by the CTF, weigh by its square; 2: the same with its absolute value.
    keep_outside : bool
        True keeps the weight of zeroed samples and every redundant sample, as Xmipp does. False gives them
        weight 0, drops ``kx = 0, ky < 0`` and halves the origin: each pair of opposite samples counts once.

    Returns
    -------
    (n, rows, columns, 4) float64 array
    """
    padded, columns = transforms.shape[1:]
    ky = np.arange(rows) - rows // 2
    kx = np.arange(columns)
    values = transforms[:, ky % padded].astype(np.complex128)
    values = values * ramp_y[:, :, None].astype(np.complex128) * ramp_x[:, None, :].astype(np.complex128)
    ky, kx = np.meshgrid(ky, kx, indexing="ij")
    k2 = kx**2.0 + ky**2.0
    scale = np.ones(values.shape)
    if ctf_mode:
        o = np.asarray(optics, dtype=np.float64)[:, :, None, None]
        phase = o[:, 0] * k2 + o[:, 1] * (kx**2 - ky**2) + o[:, 2] * 2 * kx * ky - o[:, 3] * k2**2 + o[:, 4]
        scale = np.sin(phase) if ctf_mode == 1 else np.abs(np.sin(phase))
    inside = (k2 <= limit).astype(np.float64)
    once = np.ones(k2.shape)
    if not keep_outside:
        once = inside * np.where((kx == 0) & (ky < 0), 0.0, np.where(k2 == 0, 0.5, 1.0))
    weights = np.asarray(weights, dtype=np.float64)[:, None, None]
    slices = np.zeros(values.shape + (4,))
    value = values * scale * weights * inside * once
    slices[..., 0], slices[..., 1] = value.real, value.imag
    slices[..., 2] = scale**2 * weights * once
    return slices


def insert_trilinear(accumulator, slices, matrices, images):
    """Add images to `accumulator` (float64, in place), each sample to its eight neighbours.

    Parameters
    ----------
    images : (m,) integer array
        Which of the slices to add.
    """
    for image in images:
        ky, kx, re, im, weight = _samples(slices[image])
        used = weight != 0
        for matrix in np.asarray(matrices[image], dtype=np.float64):
            position = matrix[0] * kx[used][:, None] + matrix[1] * ky[used][:, None]
            conjugate = position[:, 0] < 0
            position = np.where(conjugate[:, None], -position, position)
            record = np.stack([re[used], np.where(conjugate, -im[used], im[used]), weight[used]], axis=1)
            base = np.floor(position).astype(int)
            fraction = position - base
            for corner in np.ndindex(2, 2, 2):
                part = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)
                _add(accumulator, base + np.array(corner), record * part[:, None])


def insert_blob(accumulator, slices, matrices, images, table, radius):
    """Add images to `accumulator`, each sample to the voxels within `radius` of it.

    Parameters
    ----------
    table : (t,) float32 array
        Kernel at squared distances from 0 to ``radius**2``, looked up at the nearest entry.
    radius : float
        px; the volume is filled up to ``columns + radius``.
    """
    reach = int(np.ceil(radius))
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    centre = accumulator.shape[0] // 2
    limit = (slices.shape[2] + radius) ** 2
    for image in images:
        ky, kx, re, im, weight = _samples(slices[image])
        for matrix in np.asarray(matrices[image], dtype=np.float64):
            position = matrix[0] * kx[:, None] + matrix[1] * ky[:, None]
            base = np.floor(position).astype(int)
            for offset in offsets:
                voxel = base + offset
                squares = ((voxel - position) ** 2).sum(axis=1)
                used = (squares <= radius**2) & ((voxel**2).sum(axis=1) <= limit)
                used &= (np.abs(voxel) <= centre).all(axis=1)
                kernel = table[np.rint(squares[used] * (len(table) - 1) / radius**2).astype(int)]
                conjugate = voxel[used, 0] < 0
                record = np.stack([re[used], np.where(conjugate, -im[used], im[used]), weight[used]], axis=1)
                voxel = np.where(conjugate[:, None], -voxel[used], voxel[used])
                _add(accumulator, voxel, record * kernel[:, None].astype(np.float64))


def insert_nearest(accumulator, slices, matrices, images):
    """Add images to `accumulator`, each voxel nearest to the image's plane taking the nearest sample.

    The plane is walked along the two volume axes that are closest to it, so that every such column gets one voxel.
    """
    centre = accumulator.shape[0] // 2
    rows, columns = slices.shape[1:3]
    grid = np.stack(np.meshgrid(*[np.arange(-centre, centre + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    for image in images:
        for matrix in np.asarray(matrices[image], dtype=np.float64):
            normal = matrix[2]
            axis = int(np.argmax(np.abs(normal)))
            others = [a for a in range(3) if a != axis]
            voxel = np.zeros((len(grid), 3), dtype=int)
            voxel[:, others] = grid
            voxel[:, axis] = np.floor(-(grid @ normal[others]) / normal[axis] + 0.5)
            local = voxel @ matrix.T
            used = (np.abs(voxel[:, axis]) <= centre) & (local[:, 0] >= 0)
            used &= (voxel**2).sum(axis=1) <= columns**2
            voxel, local = voxel[used], local[used]
            kx = np.clip(np.floor(local[:, 0] + 0.5).astype(int), 0, columns - 1)
            row = np.clip(np.floor(local[:, 1] + 0.5).astype(int) + rows // 2, 0, rows - 1)
            record = np.asarray(slices[image][row, kx, :3], dtype=np.float64)
            conjugate = voxel[:, 0] < 0
            record[:, 1] = np.where(conjugate, -record[:, 1], record[:, 1])
            _add(accumulator, np.where(conjugate[:, None], -voxel, voxel), record)


def _samples(records):
    rows, columns = records.shape[:2]
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    records = records.reshape(-1, 4).astype(np.float64)
    return ky.ravel(), kx.ravel(), records[:, 0], records[:, 1], records[:, 2]


def _add(accumulator, voxel, record):
    centre = accumulator.shape[0] // 2
    np.add.at(accumulator[..., :3], (voxel[:, 2] + centre, voxel[:, 1] + centre, voxel[:, 0]), record)
