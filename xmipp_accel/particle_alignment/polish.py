"""Newton polish of in-plane angles and shifts, from the grid of the search to its maximum."""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import array_module, kernel_turn, to_host
from xmipp_accel.kernels.cpu.pose_sums import pose_sums
from xmipp_accel.particle_alignment import polar

_NEWTON_STEPS = 4
_MAX_ANGLE_STEP = math.radians(3.0)
_HESSIAN = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])  # places of its sums


def refine_poses(grid, references, weights, samples, psi, shifts, max_shift):
    """Newton polish of in-plane angles and shifts on the exact score.

    Parameters
    ----------
    grid : polar.PolarGrid
    references, samples : (b, K, Q) and (b, K, Phi / 2) complex64 arrays
        One reference and one particle for each of b pairs.
    weights : (K,) float array
    psi : (b,) float NumPy array
        Degrees.
    shifts : (b, 2) float NumPy array
        (y, x) px.
    max_shift : float
        Shifts are kept within this disc, px.

    Returns
    -------
    score : (b,), psi : (b,), shifts : (b, 2) float64 NumPy arrays
        Never worse than the input poses, once their shifts are within the disc.
    """
    pose = _within(np.column_stack([np.deg2rad(psi), shifts]).astype(np.float64), max_shift)
    value, gradient, hessian = _derivatives(grid, references, weights, samples, pose)
    quarter_period = grid.box / (4.0 * grid.n_rings)
    limit = np.array([_MAX_ANGLE_STEP, quarter_period, quarter_period])
    damping = np.ones(len(pose))
    for _ in range(_NEWTON_STEPS):
        trial = _within(pose + damping[:, None] * _newton_step(gradient, hessian, limit), max_shift)
        new_value, new_gradient, new_hessian = _derivatives(grid, references, weights, samples, trial)
        better = new_value > value
        value = np.where(better, new_value, value)
        pose[better], gradient[better], hessian[better] = trial[better], new_gradient[better], new_hessian[better]
        damping = np.where(better, 1.0, damping * 0.3)
    return value, np.rad2deg(pose[:, 0]) % 360.0, pose[:, 1:]


def _within(pose, max_shift):
    length = np.hypot(pose[:, 1], pose[:, 2])
    pose[:, 1:] *= np.minimum(1.0, max_shift / np.maximum(length, 1e-12))[:, None]
    return pose


def _newton_step(gradient, hessian, limit):
    """Ascent steps (b, 3), bounded; curvatures of the wrong sign are turned round."""
    scaled = hessian * limit[:, None] * limit
    values, vectors = np.linalg.eigh(scaled)
    floor = 1e-3 * np.abs(values).max(axis=1, keepdims=True) + 1e-30
    values = np.maximum(np.abs(values), floor)
    along = np.einsum("bij,bi->bj", vectors, gradient * limit) / values
    step = np.einsum("bij,bj->bi", vectors, along)
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step / np.maximum(longest, 1.0) * limit


def _derivatives(grid, references, weights, samples, pose):
    """Score, gradient and Hessian with respect to (psi in radians, shift y, shift x).

    By Parseval the score is ``sum_k w_k 2 / Phi sum_j Re(conj R(k, phi_j + psi) P_s(k, phi_j))`` over the half
    circle.
    """
    xp = array_module(samples)
    q = xp.arange(grid.n_harmonics, dtype=np.float64)
    turned = references * xp.exp(1j * xp.asarray(pose[:, :1]) * q).astype(np.complex64)[:, None, :]
    phases = polar.shift_phases(grid, pose[:, 1:], xp)
    factors = (np.asarray(weights) * (2.0 / grid.n_angles)).astype(np.float32)
    frequencies = (grid.frequencies * (-2 * math.pi / grid.box)).astype(np.float32)
    run = _sums_on_host if xp is np else _sums_in_arrays
    sums = run(grid, turned, samples, phases, factors, frequencies)
    return sums[:, 0], sums[:, 1:4], sums[:, 4:][:, _HESSIAN]


def _sums_on_host(grid, turned, samples, phases, factors, frequencies):
    """The sums of :func:`xmipp_accel.kernels.reference.pose_sums.pose_sums`, of turned references (b, K, Q)."""
    out = np.empty((len(samples), 10))
    turned = polar.samples_with_derivatives(turned, grid)
    with kernel_turn:
        pose_sums(turned, np.ascontiguousarray(samples), phases, factors, frequencies, out)
    return out


def _sums_in_arrays(grid, turned, samples, phases, factors, frequencies):
    """The same where the arrays lie."""
    xp, b = array_module(samples), len(samples)
    iq = (1j * xp.arange(grid.n_harmonics, dtype=np.float64)).astype(np.complex64)
    orders = xp.stack([turned, turned * iq, turned * iq * iq])
    r0, r1, r2 = polar.samples_from_coefficients(orders, grid)
    particle = samples * phases * xp.asarray(factors)[:, None]
    ky, kx = xp.asarray(frequencies)

    def total(array):
        return to_host(array.reshape(b, -1).astype(np.float64).sum(axis=1))

    product = xp.conj(r0) * particle
    turning = xp.conj(r1) * particle
    real, imaginary, slope = product.real, product.imag, -turning.imag
    sums = [total(real), total(turning.real), total(-imaginary * ky), total(-imaginary * kx)]
    sums += [total((xp.conj(r2) * particle).real), total(slope * ky), total(slope * kx)]
    sums += [-total(real * ky * ky), -total(real * ky * kx), -total(real * kx * kx)]
    return np.stack(sums, axis=1)
