"""Particles in the frames of averages, and poses refined from the grid of the search to a fraction of its step."""

from __future__ import annotations

import functools
import math

import numpy as np

from xmipp_accel.backend import array_module, kernel_turn
from xmipp_accel.kernels.cpu import pose_refine as cpu_kernel
from xmipp_accel.particle_alignment.polar import (
    angular_coefficients,
    samples_from_coefficients,
    shift_phases,
    shift_samples,
)

_DIVISOR = 3.0  # of the steps from one round to the next
_SIDE, _TURNS = 5, 13  # moves of one round: shifts along each axis, and turns
_EMPTY = 1e-4  # of a harmonic's largest amplitude


def aligned_harmonics(samples, rows, theta, shift, mirrored, grid, budget=1 << 30):
    """Harmonics (p, K, Q) complex64 of shifted, turned and then mirrored particles.

    Parameters
    ----------
    samples : (m, K, P) complex64 array
    rows, theta, shift, mirrored : (p,), (p,), (p, 2) and (p,) arrays
        Particle and pose.
    grid : PolarGrid
        Of the samples; its harmonics are those that are wanted.
    budget : int
        Bytes that one intermediate array may take.
    """
    run = _aligned_on_host if array_module(samples) is np else _aligned_in_arrays
    return run(samples, rows, theta, shift, mirrored, grid, budget)


def refine_pairs(particles, rows, templates, labels, mirrored, theta, shift, space, rounds, budget=1 << 30):
    """Refined poses of pairs of a particle and a class, and their scores.

    Each round fits a parabola to the scores of 5 x 5 shifts around the pose, then one to those of 13 turns; the
    next round's steps are a third as wide.

    Parameters
    ----------
    particles : PreparedParticles
    rows, labels, mirrored : (p,) int, int and bool arrays
        Particle and class of each pair, and whether the average is mirrored.
    templates : (C, K, Q) complex64 array
    theta, shift : (p,) and (p, 2) float32 arrays
    space : SearchGrid
    rounds : int
    budget : int
        Bytes that one intermediate array may take.

    Returns
    -------
    theta, shift, score : (p,), (p, 2) and (p,) float32 arrays
    """
    run = _on_host if array_module(templates) is np else _in_arrays
    return run(particles, rows, templates, labels, mirrored, theta, shift, space, rounds, budget)


def _steps(space):
    """Between shifts (px) and between turns (radians) of the first round."""
    return space.step / 3.0, 2 * math.pi / space.n_turns / 4.0


