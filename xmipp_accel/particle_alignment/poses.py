"""Poses of particles relative to references, as numbers, as matrices, and applied to images.

A pose (psi, shift_x, shift_y, flip) maps a pixel ``u`` of the particle, counted from the centre, to the reference:

    u_reference = Rz(psi)^T (F u + s),  Rz(psi) = [[cos, sin], [-sin, cos]],  F = diag(-1, 1) if flip else 1.

This is Xmipp's and RELION's projection convention: mirror, shift, turn.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module
from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler

_ROUNDING = 1e-4  # px


def align2d_matrix(psi, shift_x, shift_y, flip=False) -> np.ndarray:
    """Scipion's ALIGN_2D transform of a pose: (4, 4) float64, from particle to reference.

    Parameters
    ----------
    psi : float
        Degrees.
    shift_x, shift_y : float
        Px.
    flip : bool
        Marked by -1 in the z diagonal, as Scipion does.
    """
    c, s = np.cos(np.deg2rad(psi)), np.sin(np.deg2rad(psi))
    back = np.array([[c, -s], [s, c]])
    matrix = np.eye(4)
    matrix[:2, :2] = back @ np.diag([-1.0 if flip else 1.0, 1.0])
    matrix[:2, 3] = back @ [shift_x, shift_y]
    matrix[2, 2] = -1.0 if flip else 1.0
    return matrix


def opposite_view(rot, tilt, psi):
    """Angles of the view that mirrors, along x, the projection at (rot, tilt, psi = 0), and is then turned by psi.

    Parameters
    ----------
    rot, tilt, psi : (n,) arrays
        Degrees.

    Returns
    -------
    rot, tilt, psi : (n,) float64 arrays
        Degrees; tilt in [0, 180].
    """
    return matrix_to_euler(euler_to_matrix(rot, np.asarray(tilt) + 180.0, psi))


def apply_poses(images, psi, shift_x, shift_y, flip=None, margin=_ROUNDING):
    """Bring particles onto their references by linear interpolation.

    What comes from beyond the centres of the outermost pixels is 0.

    Parameters
    ----------
    images : (n, N, N) float32 or float64 array
        NumPy or CuPy; the work is done in its precision.
    psi, shift_x, shift_y, flip : (n,) NumPy arrays
        Degrees, px, px, bool.
    margin : float
        Px beyond the centres of the last row and column that still count as these centres, for the sake of
        rounding; if negative, the last row and column are 0 themselves.

    Returns
    -------
    (n, N, N) array of the same type
    """
    xp = array_module(images)
    n, box, real = len(images), images.shape[-1], images.dtype
    flip = np.zeros(n, bool) if flip is None else flip
    column = [xp.asarray(np.asarray(v, dtype=real))[:, None, None] for v in (psi, shift_x, shift_y)]
    sign = xp.asarray(np.where(flip, -1.0, 1.0).astype(real))[:, None, None]
    axis = xp.arange(box, dtype=real) - box // 2
    cosine, sine = xp.cos(xp.deg2rad(column[0])), xp.sin(xp.deg2rad(column[0]))
    y, x = axis[:, None], axis[None, :]
    source_x = sign * (cosine * x + sine * y - column[1]) + box // 2
    source_y = cosine * y - sine * x - column[2] + box // 2
    last = box - 1
    inside = (source_x >= -abs(margin)) & (source_x <= last + margin)
    inside &= (source_y >= -abs(margin)) & (source_y <= last + margin)
    left, top = xp.floor(source_x), xp.floor(source_y)
    part_x, part_y = source_x - left, source_y - top
    left, top = left.astype(np.int64), top.astype(np.int64)
    result = xp.zeros(images.shape, dtype=real)
    number = xp.arange(n)[:, None, None]
    for dy, weight_y in ((0, 1 - part_y), (1, part_y)):
        for dx, weight_x in ((0, 1 - part_x), (1, part_x)):
            values = images[number, xp.clip(top + dy, 0, last), xp.clip(left + dx, 0, last)]
            result += (values * weight_y * weight_x).astype(real)
    return xp.where(inside, result, 0).astype(real)
