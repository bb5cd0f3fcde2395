"""Poses of particles relative to class averages: an exhaustive search on a grid, then local refinement.

A pose is a shift of the particle, applied first, and a turn by ``theta``, both in the particle's frame; in
harmonics the aligned particle is ``exp(i q theta) F_s[k, q]``, mirrored by conjugation afterwards if the template
is a mirrored one. See :mod:`xmipp_accel.particle_alignment.polar` for the harmonics.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module
from xmipp_accel.particle_alignment.polar import (
    PolarGrid,
    angular_coefficients,
    samples_from_coefficients,
    shift_phases,
)

_BLOCK_BYTES = {"numpy": 48 << 20, "cupy": 512 << 20}  # a cache's worth; enough to fill a GPU
_SHIFTS_PER_PERIOD = 3.0  # of the outermost ring of the search; two lose a tenth of the particles at SNR 0.3


@dataclasses.dataclass(frozen=True)
class Poses:
    """The L best poses of each particle, best first; arrays of one module.

    Attributes
    ----------
    label : (m, L) int64 array
        Class, from 0; each one has a finite score once at most for a particle.
    mirrored : (m, L) bool array
    theta : (m, L) float32 array
        Radians.
    shift : (m, L, 2) float32 array
        (y, x), px.
    score : (m, L) float32 array
        Log-likelihood L.
    """

    label: Any
    mirrored: Any
    theta: Any
    shift: Any
    score: Any

    def best(self) -> Poses:
        """The first pose of each particle."""
        return Poses(*(getattr(self, field.name)[:, :1] for field in dataclasses.fields(self)))

    def joined(self, other: Poses) -> Poses:
        """These poses and those of `other`."""
        xp = array_module(self.score)
        names = [field.name for field in dataclasses.fields(self)]
        return Poses(*(xp.concatenate([getattr(self, name), getattr(other, name)], axis=1) for name in names))

    def ranked(self) -> Poses:
        """Best first; of several poses in one class all but the best lose their score."""
        xp = array_module(self.score)
        order = xp.argsort(-self.score, axis=1)
        label, mirrored, theta, score = (
            xp.take_along_axis(array, order, 1) for array in (self.label, self.mirrored, self.theta, self.score)
        )
        again = xp.zeros(label.shape, dtype=bool)
        for i in range(1, label.shape[1]):
            again[:, i] = (label[:, :i] == label[:, i : i + 1]).any(axis=1)
        score[again] = -np.inf
        return Poses(label, mirrored, theta, xp.take_along_axis(self.shift, order[..., None], 1), score)


@dataclasses.dataclass(frozen=True)
class SearchGrid:
    """Rings, turns and shifts of the exhaustive search.

    Attributes
    ----------
    n_rings, n_harmonics : int
        The part of the harmonics that takes part.
    n_turns : int
        Even; turns are multiples of ``2 pi / n_turns``.
    shifts : (S, 2) float64 host array
        (y, x), px, in the frame of the average.
    step : float
        Between shifts, px.
    max_shift : float
        Px; refinement does not go beyond it either.
    """

    n_rings: int
    n_harmonics: int
    n_turns: int
    shifts: np.ndarray
    step: float
    max_shift: float


def search_grid(grid: PolarGrid, n_rings: int, max_shift: float) -> SearchGrid:
    """Grid that is fine enough for the first `n_rings` rings and reaches `max_shift` px."""
    n_rings = min(n_rings, grid.n_rings)
    n_harmonics = min(grid.n_harmonics, math.ceil(grid.n_harmonics * (n_rings + 1) / grid.n_rings))
    step = grid.box / (_SHIFTS_PER_PERIOD * n_rings)
    reach = math.floor(max_shift / step + 1e-9)
    axis = np.arange(-reach, reach + 1) * step
    shifts = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = np.hypot(*shifts.T) <= max_shift + 1e-9
    return SearchGrid(n_rings, n_harmonics, 2 * math.ceil(1.15 * n_harmonics), shifts[inside], step, max_shift)


def search(particles, model, space: SearchGrid, count: int, membership=None, mirrors=False) -> Poses:
    """Best pose for each of the `count` best classes of every particle, to the precision of the grid.

    Parameters
    ----------
    particles : PreparedParticles
    model : ClassModel
    space : SearchGrid
    count : int
        L; at most the number of classes.
    mirrors : bool
        Try mirrored averages too.

    Returns
    -------
    Poses
        Scores are those of the first ``space.n_rings`` rings.
    """
    xp = array_module(particles.samples)
    templates = _shifted_templates(model, space, mirrors)
    n_classes, n_shifts = len(model), len(space.shifts)
    n_sets = 2 if mirrors else 1
    cosine, sine = _turn_matrices(space, xp)
    offsets = model.offsets(particles, membership, space.n_rings)
    count = min(count, n_classes)
    block = max(1, _BLOCK_BYTES[xp.__name__] // (8 * space.n_harmonics * templates.shape[-1]))
    parts = []
    for first in range(0, len(particles), block):
        part = slice(first, first + block)
        rings = particles.coefficients[part, : space.n_rings, : space.n_harmonics]
        rings = xp.ascontiguousarray(rings.transpose(2, 0, 1))
        real_rows = xp.concatenate([rings.real, -rings.imag], axis=2)
        imaginary_rows = xp.concatenate([rings.imag, rings.real], axis=2)
        # Real products: a strided real part of a complex one would miss the fast matrix product below.
        even = cosine @ xp.matmul(real_rows, templates).reshape(space.n_harmonics, -1)
        odd = sine @ xp.matmul(imaginary_rows, templates).reshape(space.n_harmonics, -1)
        # The turns theta and -theta share both products: their scores are even - odd and even + odd.
        peak = (even + xp.abs(odd)).max(axis=0).reshape(-1, n_sets * n_shifts, n_classes).transpose(0, 2, 1)
        place = peak.argmax(axis=2)
        score = xp.take_along_axis(peak, place[..., None], 2)[..., 0] + offsets[part]
        top = xp.argsort(-score, axis=1)[:, :count]
        place = xp.take_along_axis(place, top, 1)
        column = xp.arange(rings.shape[1])[:, None] * templates.shape[-1] + place * n_classes + top
        half = space.n_turns // 2 + 1
        turn = xp.concatenate([even[:, column] - odd[:, column], even[:, column] + odd[:, column]]).argmax(axis=0)
        turn = xp.where(turn < half, turn, half - turn)
        theta = turn * (2 * math.pi / space.n_turns)
        shift = _to_particle_frame(xp.asarray(space.shifts)[place % n_shifts], theta, place >= n_shifts)
        parts.append((top, place >= n_shifts, theta, shift, xp.take_along_axis(score, top, 1)))
    label, mirrored, theta, shift, score = (xp.concatenate(column) for column in zip(*parts))
    return Poses(label, mirrored, theta.astype(np.float32), shift.astype(np.float32), score.astype(np.float32))


def _shifted_templates(model, space, mirrors):
    """Conjugated templates, shifted back, times the harmonics' weights.

    Returns
    -------
    (Q, 2 K, sets * S * C) float32 array; the real parts of all rings precede the imaginary ones.
    """
    xp, grid = array_module(model.averages), model.grid
    samples = samples_from_coefficients(model.averages * model.weights[:, :, None], grid)[:, : space.n_rings]
    phases = shift_phases(grid, -space.shifts, xp)[:, : space.n_rings]
    shifted = angular_coefficients(samples[None] * phases[:, None], grid)[..., : space.n_harmonics]
    # The shift is applied after mirroring, so a mirrored template is the conjugate of a shifted one.
    sets = [shifted.conj(), shifted] if mirrors else [shifted.conj()]
    stacked = xp.concatenate([s.reshape((-1,) + s.shape[2:]) for s in sets])
    stacked = stacked * xp.asarray(grid.harmonic_weights[: space.n_harmonics].astype(np.float32))
    # The copy to C order matters: concatenation keeps the order of its input, which matmul is slow with.
    stacked = xp.ascontiguousarray(stacked.transpose(2, 1, 0))
    return xp.ascontiguousarray(xp.concatenate([stacked.real, stacked.imag], axis=1))


def _turn_matrices(space, xp):
    """(half, Q) float32 cosines and sines of q theta for the turns 0 <= theta <= pi."""
    turns = np.arange(space.n_turns // 2 + 1) * (2 * np.pi / space.n_turns)
    angle = np.outer(turns, np.arange(space.n_harmonics))
    return xp.asarray(np.cos(angle).astype(np.float32)), xp.asarray(np.sin(angle).astype(np.float32))


def _to_particle_frame(shift, theta, mirrored):
    """Shift to apply before mirroring and turning, of one (..., 2) that is applied after."""
    xp = array_module(theta)
    y, x = shift[..., 0], xp.where(mirrored, -shift[..., 1], shift[..., 1])
    cosine, sine = xp.cos(theta), xp.sin(theta)
    return xp.stack([sine * x + cosine * y, cosine * x - sine * y], axis=-1)


def to_average_frame(shift, theta, mirrored):
    """Inverse of the above: the shift (y, x) that acts after the turn by `theta` radians and the mirroring."""
    xp = array_module(theta)
    y, x = shift[..., 0], shift[..., 1]
    cosine, sine = xp.cos(theta), xp.sin(theta)
    turned = cosine * x + sine * y
    return xp.stack([cosine * y - sine * x, xp.where(mirrored, -turned, turned)], axis=-1)


def shift_samples(samples, shifts, grid):
    """Ring samples (p, K, Phi / 2) of images shifted by `shifts` (p, 2), (y, x) px."""
    xp = array_module(samples)
    innermost = dataclasses.replace(grid, n_rings=1)
    base = shift_phases(innermost, shifts, xp)[:, 0]
    result = xp.empty_like(samples)
    phase = base
    for ring in range(grid.n_rings):  # the radii are 1..K, so the phases are powers of the first ring's
        result[:, ring] = samples[:, ring] * phase
        phase = phase * base
    return result


def refine(particles, model, poses: Poses, space: SearchGrid, membership=None, rounds=2) -> Poses:
    """Poses to a fraction of the grid's step, with scores of all rings, best first.

    Each round fits a parabola to the scores of 5 x 5 shifts around the pose, then one to those of 13 turns; the
    next round's steps are a third as wide.
    """
    xp, shape = array_module(particles.samples), poses.label.shape
    templates = model.averages * model.weights[:, :, None]
    label, mirrored, theta = (array.reshape(-1) for array in (poses.label, poses.mirrored, poses.theta))
    shift, rows = poses.shift.reshape(-1, 2), xp.arange(label.size) // shape[1]
    block = max(1, _BLOCK_BYTES[xp.__name__] // (32 * particles.samples[0].size)) if label.size else 1
    parts = []
    for first in range(0, label.size, block):
        part = slice(first, first + block)
        chosen = templates[label[part]]
        chosen = xp.where(mirrored[part, None, None], chosen.conj(), chosen)
        samples = particles.samples[rows[part]]
        parts.append(_refine_pairs(samples, chosen, theta[part], shift[part], space, model.grid, rounds))
    theta, shift, score = (xp.concatenate(column) for column in zip(*parts))
    offsets = xp.take_along_axis(model.offsets(particles, membership), poses.label, 1)
    score = (score.reshape(shape) + offsets).astype(np.float32)
    return Poses(poses.label, poses.mirrored, theta.reshape(shape), shift.reshape(shape + (2,)), score).ranked()


def _refine_pairs(samples, chosen, theta, shift, space, grid, rounds):
    xp = array_module(samples)
    step, turn_step = space.step / 3.0, 2 * math.pi / space.n_turns / 4.0
    q = xp.arange(grid.n_harmonics, dtype=np.float32)
    weights = xp.asarray(grid.harmonic_weights.astype(np.float32))
    for _ in range(rounds):
        turned = samples_from_coefficients(chosen * xp.exp(-1j * theta[:, None] * q)[:, None], grid)
        product = shift_samples(samples, shift, grid) * turned.conj()
        axis = np.arange(-2, 3) * step
        offsets = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        phases = shift_phases(grid, offsets, xp).reshape(len(offsets), -1)
        scores = (product.reshape(len(samples), -1) @ phases.T).real
        shift = shift + _peak_of_plane(scores.reshape(-1, 5, 5)) * step
        length = xp.sqrt((shift * shift).sum(axis=1, keepdims=True))
        shift = shift * xp.minimum(space.max_shift / xp.maximum(length, 1e-6), 1.0)
        aligned = angular_coefficients(shift_samples(samples, shift, grid), grid)
        spectrum = (aligned * chosen.conj()).sum(axis=1) * weights * xp.exp(1j * theta[:, None] * q)
        turns = np.exp(1j * np.outer(np.arange(grid.n_harmonics), np.arange(-6, 7) * turn_step))
        scores = (spectrum @ xp.asarray(turns.astype(np.complex64))).real
        place, score = _peak_of_line(scores)
        theta = (theta + (place - 6.0) * turn_step).astype(np.float32)
        shift, step, turn_step = shift.astype(np.float32), step / 3.0, turn_step / 3.0
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
    """Offset (p, 2) from the middle of the maximum of each (5, 5) plane, in steps."""
    xp = array_module(scores)
    place = scores.reshape(len(scores), 25).argmax(axis=1)
    rows = xp.take_along_axis(scores, (place // 5)[:, None, None], 1)[:, 0]
    columns = xp.take_along_axis(scores, (place % 5)[:, None, None], 2)[:, :, 0]
    return xp.stack([_peak_of_line(columns)[0] - 2.0, _peak_of_line(rows)[0] - 2.0], axis=-1)
