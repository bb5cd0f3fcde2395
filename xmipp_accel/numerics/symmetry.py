"""Point groups by name, in Xmipp's axis conventions.

Generators as in Xmipp's symmetry tables (Sorzano et al. 2007, "Normalizing projection images" appendix, and the
3DEM symmetry conventions): ``cn`` has its axis on z; ``dn`` also a 2-fold on x; ``t`` a 3-fold on z (not the
"222" setting that other programs call T); ``o`` 4-folds on x, y, z. The icosahedral settings are ``i1`` (2-folds
on the axes, 5-folds in xz nearer to x), ``i2`` (2-folds on the axes, 5-folds in xz nearer to z), ``i3`` (5-fold
on z, next vertex towards -x) and ``i4`` (5-fold on z, next vertex towards +x).
"""

from __future__ import annotations

import functools
import re

import numpy as np
from scipy.spatial.transform import Rotation

from xmipp_accel.errors import ParameterError

_GOLDEN = (1 + np.sqrt(5)) / 2
_S, _C = 1 / np.hypot(1, _GOLDEN), _GOLDEN / np.hypot(1, _GOLDEN)  # sine, cosine of half the vertex angle
_TAN = 2.0 * _S * _C, _C * _C - _S * _S  # sine, cosine of the whole one, 63.435 degrees

_GENERATORS = {
    "t": ((3, (0, 0, 1)), (2, (0, np.sqrt(2 / 3), np.sqrt(1 / 3)))),
    "o": ((3, (1, 1, 1)), (4, (0, 0, 1))),
    "i1": ((2, (1, 0, 0)), (2, (0, 0, 1)), (5, (_C, 0, -_S))),
    "i2": ((2, (0, 0, 1)), (2, (1, 0, 0)), (5, (_S, 0, _C))),
    "i3": ((2, (-_S, 0, _C)), (5, (0, 0, 1)), (5, (-_TAN[0], 0, _TAN[1]))),
    "i4": ((2, (_S, 0, _C)), (5, (0, 0, 1)), (5, (_TAN[0], 0, _TAN[1]))),
}


def symmetry_matrices(name: str) -> np.ndarray:
    """Rotations of a point group.

    Parameters
    ----------
    name : str
        ``c1``, ``cn``, ``dn``, ``t``, ``o``, ``i1`` to ``i4``; case is ignored. A bare ``i`` is refused: Xmipp and
        RELION mean ``i2`` by it, other programs ``i1``.

    Returns
    -------
    (g, 3, 3) float64 array
        The identity first. Each matrix acts on volume coordinates (x, y, z); the set is closed, so it holds its
        inverses.

    Raises
    ------
    ParameterError
        Any other name, such as a group with mirrors, which no molecule has.
    """
    return _matrices(normalize_symmetry(name)).copy()


def normalize_symmetry(name: str) -> str:
    """Lower-case canonical name of a group, or `ParameterError`."""
    text = str(name).strip().lower()
    match = re.fullmatch(r"([cd])0*([1-9]\d{0,3})", text)
    if match:
        return match.group(1) + match.group(2)
    if text in _GENERATORS:
        return text
    raise ParameterError(f"symmetry: expected c1, cn, dn, t, o, i1, i2, i3 or i4, found {name!r}")


@functools.cache
def _matrices(name):
    if name[0] not in "cd":
        return _closure([_turn(fold, axis) for fold, axis in _GENERATORS[name]])
    order = int(name[1:])
    angles = np.arange(order) * (360.0 / order)
    cyclic = Rotation.from_euler("z", angles[:, None], degrees=True).as_matrix()
    cyclic[0] = np.eye(3)
    if name[0] == "c":
        return cyclic
    return np.concatenate([cyclic, cyclic @ np.diag([1.0, -1.0, -1.0])])


def _turn(fold, axis):
    axis = np.asarray(axis, dtype=np.float64)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * (2 * np.pi / fold)).as_matrix()


def _closure(generators):
    """All products of the generators; the groups here have at most 60 elements."""
    group = [np.eye(3)]
    for element in group:  # the list grows while it is walked
        for generator in generators:
            product = element @ generator
            if all(np.abs(product - known).max() > 1e-6 for known in group):
                group.append(product)
        if len(group) > 60:
            raise ParameterError("symmetry: the generators do not close on a point group")
    return np.array(group)


def angular_distance(directions, others, matrices=None) -> np.ndarray:
    """Angles between directions, smallest over the group.

    Parameters
    ----------
    directions : (n, 3) array_like
    others : (m, 3) array_like
        Unit vectors.
    matrices : (g, 3, 3) array_like, optional
        Symmetry group; none means C1.

    Returns
    -------
    (n, m) float64 array
        Degrees.
    """
    a, b = np.asarray(directions, dtype=np.float64), np.asarray(others, dtype=np.float64)
    group = np.eye(3)[None] if matrices is None else np.asarray(matrices, dtype=np.float64)
    cosine = np.full((len(a), len(b)), -1.0)
    for matrix in group:
        np.maximum(cosine, a @ (b @ matrix.T).T, out=cosine)
    return np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0)))
