"""Angles between directions, for the tests of grids and of poses."""

import numpy as np


def angular_distance(directions, others, matrices=None):
    """Degrees (n, m) between unit vectors (n, 3) and (m, 3), the smallest over a symmetry group (g, 3, 3)."""
    cosine = np.full((len(directions), len(others)), -1.0)
    for matrix in np.eye(3)[None] if matrices is None else matrices:
        np.maximum(cosine, directions @ matrix @ np.transpose(others), out=cosine)
    return np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0)))
