"""A smooth model of local motion: a penalised cubic B-spline whose stiffness the data choose."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg

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
    """

    def __init__(self, n_control, lengths, positions, edges, times):
        self.n_control, self.lengths = n_control, lengths
        self.times, self.n_patches = np.asarray(times, dtype=np.float64), len(positions)
        basis_t = bspline.basis_matrix(times, lengths[0], n_control[0])
        basis_y, basis_x = (
            _windowed_basis(positions[:, a], edges[a], lengths[a + 1], n_control[a + 1]) for a in (0, 1)
        )
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
            points.append(scipy.linalg.solve(matrix + penalty, right, assume_a="pos"))
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
        best = Stiffness(STIFFNESSES[len(STIFFNESSES) // 2], STIFFNESSES[-1])
        errors = {}
        for _ in range(3):  # coordinate by coordinate; the error is smooth enough for that
            start = best
            for axis in ("space", "time"):
                trials = [dataclasses.replace(best, **{axis: value}) for value in STIFFNESSES]
                for trial in trials:
                    if trial not in errors:
                        errors[trial] = self._held_out_error(trial, values, information, folds, parts)
                best = min(trials, key=errors.__getitem__)
            if best == start:
                break
        return best, 1.0 - errors[best] / reference if reference > 0 else 0.0

    def _held_out_error(self, stiffness, values, information, folds, parts):
        penalty = self._penalty(stiffness)
        prediction = np.zeros_like(values)
        for c in (0, 1):
            matrix, right = (sum(part[k] for part in parts[c]) for k in (0, 1))
            for fold, part in zip(folds, parts[c]):
                points = scipy.linalg.solve(matrix - part[0] + penalty, right - part[1], assume_a="pos")
                prediction[:, fold, c] = self.design[:, fold] @ points
        return self._error(prediction, values, information)

    @staticmethod
    def _error(prediction, values, information):
        residual = values - prediction
        total = np.maximum(information.sum(axis=0), 1e-300)
        residual = residual - (information * residual).sum(axis=0) / total
        return float((information * residual**2).sum())


def _windowed_basis(centres, edge, length, n_control):
    """Means of the basis functions under Hann windows of this edge."""
    offsets = (np.arange(16) + 0.5) / 16
    window = np.sin(np.pi * offsets) ** 2
    positions = centres[:, None] + (offsets - 0.5) * edge
    basis = bspline.basis_matrix(np.clip(positions, 0, length).ravel(), length, n_control)
    return np.einsum("k,pkn->pn", window / window.sum(), basis.reshape(*positions.shape, n_control))


def robust_factors(residuals, information):
    """Weights (p, g) from 0 to 1 that discount patches whose residual is out of proportion to the others'."""
    chi = np.sqrt((information * residuals**2).sum(axis=-1))
    used = information.sum(axis=-1) > 0
    if not used.any():
        return np.ones(chi.shape)
    scale = np.median(chi[used]) / 1.1774
    return np.minimum(1.0, 3.0 * scale / np.maximum(chi, 1e-12))
