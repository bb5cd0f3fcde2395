"""A smooth model of local motion: a penalised cubic B-spline whose stiffness the data choose."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from xmipp_accel.backend import array_module, solve_positive, to_host
from xmipp_accel.numerics import bspline

# Prior standard deviation (px) of the control points' second differences, in space and in time.
STIFFNESSES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 5
AMPLITUDE = 30.0


@dataclasses.dataclass(frozen=True)
class Stiffness:
    """Expected size (px) of the control points' second differences in space and in time; small is stiff."""

    space: float = 0.3
    time: float = 0.3


class LocalModel:
    """Local motion relative to the whole frame's, over (t, y, x).

    Parameters
    ----------
    n_control : (int, int, int)
        Control points in t, y and x.
    lengths : (float, float, float)
        What they cover: frames, height and width.
    positions : ndarray, shape (p, 2)
        Centres (y, x) of the patches.
    edges : (float, float)
        Of the patches. What is measured in one is the motion's mean under its window.
    times : ndarray, shape (g,)
        Of the measurements, in frames.
    xp : module
        `numpy` or `cupy`, where measurements and control points are.
    """

    def __init__(self, n_control, lengths, positions, edges, times, xp=np):
        self.xp, self.n_control = xp, tuple(n_control)
        self.n_times, self.n_patches = len(times), len(positions)
        basis_y, basis_x = (
            _windowed_basis(positions[:, a], edges[a], lengths[a + 1], n_control[a + 1]) for a in (0, 1)
        )
        self.in_time = xp.asarray(bspline.basis_matrix(times, lengths[0], n_control[0]))
        self.in_space = xp.asarray(np.einsum("pj,pk->pjk", basis_y, basis_x).reshape(self.n_patches, -1))
        self._mean = self.in_space.mean(axis=0)
        self._space, self._time = (xp.asarray(matrix) for matrix in _penalties(self.n_control))

    def _penalty(self, stiffness):
        ridge = self.xp.eye(len(self._space)) / AMPLITUDE**2
        return self._space / stiffness.space**2 + self._time / stiffness.time**2 + ridge

    def _normal(self, values, information, folds):
        """Normal equations (2, folds, m, m) and (2, folds, m), with the groups' common shifts eliminated.

        `folds` (folds, group) holds 1 for the groups of each fold and 0 for the others.

        Since a basis function is a product of one in time and one in space, so is each group's part of the matrix.
        """
        xp, space = self.xp, self.in_space
        weight = xp.moveaxis(information, -1, 0).swapaxes(1, 2)  # (component, group, patch)
        values = xp.moveaxis(values, -1, 0).swapaxes(1, 2)
        total = xp.maximum(weight.sum(axis=2, keepdims=True), 1e-300)
        mean = weight @ space / total
        spatial = space.T @ (weight[..., None] * space) - total[..., None] * mean[..., None] * mean[..., None, :]
        right = (weight * values) @ space - (weight * values).sum(axis=2, keepdims=True) * mean
        n_t, n_s = self.in_time.shape[1], space.shape[1]
        times = self.in_time * xp.asarray(folds)[..., None]  # (fold, group, n_t), zero for the groups of others
        pairs = (times[..., :, None] * times[..., None, :]).reshape(len(folds), self.n_times, -1).swapaxes(1, 2)
        product = pairs @ spatial.reshape(2, 1, self.n_times, -1)
        matrices = product.reshape(2, len(folds), n_t, n_t, n_s, n_s).transpose(0, 1, 2, 4, 3, 5)
        rights = times.swapaxes(1, 2) @ right[:, None]
        size = n_t * n_s
        return matrices.reshape(2, len(folds), size, size), rights.reshape(2, len(folds), size)

    def fit(self, values, information, stiffness):
        """Fit the control points.

        Parameters
        ----------
        values : array, shape (p, g, 2)
            Translations of each patch and group; what all patches of a group share is not used.
        information : array, shape (p, g, 2)
            Inverse variances.
        stiffness : Stiffness

        Returns
        -------
        array, shape (nt, ny, nx, 2)
        """
        matrices, right = self._normal(values, information, np.ones((1, self.n_times)))
        points = solve_positive(matrices[:, 0] + self._penalty(stiffness), right[:, 0])
        return self._without_mean(points.T).reshape((*self.n_control, 2))

    def _without_mean(self, points):
        """Move nothing on average over the patches, at any time: that is left to the frames' own shifts."""
        points = points.reshape(self.n_control[0], -1, 2)
        return points - self.xp.einsum("j,tjc->tc", self._mean, points)[:, None]

    def predict(self, control_points):
        """Values (p, g, 2) at the patches."""
        points = control_points.reshape(self.n_control[0], -1, 2)
        return self.xp.einsum("gt,ps,tsc->pgc", self.in_time, self.in_space, points, optimize=True)

    def choose_stiffness(self, values, information, start):
        """Cross-validate over groups of frames, whose noise is independent; that of overlapping patches is not.

        From `start`, places two steps away in the table of stiffnesses are tried, then neighbours until none is
        better.

        Returns
        -------
        stiffness : Stiffness
        gain : float
            One minus the ratio of the prediction error of the best model to that of no local motion; positive when
            the local model predicts frames that it has not seen.
        """
        n_folds = min(FOLDS, self.n_times)
        folds = (np.arange(self.n_times) % FOLDS == np.arange(n_folds)[:, None]).astype(np.float64)
        matrices, right = self._normal(values, information, folds)
        kept = matrices.sum(axis=1, keepdims=True) - matrices, right.sum(axis=1, keepdims=True) - right
        best = start
        errors: dict[Stiffness, float] = {}
        step = 2
        while True:
            new = [trial for trial in _around(best, step) if trial not in errors]
            if new:
                errors.update(zip(new, self._held_out_errors(values, information, folds, *kept, new)))
            elif step == 1:
                break
            best, step = min(errors, key=errors.__getitem__), 1
        reference = float(_error(values, information))
        return best, 1.0 - errors[best] / reference if reference > 0 else 0.0

    def _held_out_errors(self, values, information, folds, matrices, right, stiffnesses):
        """Prediction error of each stiffness, over the groups that were left out of the fit."""
        xp = self.xp
        penalties = xp.stack([self._penalty(stiffness) for stiffness in stiffnesses])
        systems = matrices[None] + penalties[:, None, None]
        points = solve_positive(systems, xp.broadcast_to(right, systems.shape[:-1]))
        points = points.reshape(len(stiffnesses), 2, len(folds), self.n_control[0], -1)
        prediction = xp.empty((len(stiffnesses), *values.shape))
        for f in range(len(folds)):
            fold = slice(f, None, FOLDS)
            motion = self.in_time[fold] @ points[:, :, f] @ self.in_space.T
            prediction[:, :, fold] = motion.transpose(0, 3, 2, 1)
        return to_host(_error(values - prediction, information)).tolist()


