"""Spreading of the samples' weights alone, in float64 NumPy: the oracle of the other twins.

Layouts are those of :mod:`xmipp_accel.kernels.reference.insert`, but the sums hold one number a voxel: shape
(2 c + 1, 2 c + 1, c + 1). Weights are even, so what falls on ``kx < 0`` goes to the opposite voxel unchanged; the
plane ``kx = 0`` is completed at the end of all insertions.
"""

from __future__ import annotations

import numpy as np


def insert_weights(sums, first, slices, matrices, curvature, images, table, radius):
    """Add the weights of images to `sums` (float64, in place), each to the voxels within `radius` of its sample.

    Sample (ky, kx) lies at ``a kx + b ky + n c (kx^2 + ky^2)``; rows a, b, n of `matrices` carry the scale of the
    grid, and need be neither orthogonal nor of one length.

    Parameters
    ----------
    first : int
        Plane of the whole grid at which `sums` begin; what falls on planes that they lack is dropped.
    curvature : (n,) array
        c of each image; 0 is a plane.
    images : (m,) integer array
        Which of the slices to add.
    table : (t,) float32 array
        Kernel at squared distances from 0 to ``radius**2``, looked up at the nearest entry.
    radius : float
        Voxels of `sums`. What reaches beyond its edge is dropped.
    """
    reach = int(np.ceil(radius))
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    planes, centre = len(sums), sums.shape[1] // 2
    rows, columns = slices.shape[1:3]
    ky, kx = np.meshgrid(np.arange(rows) - rows // 2, np.arange(columns), indexing="ij")
    steps = np.stack([kx, ky, kx**2 + ky**2], axis=-1).reshape(-1, 3).astype(np.float64)
    for image in images:
        weight = slices[image, ..., 2].ravel().astype(np.float64)
        for matrix in np.asarray(matrices[image], dtype=np.float64):
            position = steps * [1.0, 1.0, curvature[image]] @ matrix
            for offset in offsets:
                voxel = np.floor(position).astype(int) + offset
                squares = ((voxel - position) ** 2).sum(axis=1)
                used = (squares <= radius**2) & (np.abs(voxel) <= centre).all(axis=1)
                kernel = table[np.rint(squares[used] * (len(table) - 1) / radius**2).astype(int)]
                x, y, z = np.where(voxel[used, :1] < 0, -voxel[used], voxel[used]).T
                plane, added = z + centre - first, weight[used] * kernel.astype(np.float64)
                here = (plane >= 0) & (plane < planes)
                np.add.at(sums, (plane[here], y[here] + centre, x[here]), added[here])
