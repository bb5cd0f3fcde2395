"""Cubic B-splines on regular control points, with the basis of Xmipp's FlexAlign.

``n`` control points cover ``[0, length]`` with knot spacing ``h = length / (n - 3)``; control point ``i`` of
``0 .. n - 1`` sits at ``(i - 1) h``, so that one of them lies outside at either end.
"""

from __future__ import annotations

import numpy as np


def cubic_bspline(u):
    """Value of the centred cubic B-spline at `u`, in knot spacings."""
    u = np.abs(np.asarray(u, dtype=np.float64))
    inner = 2.0 / 3.0 - u * u + 0.5 * u * u * u
    outer = np.clip(2.0 - u, 0.0, None) ** 3 / 6.0
    return np.where(u < 1.0, inner, outer)


def basis_matrix(positions, length, n_control):
    """Basis functions at `positions`.

    Parameters
    ----------
    positions : array_like, shape (m,)
        Within ``[0, length]``.
    length : float
        Extent that the control points cover.
    n_control : int
        At least 4.

    Returns
    -------
    ndarray of float64, shape (m, n_control)
        Rows sum to one.
    """
    if n_control < 4:
        raise ValueError(f"a cubic B-spline needs 4 control points, found {n_control}")
    spacing = length / (n_control - 3)
    positions = np.asarray(positions, dtype=np.float64)
    return cubic_bspline(positions[:, None] / spacing - (np.arange(n_control) - 1))


def second_differences(n):
    """Return the (n - 2, n) operator of second differences, which vanish for straight lines."""
    return np.diff(np.eye(n), 2, axis=0)


def evaluate(control_points, t, y, x, lengths):
    """Evaluate a vector field given by cubic B-splines at scattered points.

    Parameters
    ----------
    control_points : array_like, shape (nt, ny, nx, 2)
    t, y, x : array_like
        Broadcast against each other.
    lengths : (float, float, float)
        Extents in t, y and x.

    Returns
    -------
    ndarray of float64, shape broadcast + (2,)
    """
    control_points = np.asarray(control_points, dtype=np.float64)
    t, y, x = np.broadcast_arrays(t, y, x)
    bases = [
        basis_matrix(p.ravel(), length, n) for p, length, n in zip((t, y, x), lengths, control_points.shape[:3])
    ]
    partial = np.einsum("pi,ijkc->pjkc", bases[0], control_points, optimize=True)
    partial = np.einsum("pj,pjkc->pkc", bases[1], partial, optimize=True)
    values = np.einsum("pk,pkc->pc", bases[2], partial, optimize=True)
    return values.reshape((*t.shape, 2))


def evaluate_grid(control_points, t, y, x, lengths):
    """Evaluate the field on the grid of one-dimensional `t`, `y` and `x`; shape (len(t), len(y), len(x), 2)."""
    values = np.asarray(control_points, dtype=np.float64)
    nt, ny, nx, components = values.shape
    in_t, in_y, in_x = (basis_matrix(p, length, n) for p, length, n in zip((t, y, x), lengths, (nt, ny, nx)))
    planes = (in_t @ values.reshape(nt, -1)).reshape(-1, ny, nx * components)
    return in_x @ (in_y @ planes).reshape(len(in_t), len(in_y), nx, components)


def evaluate_frames(control_points, t, y, x, lengths):
    """Evaluate the field at the scattered points of `y` and `x` (m,) for each of `t` (n,); shape (n, m, 2)."""
    control_points = np.asarray(control_points, dtype=np.float64)
    in_time, in_y, in_x = (
        basis_matrix(p, length, n) for p, length, n in zip((t, y, x), lengths, control_points.shape[:3])
    )
    planes = np.einsum("ai,ijkc->ajkc", in_time, control_points)
    return np.stack([np.einsum("pj,pk,jkc->pc", in_y, in_x, plane, optimize=True) for plane in planes])
