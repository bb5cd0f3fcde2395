"""A smooth model of local motion: a penalised cubic B-spline whose stiffness the data choose."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, from_host, solve_positive, to_host
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


@dataclasses.dataclass(frozen=True)
class Equations:
    """What the measurements of each group of frames say about the field over y and x at the group's time.

    The group's common shift, which is left to the frames' own shifts, is eliminated. Control points `z` over y and
    x leave a misfit of ``squares + sum of z @ matrices @ z - 2 rights @ z``.

    Attributes
    ----------
    matrices : array, shape (g, 2, ny * nx, ny * nx)
    rights : array, shape (g, 2, ny * nx)
    squares : float
        Misfit without local motion: squared measurements times their inverse variances.
    information : float
        Sum of the inverse variances.
    """

    matrices: Any
    rights: Any
    squares: float
    information: float

    def misfits(self, points):
        """Misfits (s,) of control points (g, 2, ny * nx, s)."""
        slopes = self.matrices @ points - 2 * self.rights[..., None]
        misfits = self.squares + (points * slopes).sum(axis=(0, 1, 2))
        return array_module(misfits).maximum(misfits, 0.0)  # rounded, where the fit is perfect


class LocalModel:
    """Local motion relative to the whole frame's, over (t, y, x).

    Parameters
    ----------
    n_control : (int, int, int)
        Control points in t, y and x.
    lengths : (float, float, float)
        What they cover: frames, height and width.
    times : array_like, shape (g,)
        Of the measurements, in frames.
    centres : (ndarray, ndarray), shapes (py,) and (px,)
        Of the patches, in y and in x.
    edges : (float, float)
        Of the patches. What is measured in one is the motion's mean under its window.
    xp : module
        `numpy` or `cupy`, which solves the equations.
    """

    def __init__(self, n_control, lengths, times, centres, edges, xp=np):
        self.xp, self.n_control = xp, tuple(n_control)
        self._in_time = bspline.basis_matrix(times, lengths[0], n_control[0])
        bases = [_windowed_basis(*along) for along in zip(centres, edges, lengths[1:], n_control[1:])]
        self._mean = np.kron(*(basis.mean(axis=0) for basis in bases))
        self._bases = [from_host(basis, xp) for basis in bases]
        self._squares = [from_host(_squares(basis), xp) for basis in bases]
        plate, self._bending = _roughness(self.n_control)
        self._plate = from_host(np.stack([plate, np.eye(len(plate))]), xp)

    def equations(self, values, information):
        """Equations of what was measured.

        Parameters
        ----------
        values : ndarray, shape (py * px, g, 2)
            Translations of each patch and group; what all patches of a group share is not used.
        information : ndarray, shape (py * px, g, 2)
            Inverse variances.

        Returns
        -------
        Equations
        """
        xp, (_, ny, nx) = self.xp, self.n_control
        values = centred(values, information)
        weighted = information * values
        rights = self._over_patches(from_host(weighted, xp), self._bases)
        products = self._over_patches(from_host(information, xp), self._squares)
        products = products.reshape(-1, 2, ny, ny, nx, nx)
        sums = products.sum(axis=(3, 5))  # as the basis functions of a place add up to one
        total = xp.maximum(sums.sum(axis=(2, 3), keepdims=True), 1e-300)
        products -= (sums / total)[:, :, :, None, :, None] * sums[:, :, None, :, None, :]
        matrices = products.swapaxes(3, 4).reshape(-1, 2, ny * nx, ny * nx)
        squares, information = float((weighted * values).sum()), float(information.sum())
        return Equations(matrices, rights.reshape(-1, 2, ny * nx), squares, information)

    def _over_patches(self, values, functions):
        """Sum `values` (py * px, ...) times functions of y (py, a) and of x (px, b); shape (..., a, b)."""
        values = values.reshape(len(functions[0]), len(functions[1]), *values.shape[1:])
        for function in functions:  # puts what it sums over first, and its own axis last
            values = self.xp.tensordot(values, function, axes=(0, 0))
        return values

    def fit(self, equations, stiffness):
        """Fit the control points.

        Parameters
        ----------
        equations : Equations
        stiffness : Stiffness

        Returns
        -------
        control_points : ndarray, shape (nt, ny, nx, 2)
            On the host. They move nothing on average over the patches, at any time: that is left to the frames'
            own shifts.
        residual : float
            Weighted rms difference between measurements and model.
        """
        everything = np.ones((1, len(self._in_time)))
        points = self._solve(self._normal(equations, everything), [stiffness])
        misfit = float(self._misfits(equations, points, everything)[0])
        residual = np.sqrt(misfit / max(equations.information, 1e-300))
        points = to_host(points).reshape(2, self.n_control[0], -1)
        points = points - (points @ self._mean)[..., None]
        return np.moveaxis(points, 0, -1).reshape((*self.n_control, 2)), float(residual)

    def choose_stiffness(self, equations, start):
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
        groups = np.arange(len(self._in_time))
        left_out = (groups % FOLDS == np.arange(min(FOLDS, len(groups)))[:, None]).astype(np.float64)
        normal = self._normal(equations, 1 - left_out)
        best = start
        errors: dict[Stiffness, float] = {}
        step = 2
        while True:
            new = [trial for trial in _around(best, step) if trial not in errors]
            if new:
                points = self._solve(normal, new)
                errors.update(zip(new, to_host(self._misfits(equations, points, left_out)).tolist()))
            elif step == 1:
                break
            best, step = min(errors, key=errors.__getitem__), 1
        return best, 1.0 - errors[best] / equations.squares if equations.squares > 0 else 0.0

    def _normal(self, equations, chosen):
        """Normal equations (2, k, m, m) and (2, k, m) of the groups that `chosen` (k, g) marks with 1, not 0."""
        xp = self.xp
        pairs = from_host(_squares(self._in_time)[:, None] * chosen.T[..., None], xp)
        in_time = from_host(self._in_time[:, None] * chosen.T[..., None], xp)
        rights = xp.tensordot(in_time, equations.rights, axes=(0, 0))  # (k, nt, 2, ny * nx)
        return self._joined(pairs, equations.matrices), rights.transpose(2, 0, 1, 3).reshape(2, len(chosen), -1)

    def _joined(self, in_time, in_space):
        """Matrices (c, k, m, m) over all control points.

        They are sums, over the first axis, of Kronecker products of matrices in time (r, k, nt * nt) and in space
        (r, c, ny * nx, ny * nx).
        """
        nt, n_space = self.n_control[0], in_space.shape[-1]
        product = self.xp.tensordot(in_time, in_space, axes=(0, 0))
        product = product.reshape(-1, nt, nt, *in_space.shape[1:]).transpose(3, 0, 1, 4, 2, 5)
        return product.reshape(*product.shape[:2], nt * n_space, nt * n_space)

    def _solve(self, normal, stiffnesses):
        """Control points (s, 2, k, m) that solve the normal equations with each of the stiffnesses."""
        matrices, rights = normal
        eye = np.eye(self.n_control[0]).ravel()
        in_time = [[eye / stiffness.space**2 for stiffness in stiffnesses]]
        in_time += [[self._bending / stiffness.time**2 + eye / AMPLITUDE**2 for stiffness in stiffnesses]]
        penalties = self._joined(from_host(np.array(in_time), self.xp), self._plate[:, None])[0]
        return solve_positive(matrices + penalties[:, None, None], rights)

    def _misfits(self, equations, points, chosen):
        """Misfits (s,) of control points (s, 2, k, m), each of the k to the groups that `chosen` (k, g) marks."""
        n_sets, n_chosen = len(points), len(chosen)
        points = points.reshape(n_sets, 2, n_chosen, self.n_control[0], -1)
        in_time = from_host((self._in_time * chosen[..., None]).swapaxes(1, 2), self.xp)  # (k, nt, g)
        at_groups = self.xp.tensordot(in_time, points, axes=((0, 1), (2, 3)))  # (g, s, 2, ny * nx)
        return equations.misfits(at_groups.transpose(0, 2, 3, 1))


def _around(stiffness, step):
    """The stiffness itself and those `step` places away in the table, in space, in time and in both."""
    sides = []
    for value in (stiffness.space, stiffness.time):
        place, last = STIFFNESSES.index(value), len(STIFFNESSES) - 1
        sides.append([STIFFNESSES[min(max(0, place + move), last)] for move in (-step, 0, step)])
    return dict.fromkeys(Stiffness(space, time) for space in sides[0] for time in sides[1])


def _squares(basis):
    """Products (p, n * n) of every two of the basis functions (p, n)."""
    return (basis[:, :, None] * basis[:, None]).reshape(len(basis), -1)


def _roughness(n_control):
    """Roughness in space, as a matrix (ny * nx, ny * nx), and in time (nt * nt,)."""
    _, ny, nx = n_control
    bend = [bspline.second_differences(n) for n in n_control]
    slope = [np.diff(np.eye(n), axis=0) for n in n_control]
    square = [b.T @ b for b in bend]
    twist = np.kron(slope[1].T @ slope[1], slope[2].T @ slope[2])
    return np.kron(square[1], np.eye(nx)) + 2 * twist + np.kron(np.eye(ny), square[2]), square[0].ravel()


def centred(values, information):
    """Values (..., p, g, 2) less what all patches of a group share."""
    total = np.maximum(information.sum(axis=0), 1e-300)
    return values - (information * values).sum(axis=-3, keepdims=True) / total


def _windowed_basis(centres, edge, length, n_control):
    """Means of the basis functions under Hann windows of this edge."""
    offsets = (np.arange(16) + 0.5) / 16
    window = np.sin(np.pi * offsets) ** 2
    positions = np.asarray(centres)[:, None] + (offsets - 0.5) * edge
    basis = bspline.basis_matrix(np.clip(positions, 0, length).ravel(), length, n_control)
    return window / window.sum() @ basis.reshape(*positions.shape, n_control)


def robust_factors(residuals, information):
    """Weights (p, g) from 0 to 1 that discount patches whose residual is out of proportion to the others'."""
    chi = np.sqrt((information * residuals**2).sum(axis=-1))
    used = information.sum(axis=-1) > 0
    scale = float(np.median(chi[used])) / 1.1774 if used.any() else 1.0
    return np.minimum(1.0, 3.0 * scale / np.maximum(chi, 1e-12))
