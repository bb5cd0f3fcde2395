"""The matrices by which Scipion's sets tell poses, ``pwem.objects.Transform``.

They follow Xmipp's plugin (specification: align_significant.md 4.2): ALIGN_2D stores ``[F Rz(psi) | s]`` directly,
with F the mirror of x; ALIGN_PROJ the inverse of ``[A | -s]``.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.errors import ProcessingError
from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler


def projection_transform(rot, tilt, psi, shift_x, shift_y, flip=False) -> np.ndarray:
    """Matrices that Scipion stores for a projection alignment.

    Parameters
    ----------
    rot, tilt, psi : (n,) array_like
        Degrees.
    shift_x, shift_y : (n,) array_like
        Translation to apply to the image, px.
    flip : (n,) array_like of bool
        Mirrored images become the projection from the other side, since a determinant of -1 is not allowed.

    Returns
    -------
    (n, 4, 4) float64 array
        ``[A^T | A^T s]``, the inverse of ``[A | -s]``.
    """
    rot, tilt, psi, sx, sy = (np.atleast_1d(np.asarray(v, np.float64)) for v in (rot, tilt, psi, shift_x, shift_y))
    flip = np.broadcast_to(np.asarray(flip, bool), rot.shape)
    tilt, psi, sx = np.where(flip, tilt + 180, tilt), np.where(flip, -psi, psi), np.where(flip, -sx, sx)
    inverse = np.swapaxes(euler_to_matrix(rot, tilt, psi), -1, -2)
    matrices = np.tile(np.eye(4), (len(rot), 1, 1))
    matrices[:, :3, :3] = inverse
    matrices[:, :3, 3] = np.einsum("nij,nj->ni", inverse, np.stack([sx, sy, np.zeros_like(sx)], axis=-1))
    return matrices


def projection_pose(matrices) -> tuple[np.ndarray, ...]:
    """Inverse of :func:`projection_transform`: (rot, tilt, psi, shift_x, shift_y), each (n,).

    Raises
    ------
    ProcessingError
        A matrix mirrors the image, which Scipion does not allow.
    """
    matrices = np.asarray(matrices, np.float64)
    rotations = np.swapaxes(matrices[:, :3, :3], -1, -2)
    if np.any(np.linalg.det(rotations) < 0):
        raise ProcessingError("projection alignment: expected rotations, found a matrix with a mirror")
    shifts = np.einsum("nij,nj->ni", rotations, matrices[:, :3, 3])
    return (*matrix_to_euler(rotations), shifts[:, 0], shifts[:, 1])


def planar_transform(psi, shift_x, shift_y, flip=False) -> np.ndarray:
    """Matrices (n, 4, 4) that Scipion stores for a 2D alignment: turn, mirror x, then shift.

    Parameters
    ----------
    psi, shift_x, shift_y : (n,) array_like
        Degrees; px in the frame of the average. This order differs from that of projections.
    flip : (n,) array_like of bool
    """
    psi = np.deg2rad(np.atleast_1d(np.asarray(psi, np.float64)))
    matrices = np.tile(np.eye(4), (len(psi), 1, 1))
    cos, sin = np.cos(psi), np.sin(psi)
    matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1] = cos, sin, -sin, cos
    matrices[:, 0, 3], matrices[:, 1, 3] = shift_x, shift_y
    sign = np.where(np.broadcast_to(np.asarray(flip, bool), psi.shape), -1.0, 1.0)
    matrices[:, 0, :2] *= sign[:, None]
    matrices[:, 2, 2] = sign
    return matrices


def planar_pose(matrices) -> tuple[np.ndarray, ...]:
    """Inverse of :func:`planar_transform`: (psi, shift_x, shift_y, flip), each (n,)."""
    matrices = np.asarray(matrices, np.float64)
    flip = np.linalg.det(matrices[:, :2, :2]) < 0
    return (
        np.rad2deg(np.arctan2(-matrices[:, 1, 0], matrices[:, 1, 1])),
        matrices[:, 0, 3],
        matrices[:, 1, 3],
        flip,
    )
