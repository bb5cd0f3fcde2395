"""Newton polish of in-plane angles and shifts, from the grid of the search to its maximum."""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, from_host, kernel_turn, to_host
from xmipp_accel.kernels.cpu.newton import newton_steps
from xmipp_accel.kernels.cpu.pose_sums import pose_sums
from xmipp_accel.particle_alignment import polar

_NEWTON_STEPS = 4
_MAX_ANGLE_STEP = math.radians(3.0)
_HESSIAN = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])  # places of its sums
_SUMS, _THREADS = 10, 128  # as in kernels/cuda/pose_sums.cu


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
    """:func:`xmipp_accel.kernels.reference.newton.newton_steps`."""
    step = np.empty(gradient.shape)
    with kernel_turn:
        newton_steps(gradient, hessian, limit, step)
    return step


def _derivatives(grid, references, weights, samples, pose):
    """Score, gradient and Hessian with respect to (psi in radians, shift y, shift x).

    By Parseval the score is ``sum_k w_k 2 / Phi sum_j Re(conj R(k, phi_j + psi) P_s(k, phi_j))`` over the half
    circle.
    """
    xp = array_module(samples)
    q = xp.arange(grid.n_harmonics, dtype=np.float64)
    turned = references * xp.exp(1j * xp.asarray(pose[:, :1]) * q).astype(np.complex64)[:, None, :]
    phases = polar.shift_phases(grid, pose[:, 1:], xp)
    factors = np.asarray(weights) * (2.0 / grid.n_angles)
    frequencies = grid.frequencies * (-2 * math.pi / grid.box)
    sums = _sums(polar.samples_with_derivatives(turned, grid), samples, phases, factors, frequencies)
    return sums[:, 0], sums[:, 1:4], sums[:, 4:][:, _HESSIAN]


def _sums(turned, samples, phases, factors, frequencies):
    """:func:`xmipp_accel.kernels.reference.pose_sums.pose_sums`, where the arrays lie."""
    xp = array_module(samples)
    out = xp.empty((len(samples), _SUMS))
    factors, frequencies = (from_host(array, xp, np.float32) for array in (factors, frequencies))
    arrays = turned, xp.ascontiguousarray(samples), phases, factors, frequencies
    if xp is np:
        with kernel_turn:
            pose_sums(*arrays, out)
    elif len(samples):
        sizes = (np.int32(size) for size in samples.shape[1:])
        cuda_kernel("pose_sums", "pose_sums")((len(samples),), (_THREADS,), (*arrays, *sizes, out))
    return to_host(out)
