"""Float64 oracle of the refinement of poses."""

from __future__ import annotations

import numpy as np


def refine_pair(samples, template, theta, shift, box, steps, rounds):
    """Refined pose of one particle relative to one class average, by definition.

    Parameters
    ----------
    samples : (K, P) complex array
        Of the particle on rings 1..K and half a circle of 2 P angles.
    template : (K, Q) complex array
        Harmonics of the average, weighted.
    theta : float
        Radians.
    shift : (2,) array
        (y, x), px.
    box : int
        Px.
    steps : (step, turn_step, divisor, largest)
        Between shifts (px) and between turns (radians) of the first round, the divisor of both for each further
        round, and the largest shift, px.
    rounds : int

    Returns
    -------
    theta : float
    shift : (2,) array
    score : float
        ``Re sum_k sum_q c_q exp(i q theta) F_s[k, q] conj(T[k, q])``, c_0 = 1 and c_q = 2, for harmonics F_s of
        the shifted particle and T of the template, by a parabola through the best of 13 turns and its neighbours.
    """
    step, turn_step, divisor, largest = steps
    shift = np.asarray(shift, dtype=np.float64)
    for _ in range(rounds):
        offsets = [[(y * step, x * step) for x in range(-2, 3)] for y in range(-2, 3)]
        plane = np.array([[_score(samples, template, theta, shift + o, box) for o in row] for row in offsets])
        y, x = np.unravel_index(plane.argmax(), plane.shape)
        shift = shift + (np.array([_peak(plane[:, x])[0], _peak(plane[y])[0]]) - 2) * step
        shift = shift * min(1.0, largest / max(np.hypot(*shift), 1e-6))
        turns = theta + np.arange(-6, 7) * turn_step
        place, score = _peak(np.array([_score(samples, template, turn, shift, box) for turn in turns]))
        theta = theta + (place - 6) * turn_step
        step, turn_step = step / divisor, turn_step / divisor
    return theta, shift, score


def _score(samples, template, theta, shift, box):
    rings, half = samples.shape
    angles = np.arange(half) * np.pi / half
    waves = np.sin(angles) * shift[0] + np.cos(angles) * shift[1]
    moved = samples * np.exp(-2j * np.pi / box * np.arange(1, rings + 1)[:, None] * waves)
    circle = np.concatenate([moved, moved.conj()], axis=1)
    q = np.arange(template.shape[1])
    harmonics = circle @ np.exp(-1j * np.outer(np.arange(2 * half) * np.pi / half, q)) / (2 * half)
    return float((np.where(q, 2, 1) * np.exp(1j * q * theta) * harmonics * template.conj()).real.sum())


def _peak(scores):
    """Place and height of the maximum of the parabola through the best score and its neighbours."""
    middle = min(max(int(scores.argmax()), 1), len(scores) - 2)
    left, peak, right = scores[middle - 1 : middle + 2]
    move = np.clip(0.5 * (left - right) / min(left - 2 * peak + right, -1e-6), -1, 1)
    return middle + move, peak - 0.25 * (left - right) * move
