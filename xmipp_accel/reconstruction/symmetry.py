"""Symmetry at the cost of few insertions.

Some operators of a group map the voxel grid onto itself (signed permutations of the axes). Every group is the
union of cosets ``H t`` of that subgroup ``H``: the images are inserted once for each ``t``, and ``H`` is applied
to the accumulated sums by moving voxels, which is exact.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module

_PARTS = ((0, 1), (1, -1), (2, 1))  # of a record, and what they are multiplied by at the opposite frequency


def factorise(matrices) -> tuple[np.ndarray, np.ndarray]:
    """Split a group into grid-preserving operators and coset representatives.

    Parameters
    ----------
    matrices : (g, 3, 3) array_like
        A closed group, identity first.

    Returns
    -------
    permutations : (h, 3, 3) int64 array
    representatives : (g / h, 3, 3) float64 array
        ``permutations[i] @ representatives[j]`` runs through the group once.
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    rounded = np.rint(matrices)
    on_grid = np.abs(matrices - rounded).max(axis=(1, 2)) < 1e-6
    permutations = rounded[on_grid].astype(np.int64)
    covered = np.zeros(len(matrices), dtype=bool)
    representatives = []
    for number, matrix in enumerate(matrices):
        if covered[number]:
            continue
        representatives.append(matrix)
        for permutation in permutations:
            covered |= np.abs(matrices - permutation @ matrix).max(axis=(1, 2)) < 1e-6
    return permutations, np.array(representatives)


def complete_plane(accumulator):
    """Join the two parts of every pair of opposite samples in the plane ``kx = 0``, in place."""
    for part, sign in _PARTS:
        _complete(accumulator[..., part], sign)


def apply_permutations(accumulator, permutations):
    """Sum an accumulator over grid-preserving operators.

    Parameters
    ----------
    accumulator : (2 c + 1, 2 c + 1, c + 1, 4) float32 array
        With its plane ``kx = 0`` completed.
    permutations : (h, 3, 3) int64 array
        They act on (x, y, z).

    Returns
    -------
    array like `accumulator`; the same one for the identity alone.
    """
    if len(permutations) == 1:
        return accumulator
    total = array_module(accumulator).zeros_like(accumulator)
    for part, sign in _PARTS:
        _permute(accumulator[..., part], sign, permutations, total[..., part])
    return total


def join_weights(weights, permutations):
    """As :func:`complete_plane` and :func:`apply_permutations`, for weights (2 c + 1, 2 c + 1, c + 1) alone."""
    _complete(weights, 1)
    if len(permutations) == 1:
        return weights
    total = array_module(weights).zeros_like(weights)
    _permute(weights, 1, permutations, total)
    return total


def _complete(half, sign):
    half[:, :, 0] += sign * half[::-1, ::-1, 0]


def _permute(half, sign, permutations, total):
    """Add to `total` what the operators make of a half grid whose other side is `sign` times its mirror image."""
    full = array_module(half).concatenate([sign * half[::-1, ::-1, :0:-1], half], axis=2)
    for permutation in permutations:
        total += _moved(full, permutation)[:, :, half.shape[2] - 1 :]


def _moved(full, permutation):
    """View of a full grid (z, y, x) whose value at ``q`` is the old one at ``permutation.T @ q``."""
    on_axes = permutation[::-1, ::-1]  # from (x, y, z) to array order
    source = [int(np.flatnonzero(row)[0]) for row in on_axes]
    moved = full.transpose(source)
    flips = tuple(slice(None, None, int(row.sum())) for row in on_axes)
    return moved[flips]