def _around(stiffness, step):
    """The stiffness itself and those `step` places away in the table, in space, in time and in both."""
    sides = []
    for value in (stiffness.space, stiffness.time):
        place, last = STIFFNESSES.index(value), len(STIFFNESSES) - 1
        sides.append([STIFFNESSES[min(max(0, place + move), last)] for move in (-step, 0, step)])
    return dict.fromkeys(Stiffness(space, time) for space in sides[0] for time in sides[1])


@functools.lru_cache(maxsize=4)
def _penalties(n_control):
    """Roughness in space and in time of control points, as matrices over all of them."""
    nt, ny, nx = n_control
    bend = [bspline.second_differences(n) for n in n_control]
    slope = [np.diff(np.eye(n), axis=0) for n in n_control]
    square = [b.T @ b for b in bend]
    twist = np.kron(slope[1].T @ slope[1], slope[2].T @ slope[2])
    plate = np.kron(square[1], np.eye(nx)) + 2 * twist + np.kron(np.eye(ny), square[2])
    return np.kron(np.eye(nt), plate), np.kron(square[0], np.eye(ny * nx))


def centred(values, information):
    """Values (..., p, g, 2) less what all patches of a group share."""
    total = array_module(values).maximum(information.sum(axis=0), 1e-300)
    return values - (information * values).sum(axis=-3, keepdims=True) / total


def _error(residual, information):
    return (information * centred(residual, information) ** 2).sum(axis=(-3, -2, -1))


def _windowed_basis(centres, edge, length, n_control):
    """Means of the basis functions under Hann windows of this edge."""
    offsets = (np.arange(16) + 0.5) / 16
    window = np.sin(np.pi * offsets) ** 2
    centres, places = np.unique(centres, return_inverse=True)  # patches lie on a grid
    positions = centres[:, None] + (offsets - 0.5) * edge
    basis = bspline.basis_matrix(np.clip(positions, 0, length).ravel(), length, n_control)
    means = np.einsum("k,pkn->pn", window / window.sum(), basis.reshape(*positions.shape, n_control))
    return means[places]


def robust_factors(residuals, information):
    """Weights (p, g) from 0 to 1 that discount patches whose residual is out of proportion to the others'."""
    xp = array_module(residuals)
    chi = xp.sqrt((information * residuals**2).sum(axis=-1))
    used = information.sum(axis=-1) > 0
    scale = xp.median(chi[used]) / 1.1774 if bool(used.any()) else 1.0
    return xp.minimum(1.0, 3.0 * scale / xp.maximum(chi, 1e-12))