def _plane(step):
    axis = (np.arange(_SIDE) - _SIDE // 2) * step
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _line(turn_step):
    return (np.arange(_TURNS) - _TURNS // 2) * turn_step


# ------------------------------------------------------------------------------------------------ with the kernel
def _on_host(particles, rows, templates, labels, mirrored, theta, shift, space, rounds, _budget):
    grid, (step, turn_step) = particles.grid, _steps(space)
    theta, shift = theta.astype(np.float32), shift.astype(np.float32)
    score = np.empty(len(rows), dtype=np.float32)
    # One layout of every array, here and below, or the kernels are compiled for each.
    rows, labels, mirrored = (np.ascontiguousarray(array) for array in (rows, labels, mirrored))
    waves, synthesis, analysis, weights = _tables(grid)
    planes, turns = _moves(grid, step, turn_step, rounds)
    steps = step, turn_step, _DIVISOR, space.max_shift
    with kernel_turn:
        cpu_kernel.refine_pairs(
            particles.samples, rows, _by_parity(templates), _present(templates), labels, mirrored,
            waves, synthesis, analysis, weights, planes, turns, steps, theta, shift, score,
        )  # fmt: skip
    return theta, shift, score


def _aligned_on_host(samples, rows, theta, shift, mirrored, grid, _budget):
    result = np.empty((len(rows), samples.shape[1], grid.n_harmonics), dtype=np.complex64)
    waves, _, analysis, _ = _tables(grid)
    theta, shift = theta.astype(np.float32), shift.astype(np.float32)
    samples, rows, mirrored = (np.ascontiguousarray(array) for array in (samples, rows, mirrored))
    with kernel_turn:
        cpu_kernel.align_pairs(samples, rows, mirrored, theta, shift, waves, analysis, result)
    return result


def _half(n_harmonics):
    return 8 * math.ceil(n_harmonics / 16)


def _width(n_angles):
    return 16 * math.ceil(n_angles / 16)


def _by_parity(values):
    """Even and odd ones (..., 2, ..., H) of values (..., Q), the new axis before the last but one."""
    count = values.shape[-1]
    result = np.zeros(values.shape[:-2] + (2, values.shape[-2], _half(count)), dtype=values.dtype)
    for parity in (0, 1):
        own = values[..., parity::2]
        result[..., parity, :, : own.shape[-1]] = own
    return result


def _present(templates):
    """(K,) how many of the even and of the odd harmonics each ring needs, a multiple of 8.

    The high ones are empty on the inner rings; the particles' content there meets nothing.
    """
    power = abs(templates).max(axis=0)
    there = power > _EMPTY * power.max(axis=0)
    # Harmonics that a ring lacks but one further in has are counted, too.
    last = np.where(there, np.arange(power.shape[1]) + 1, 0).max(axis=1)
    return 8 * -(-np.maximum.accumulate(np.maximum(last, 1)) // 16)


def _in_tiles(matrices):
    """Matrices (2, rows, columns) as the kernel takes them, (2, tiles * rows * LANES)."""
    _, rows, columns = matrices.shape
    lanes = cpu_kernel.lanes_of(columns)
    tiles = -(-columns // lanes)
    padded = np.zeros((2, rows, tiles * lanes), dtype=np.float32)
    padded[:, :, :columns] = matrices
    result = np.zeros((2, tiles, rows, cpu_kernel.LANES), dtype=np.float32)
    result[..., :lanes] = padded.reshape(2, rows, tiles, lanes).transpose(0, 2, 1, 3)
    return result.reshape(2, -1)


@functools.lru_cache(maxsize=16)
def _tables(grid):
    """The kernel's waves, synthesis, analysis and weights."""
    count = len(grid.angles)
    half, width = _half(grid.n_harmonics), _width(count)
    waves = grid.frequencies[:, 0] * (-2 * math.pi / grid.box)
    synthesis, analysis = np.zeros((2, half, 2, width)), np.zeros((2, width, half, 2))
    for parity in (0, 1):
        q = np.arange(parity, grid.n_harmonics, 2)
        # Even harmonics add up to the real part of the samples, odd ones to the imaginary part.
        wave = np.exp(1j * np.outer(q, grid.angles)) * (1, -1j)[parity]
        parts = np.stack([wave.real, -wave.imag], axis=1)
        synthesis[parity, : len(q), :, :count] = parts * grid.harmonic_weights[q][:, None, None]
        analysis[parity, :count, : len(q)] = parts.transpose(2, 0, 1) * (2.0 / grid.n_angles)
    weights = _by_parity(grid.harmonic_weights[None].astype(np.float32))[:, 0]
    return (
        waves.astype(np.float32),
        _in_tiles(synthesis.reshape(2, 2 * half, width)),
        _in_tiles(analysis.reshape(2, width, 2 * half)),
        weights,
    )


@functools.lru_cache(maxsize=16)
def _moves(grid, step, turn_step, rounds):
    """The kernel's planes and turns."""
    count, half, first = len(grid.angles), _half(grid.n_harmonics), _SIDE**2 // 2
    planes = np.zeros((rounds, first + 1, 2, grid.n_rings, _width(count)), dtype=np.float32)
    turns = np.empty((rounds, _TURNS // 2 + 1, 2, 2 * half), dtype=np.float32)
    q = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
    for number in range(rounds):
        divisor = _DIVISOR**number
        phases = shift_phases(grid, _plane(step / divisor)[first:])
        planes[number, :, 0, :, :count], planes[number, :, 1, :, :count] = phases.real, phases.imag
        angle = np.outer(_line(turn_step / divisor)[_TURNS // 2 :], q)
        turns[number, :, 0], turns[number, :, 1] = np.cos(angle), np.sin(angle)
    return planes.reshape(planes.shape[:3] + (-1,)), turns


# --------------------------------------------------------------------------------------------------- with arrays
def _aligned_in_arrays(samples, rows, theta, shift, mirrored, grid, budget):
    xp = array_module(samples)
    result = xp.empty((len(rows), samples.shape[1], grid.n_harmonics), dtype=np.complex64)
    q = xp.arange(grid.n_harmonics, dtype=np.float32)
    block = max(1, budget // (32 * samples[0].size))
    for first in range(0, len(rows), block):
        part = slice(first, first + block)
        moved = angular_coefficients(shift_samples(samples[rows[part]], shift[part], grid), grid)
        moved = moved * xp.exp(1j * theta[part, None] * q)[:, None]
        result[part] = xp.where(mirrored[part, None, None], moved.conj(), moved)
    return result


def _in_arrays(particles, rows, templates, labels, mirrored, theta, shift, space, rounds, budget):
    xp = array_module(templates)
    block = max(1, budget // (32 * particles.samples[0].size))
    parts = []
    for first in range(0, len(rows), block):
        part = slice(first, first + block)
        chosen = templates[labels[part]]
        chosen = xp.where(mirrored[part, None, None], chosen.conj(), chosen)
        samples = particles.samples[rows[part]]
        parts.append(_refine_block(samples, chosen, theta[part], shift[part], space, particles.grid, rounds))
    return tuple(xp.concatenate(column) for column in zip(*parts))


def _refine_block(samples, chosen, theta, shift, space, grid, rounds):
    xp = array_module(samples)
    step, turn_step = _steps(space)
    q = xp.arange(grid.n_harmonics, dtype=np.float32)
    weights = xp.asarray(grid.harmonic_weights.astype(np.float32))
    for _ in range(rounds):
        turned = samples_from_coefficients(chosen * xp.exp(-1j * theta[:, None] * q)[:, None], grid)
        product = shift_samples(samples, shift, grid) * turned.conj()
        phases = shift_phases(grid, _plane(step), xp).reshape(_SIDE**2, -1)
        scores = (product.reshape(len(samples), -1) @ phases.T).real
        shift = shift + _peak_of_plane(scores.reshape(-1, _SIDE, _SIDE)) * step
        length = xp.sqrt((shift * shift).sum(axis=1, keepdims=True))
        shift = shift * xp.minimum(space.max_shift / xp.maximum(length, 1e-6), 1.0)
        aligned = angular_coefficients(shift_samples(samples, shift, grid), grid)
        spectrum = (aligned * chosen.conj()).sum(axis=1) * weights * xp.exp(1j * theta[:, None] * q)
        turns = np.exp(1j * np.outer(np.arange(grid.n_harmonics), _line(turn_step)))
        scores = (spectrum @ xp.asarray(turns.astype(np.complex64))).real
        place, score = _peak_of_line(scores)
        theta = (theta + (place - _TURNS // 2) * turn_step).astype(np.float32)
        shift, step, turn_step = shift.astype(np.float32), step / _DIVISOR, turn_step / _DIVISOR
    return theta, shift, score


def _peak_of_line(scores):
    """Place (fraction of an index) and height of the maximum along the last axis, by a parabola through three."""
    xp = array_module(scores)
    middle = xp.clip(scores.argmax(axis=-1), 1, scores.shape[-1] - 2)[:, None]
    left, peak, right = (xp.take_along_axis(scores, middle + i, 1)[:, 0] for i in (-1, 0, 1))
    bend = xp.minimum(left - 2 * peak + right, -1e-6)
    move = xp.clip(0.5 * (left - right) / bend, -1.0, 1.0)
    return middle[:, 0] + move, peak - 0.25 * (left - right) * move


def _peak_of_plane(scores):
    """Offset (p, 2) from the middle of the maximum of each plane, in steps."""
    xp = array_module(scores)
    place = scores.reshape(len(scores), -1).argmax(axis=1)
    rows = xp.take_along_axis(scores, (place // _SIDE)[:, None, None], 1)[:, 0]
    columns = xp.take_along_axis(scores, (place % _SIDE)[:, None, None], 2)[:, :, 0]
    middle = _SIDE // 2
    return xp.stack([_peak_of_line(columns)[0] - middle, _peak_of_line(rows)[0] - middle], axis=-1)
