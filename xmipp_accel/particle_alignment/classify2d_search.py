"""Poses of particles relative to class averages: an exhaustive search on a grid, then local refinement.

A pose is a shift of the particle, applied first, and a turn by ``theta``, both in the particle's frame; in
harmonics the aligned particle is ``exp(i q theta) F_s[k, q]``, mirrored by conjugation afterwards if the template
is a mirrored one. See :mod:`xmipp_accel.particle_alignment.polar` for the harmonics.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from xmipp_accel.backend import array_module
from xmipp_accel.particle_alignment.classify2d_poses import Poses, concatenate_poses
from xmipp_accel.particle_alignment.polar import (
    PolarGrid,
    angular_coefficients,
    samples_from_coefficients,
    shift_phases,
)

_SHIFTS_PER_PERIOD = 3.0  # of the outermost ring of the search; two lose a tenth of the particles at SNR 0.3


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
        (y, x), px, in the frame of the average; of the particle as it is, or moved to where it was found before.
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


def search_grid(grid: PolarGrid, n_rings: int, max_shift: float, near=False) -> SearchGrid:
    """Grid that is fine enough for the first `n_rings` rings.

    Its shifts reach `max_shift` px, or, with `near`, only the neighbours of no shift.
    """
    n_rings = min(n_rings, grid.n_rings)
    n_harmonics = min(grid.n_harmonics, math.ceil(grid.n_harmonics * (n_rings + 1) / grid.n_rings))
    step = grid.box / (_SHIFTS_PER_PERIOD * n_rings)
    radius = min(max_shift, 1.5 * step) if near else max_shift
    reach = math.floor(radius / step + 1e-9)
    axis = np.arange(-reach, reach + 1) * step
    shifts = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = np.hypot(*shifts.T) <= radius + 1e-9
    return SearchGrid(n_rings, n_harmonics, 2 * math.ceil(1.15 * n_harmonics), shifts[inside], step, max_shift)


class PoseSearch:
    """Search among the classes of one model, on the device that holds it.

    Parameters
    ----------
    model : ClassModel
    space : SearchGrid
    mirrors : bool
        Try mirrored averages too.
    """

    def __init__(self, model, space: SearchGrid, mirrors=False):
        self.model, self.space = model, space
        self._sets = 2 if mirrors else 1
        self._shifted = _shifted_templates(model, space, mirrors)
        self._turns = _turn_matrices(space, array_module(model.averages))

    def poses(
        self, particles, count, membership=None, previous=None, near=False, rounds=2, budget=1 << 30
    ) -> Poses:
        """The best poses of each particle, in the `count` best classes, refined.

        Parameters
        ----------
        particles : PreparedParticles
        count : int
        membership : (m, C) array, optional
            As `ClassModel.offsets` takes it.
        previous : Poses, optional
            Further candidates.
        near : bool
            Let the grid of shifts lie about the first of the previous poses.
        rounds : int
            As for :meth:`refine`.
        budget : int
            Bytes that one intermediate array may take.
        """
        poses = self.coarse(particles, count, membership, previous.shift[:, 0] if near else None, budget)
        poses = poses if previous is None else poses.joined(previous)
        return self.refine(particles, poses, membership, rounds, budget)

    def coarse(self, particles, count, membership=None, centre=None, budget=1 << 30) -> Poses:
        """Best pose for each of the `count` best classes of every particle, to the precision of the grid.

        The grid of shifts lies about `centre` (m, 2) px. Scores are those of the first ``space.n_rings`` rings.
        """
        xp, space = array_module(particles.samples), self.space
        offsets = self.model.offsets(particles, membership, space.n_rings)
        block = max(1, budget // (8 * space.n_harmonics * self._shifted.shape[-1]))
        parts = []
        for first in range(0, len(particles), block):
            part = slice(first, first + block)
            rings = particles.coefficients[part, : space.n_rings]
            if centre is not None:
                inner = dataclasses.replace(particles.grid, n_rings=space.n_rings)
                moved = shift_samples(particles.samples[part, : space.n_rings], centre[part], inner)
                rings = angular_coefficients(moved, inner)
            rings = xp.ascontiguousarray(rings[:, :, : space.n_harmonics].transpose(2, 0, 1))
            poses = self._block(rings, offsets[part], min(count, len(self.model)))
            if centre is not None:
                poses = dataclasses.replace(poses, shift=poses.shift + centre[part, None])
            parts.append(poses)
        return concatenate_poses(parts, 0)

    def _block(self, rings, offsets, count):
        xp, space, n_classes, n_shifts = array_module(rings), self.space, len(self.model), len(self.space.shifts)
        cosine, sine = self._turns
        real_rows = xp.concatenate([rings.real, -rings.imag], axis=2)
        imaginary_rows = xp.concatenate([rings.imag, rings.real], axis=2)
        # Real products: a strided real part of a complex one would miss the fast matrix product below.
        even = cosine @ xp.matmul(real_rows, self._shifted).reshape(space.n_harmonics, -1)
        odd = sine @ xp.matmul(imaginary_rows, self._shifted).reshape(space.n_harmonics, -1)
        # The turns theta and -theta share both products: their scores are even - odd and even + odd.
        peak = (even + xp.abs(odd)).max(axis=0).reshape(-1, self._sets * n_shifts, n_classes).transpose(0, 2, 1)
        place = peak.argmax(axis=2)
        score = xp.take_along_axis(peak, place[..., None], 2)[..., 0] + offsets
        top = xp.argsort(-score, axis=1)[:, :count]
        place = xp.take_along_axis(place, top, 1)
        column = xp.arange(rings.shape[1])[:, None] * self._shifted.shape[-1] + place * n_classes + top
        half = space.n_turns // 2 + 1
        turn = xp.concatenate([even[:, column] - odd[:, column], even[:, column] + odd[:, column]]).argmax(axis=0)
        turn = xp.where(turn < half, turn, half - turn)
        theta = (turn * (2 * math.pi / space.n_turns)).astype(np.float32)
        mirrored = place >= n_shifts
        shift = _to_particle_frame(xp.asarray(space.shifts)[place % n_shifts], theta, mirrored)
        score = xp.take_along_axis(score, top, 1).astype(np.float32)
        return Poses(top, mirrored, theta, shift.astype(np.float32), score)

    def refine(self, particles, poses: Poses, membership=None, rounds=2, budget=1 << 30) -> Poses:
        """Poses to a fraction of the grid's step, with scores of all rings, best first.

        Each round fits a parabola to the scores of 5 x 5 shifts around the pose, then one to those of 13 turns;
        the next round's steps are a third as wide.
        """
        xp, shape, model = array_module(particles.samples), poses.label.shape, self.model
        templates = model.averages * model.weights[:, :, None]
        label, mirrored, theta = (array.reshape(-1) for array in (poses.label, poses.mirrored, poses.theta))
        shift, rows = poses.shift.reshape(-1, 2), xp.arange(label.size) // shape[1]
        block = max(1, budget // (32 * particles.samples[0].size))
        parts = []
        for first in range(0, label.size, block):
            part = slice(first, first + block)
            chosen = templates[label[part]]
            chosen = xp.where(mirrored[part, None, None], chosen.conj(), chosen)
            samples = particles.samples[rows[part]]
            parts.append(_refine_pairs(samples, chosen, theta[part], shift[part], self.space, model.grid, rounds))
        theta, shift, score = (xp.concatenate(column) for column in zip(*parts))
        offsets = xp.take_along_axis(model.offsets(particles, membership), poses.label, 1)
        score = (score.reshape(shape) + offsets).astype(np.float32)
        theta, shift = theta.reshape(shape), shift.reshape(shape + (2,))
        return Poses(poses.label, poses.mirrored, theta, shift, score).ranked()


def _shifted_templates(model, space, mirrors):
    """Conjugated templates, shifted back, times the harmonics' weights.

    Returns
    -------
    (Q, 2 K, sets * S * C) float32 array; the real parts of all rings precede the imaginary ones.
    """
    xp, grid = array_module(model.averages), model.grid
    samples = samples_from_coefficients(model.averages * model.weights[:, :, None], grid)[:, : space.n_rings]
    shifted = xp.empty((len(space.shifts), len(model), space.n_rings, space.n_harmonics), dtype=np.complex64)
    for number, shift in enumerate(space.shifts):  # one at a time, as the samples need several times the memory
        phases = shift_phases(grid, -shift, xp)[: space.n_rings]
        shifted[number] = angular_coefficients(samples * phases, grid)[..., : space.n_harmonics]
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
    return samples * shift_phases(grid, shifts, array_module(samples))


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
