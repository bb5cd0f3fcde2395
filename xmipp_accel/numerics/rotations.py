"""Euler angles and rotation matrices in the convention of Xmipp and RELION.

``A(rot, tilt, psi)`` turns volume coordinates into image coordinates: its rows are the image's x axis, its y axis
and the viewing direction, written in the volume's (x, y, z). It is the transpose of SciPy's ``ZYZ`` matrix.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def euler_to_matrix(rot, tilt, psi) -> np.ndarray:
    """Matrices ``A`` of Euler angles.

    Parameters
    ----------
    rot, tilt, psi : float or (n,) array_like
        ZYZ angles in degrees.

    Returns
    -------
    (3, 3) or (n, 3, 3) float64 array
    """
    # Written out, since SciPy takes fifteen times as long.
    angles = np.deg2rad(np.stack(np.broadcast_arrays(rot, tilt, psi)).astype(np.float64))
    (cr, ct, cp), (sr, st, sp) = np.cos(angles), np.sin(angles)
    rows = (
        (cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * st),
        (-sp * ct * cr - cp * sr, cp * cr - sp * ct * sr, sp * st),
        (st * cr, st * sr, ct),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler(matrices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles (rot, tilt, psi) in degrees of matrices ``A``; tilt lies in [0, 180], and psi is 0 at the poles.

    Parameters
    ----------
    matrices : (..., 3, 3) array_like
    """
    a = np.asarray(matrices, dtype=np.float64)
    sine = np.hypot(a[..., 2, 0], a[..., 2, 1])
    tilt = np.arctan2(sine, a[..., 2, 2])
    pole = sine < 1e-9
    rot = np.where(pole, np.arctan2(a[..., 0, 1], a[..., 0, 0]) * 1.0, np.arctan2(a[..., 2, 1], a[..., 2, 0]))
    # At tilt 180 the first row is (-cos(rot), -sin(rot)) for psi = 0.
    rot = np.where(pole & (a[..., 2, 2] < 0), np.arctan2(-a[..., 0, 1], -a[..., 0, 0]), rot)
    psi = np.where(pole, 0.0, np.arctan2(a[..., 1, 2], -a[..., 0, 2]))
    return np.rad2deg(rot), np.rad2deg(tilt), np.rad2deg(psi)


def viewing_directions(rot, tilt) -> np.ndarray:
    """Unit vectors (..., 3) in volume (x, y, z) along which the projections were taken; angles in degrees."""
    rot, tilt = np.deg2rad(rot), np.deg2rad(tilt)
    return np.stack(
        np.broadcast_arrays(np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)), axis=-1
    )


def random_matrices(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rotation matrices (count, 3, 3), uniform over the rotation group."""
    quaternions = rng.normal(size=(count, 4))
    return Rotation.from_quat(quaternions).as_matrix()
