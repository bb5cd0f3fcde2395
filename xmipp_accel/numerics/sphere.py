"""Nearly uniform directions on the sphere, and one representative of each under a point group."""

from __future__ import annotations

import numpy as np

from xmipp_accel.numerics.rotations import viewing_directions

_VERTEX_ANGLE = np.arctan(2.0)  # between neighbouring vertices of an icosahedron, 63.435 degrees
_EDGE_SLACK = 1e-9


def geodesic_directions(step) -> np.ndarray:
    """Icosahedral grid of Baumgardner and Frederickson (1985), as Xmipp's projection library uses it.

    Parameters
    ----------
    step : float
        Wanted distance of neighbours, degrees; the 20 faces are divided into ``m = round(63.435 / step)`` rows.

    Returns
    -------
    (10 m^2 + 2, 3) float64 array
        Unit vectors; two of them are the poles.
    """
    rows = max(1, round(float(np.rad2deg(_VERTEX_ANGLE)) / step))
    points = np.concatenate([_fill_face(face, rows) for face in _faces()])
    _, first = np.unique(np.round(points, 6) + 0.0, axis=0, return_index=True)
    return points[np.sort(first)]


def _faces():
    north, south = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])
    tilt = np.rad2deg(_VERTEX_ANGLE)
    upper = viewing_directions(np.arange(5) * 72.0 + 36.0, tilt)
    lower = viewing_directions(np.arange(5) * 72.0 + 72.0, 180.0 - tilt)
    faces = []
    for i in range(5):
        j = (i + 1) % 5
        faces.append((north, upper[i], upper[j]))
        faces.append((lower[i], upper[i], upper[j]))
        faces.append((upper[j], lower[i], lower[j]))
        faces.append((south, lower[i], lower[j]))
    return faces


def _fill_face(face, rows):
    apex, left, right = face
    points = [apex[None]]
    for row in range(1, rows + 1):
        start, stop = _slerp(apex, left, row / rows), _slerp(apex, right, row / rows)
        points.append(_slerp(start[0], stop[0], np.arange(row + 1) / row))
    return np.concatenate(points)


def _slerp(start, stop, fraction):
    angle = np.arccos(np.clip(start @ stop, -1.0, 1.0))
    fraction = np.atleast_1d(fraction)[:, None]
    return (np.sin((1 - fraction) * angle) * start + np.sin(fraction * angle) * stop) / np.sin(angle)


def asymmetric_unit(directions, matrices) -> np.ndarray:
    """Mask (n,) bool of the directions that lie in one Dirichlet domain of a point group.

    A direction is kept if, of all copies of a generic seed, the seed itself is the nearest; thus exactly one
    direction of each orbit is kept, whatever the axes' setting.

    Parameters
    ----------
    directions : (n, 3) array_like
    matrices : (g, 3, 3) array_like
        The identity first.
    """
    directions = np.asarray(directions, dtype=np.float64)
    seed = viewing_directions(23.0, 17.0)
    closeness = directions @ (np.asarray(matrices) @ seed).T
    return closeness[:, 0] >= closeness.max(axis=1) - _EDGE_SLACK


def perturb_directions(directions, deviation, rng):
    """Displace directions at random.

    Parameters
    ----------
    directions : (n, 3) array
        Unit vectors.
    deviation : float
        Standard deviation of the displacement along each of the two ways to go, degrees.
    rng : numpy.random.Generator

    Returns
    -------
    (n, 3) float64 array
        Unit vectors.
    """
    moved = directions + np.deg2rad(deviation) * rng.standard_normal(np.shape(directions))
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def projection_directions(step, matrices, min_tilt=0.0, max_tilt=180.0, perturb=0.0, seed=0):
    """Directions of a gallery: the geodesic grid, one of each orbit, within tilt limits.

    An orbit is left out only if none of its members lies within the limits; otherwise a member that does stands
    for it.

    Parameters
    ----------
    step : float
        Degrees.
    matrices : (g, 3, 3) array_like
        Rotations between directions of equal projections (`numerics.symmetry.view_symmetry`).
    min_tilt, max_tilt : float
        Degrees, inclusive.
    perturb, seed
        As for `perturb_directions`; 0 leaves the grid as it is. The limits are those of the perturbed directions.

    Returns
    -------
    rot, tilt : (n,) float64 arrays
        Degrees, rot in (-180, 180].
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    directions = geodesic_directions(step)
    if perturb:
        directions = perturb_directions(directions, perturb, np.random.default_rng(seed))
    directions = directions[asymmetric_unit(directions, matrices)]
    copies = np.einsum("gij,nj->ngi", matrices, directions)
    tilts = np.rad2deg(np.arccos(np.clip(copies[..., 2], -1.0, 1.0)))
    inside = (tilts >= min_tilt - 1e-6) & (tilts <= max_tilt + 1e-6)
    chosen = copies[np.arange(len(copies)), inside.argmax(axis=1)][inside.any(axis=1)]
    tilt = np.arctan2(np.hypot(chosen[:, 0], chosen[:, 1]), chosen[:, 2])
    rot = np.where(tilt % np.pi > 1e-9, np.arctan2(chosen[:, 1], chosen[:, 0]), 0.0)
    return np.rad2deg(rot) + 0.0, np.rad2deg(tilt)
