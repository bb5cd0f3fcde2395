"""A smooth model of local motion: a penalised cubic B-spline whose stiffness the data choose."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from xmipp_accel.numerics import bspline

# Prior standard deviation (px) of the control points' second differences, in space and in time.
STIFFNESSES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
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
    times : ndarray, shape (g,)
        Of the measurements, in frames.
    """

    def __init__(self, n_control, lengths, positions, times):
        self.n_control, self.lengths = n_control, lengths
        self.times, self.n_patches = np.asarray(times, dtype=np.float64), len(positions)
        basis_t = bspline.basis_matrix(times, lengths[0], n_control[0])
        basis_y = bspline.basis_matrix(positions[:, 0], lengths[1], n_control[1])
        basis_x = bspline.basis_matrix(positions[:, 1], lengths[2], n_control[2])
        basis = np.einsum("gi,pj,pk->pgijk", basis_t, basis_y, basis_x)
        self.design = basis.reshape(self.n_patches, len(times), -1)
        self._mean = np.einsum("pj,pk->jk", basis_y, basis_x).reshape(-1) / self.n_patches
        self._space, self._time = self._penalties()

    def _penalties(self):
        nt, ny, nx = self.n_control
        bend = [bspline.second_differences(n) for n in self.n_control]
        slope = [np.diff(np.eye(n), axis=0) for n in self.n_control]
        square = [b.T @ b for b in bend]
        twist = np.kron(slope[1].T @ slope[1], slope[2].T @ slope[2])
        plate = np.kron(square[1], np.eye(nx)) + 2 * twist + np.kron(np.eye(ny), square[2])
        return np.kron(np.eye(nt), plate), np.kron(square[0], np.eye(ny * nx))

    def _penalty(self, stiffness):
        size = self._space.shape[0]
        ridge = np.eye(size) / AMPLITUDE**2
        return self._space / stiffness.space**2 + self._time / stiffness.time**2 + ridge

    def _normal(self, information, values, groups):
        """Normal equations of one component, with the groups' common shifts eliminated."""
        matrix = np.zeros((self.design.shape[2],) * 2)
        right = np.zeros(self.design.shape[2])
        for g in groups:
            weight = information[:, g]
            total = weight.sum()
            if total <= 0:
                continue
            design = self.design[:, g]
            mean = weight @ design / total
            centred = design - mean
            matrix += centred.T @ (weight[:, None] * centred)
            right += centred.T @ (weight * (values[:, g] - weight @ values[:, g] / total))
        return matrix, right

    def fit(self, values, information, stiffness):
        """Fit the control points.

        Parameters
        ----------
        values : ndarray, shape (p, g, 2)
            Translations of each patch and group; what all patches of a group share is not used.
        information : ndarray, shape (p, g, 2)
            Inverse variances.
        stiffness : Stiffness

        Returns
        -------
        ndarray, shape (nt, ny, nx, 2)
        """
        groups = range(len(self.times))
        penalty = self._penalty(stiffness)
        points = []
        for c in (0, 1):
            matrix, right = self._normal(information[..., c], values[..., c], groups)
            points.append(np.linalg.solve(matrix + penalty, right))
        return self._without_mean(np.stack(points, axis=-1)).reshape((*self.n_control, 2))

    def _without_mean(self, points):
        """Move nothing on average over the patches, at any time: that is left to the frames' own shifts."""
        points = points.reshape(self.n_control[0], -1, 2)
        return points - np.einsum("j,tjc->tc", self._mean, points)[:, None]

    def predict(self, control_points):
        """Values (p, g, 2) at the patches."""
        return self.design @ np.asarray(control_points).reshape(-1, 2)

    def choose_stiffness(self, values, information):
        """Cross-validate over groups of frames, whose noise is independent; that of overlapping patches is not.

        Returns
        -------
        stiffness : Stiffness
        gain : float
            One minus the ratio of the prediction error of the best model to that of no local motion; positive when
            the local model predicts frames that it has not seen.
        """
        folds = [np.arange(k, len(self.times), FOLDS) for k in range(min(FOLDS, len(self.times)))]
        parts = [[self._normal(information[..., c], values[..., c], fold) for fold in folds] for c in (0, 1)]
        reference = self._error(np.zeros_like(values), values, information)
        best, best_error = Stiffness(), np.inf
        for space, time in itertools.product(STIFFNESSES, STIFFNESSES):
            penalty = self._penalty(Stiffness(space, time))
            prediction = np.zeros_like(values)
            for c in (0, 1):
                matrix, right = (sum(part[k] for part in parts[c]) for k in (0, 1))
                for fold, part in zip(folds, parts[c]):
                    points = np.linalg.solve(matrix - part[0] + penalty, right - part[1])
                    prediction[:, fold, c] = self.design[:, fold] @ points
            error = self._error(prediction, values, information)
            if error < best_error:
                best, best_error = Stiffness(space, time), error
        return best, 1.0 - best_error / reference if reference > 0 else 0.0

    @staticmethod
    def _error(prediction, values, information):
        residual = values - prediction
        total = np.maximum(information.sum(axis=0), 1e-300)
        residual = residual - (information * residual).sum(axis=0) / total
        return float((information * residual**2).sum())


def robust_factors(residuals, information):
    """Weights (p, g) from 0 to 1 that discount patches whose residual is out of proportion to the others'."""
    chi = np.sqrt((information * residuals**2).sum(axis=-1))
    used = information.sum(axis=-1) > 0
    if not used.any():
        return np.ones(chi.shape)
    scale = np.median(chi[used]) / 1.1774
    return np.minimum(1.0, 3.0 * scale / np.maximum(chi, 1e-12))
