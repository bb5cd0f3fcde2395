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
from xmipp_accel.particle_alignment.classify2d_refine import aligned_harmonics, refine_pairs
from xmipp_accel.particle_alignment.classify2d_scan import make_scan, shifted_templates
from xmipp_accel.particle_alignment.polar import PolarGrid

_SHIFTS_PER_PERIOD = 3.0  # of the outermost ring of the search; two lose a tenth of the particles at SNR 0.3


@dataclasses.dataclass(frozen=True)
class SearchGrid:
    """Rings, turns and shifts of the exhaustive search.

    Attributes
    ----------
    n_rings, n_harmonics : int
        The part of the harmonics that takes part.
    n_turns : int
        A multiple of 4; turns are multiples of ``2 pi / n_turns``.
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

    def inner(self, grid) -> PolarGrid:
        """The part of a grid that takes part."""
        return dataclasses.replace(grid, n_rings=self.n_rings, n_harmonics=self.n_harmonics)


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
    return SearchGrid(n_rings, n_harmonics, 4 * math.ceil(0.575 * n_harmonics), shifts[inside], step, max_shift)


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
        self._scan = make_scan(shifted_templates(model, space, mirrors), space)

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
        if previous is not None:
            poses = self._without_repeats(poses, previous).joined(previous)
        return self.refine(particles, poses, membership, rounds, budget)

    def _without_repeats(self, poses, previous):
        """The poses without the scores of those that the first of the previous ones is nearly the same as.

        Both lie on the flank of one peak, which refinement would climb twice.
        """
        xp, space = array_module(poses.score), self.space
        first = previous.best()
        turn = xp.abs(xp.remainder(poses.theta - first.theta + np.float32(math.pi), 2 * math.pi) - math.pi)
        away = xp.sqrt(((poses.shift - first.shift) ** 2).sum(axis=2))
        again = (poses.label == first.label) & (poses.mirrored == first.mirrored)
        again &= (turn < 2 * math.pi / space.n_turns) & (away < space.step)
        return dataclasses.replace(poses, score=xp.where(again, np.float32(-np.inf), poses.score))

    def coarse(self, particles, count, membership=None, centre=None, budget=1 << 30) -> Poses:
        """Best pose for each of the `count` best classes of every particle, to the precision of the grid.

        The grid of shifts lies about `centre` (m, 2) px. Scores are those of the first ``space.n_rings`` rings.
        """
        xp, space = array_module(particles.samples), self.space
        offsets = self.model.offsets(particles, membership, space.n_rings)
        block = max(1, budget // self._scan.bytes_for_one)
        parts = []
        for first in range(0, len(particles), block):
            part = slice(first, first + block)
            rings = self._rings(particles, part, centre, budget)
            found = self._scan.best(rings, offsets[part], min(count, len(self.model)))
            label, mirrored, place, turn, score = found
            theta = (turn * (2 * math.pi / space.n_turns)).astype(np.float32)
            shift = _to_particle_frame(xp.asarray(space.shifts)[place], theta, mirrored)
            shift = shift if centre is None else shift + centre[part, None]
            parts.append(Poses(label, mirrored, theta, shift.astype(np.float32), score.astype(np.float32)))
        return concatenate_poses(parts, 0)

    def _rings(self, particles, part, centre, budget):
        """Harmonics of the rings that are searched of some particles, moved by `centre` if it is given."""
        space = self.space
        if centre is None:
            return particles.coefficients[part, : space.n_rings, : space.n_harmonics]
        xp, centre = array_module(centre), centre[part]
        samples, zero = particles.samples[part, : space.n_rings], xp.zeros(len(centre), np.float32)
        inner, rows = space.inner(particles.grid), xp.arange(len(centre))
        return aligned_harmonics(samples, rows, zero, centre, zero > 0, inner, budget)

    def refine(self, particles, poses: Poses, membership=None, rounds=2, budget=1 << 30) -> Poses:
        """Poses to a fraction of the grid's step, with scores of all rings, best first, after some rounds.

        Those without a finite score stay as they are.
        """
        xp, model = array_module(particles.samples), self.model
        templates = model.averages * model.weights[:, :, None]
        theta, shift, score = poses.theta.copy(), poses.shift.copy(), poses.score.copy()
        at = xp.nonzero(xp.isfinite(score))
        theta[at], shift[at], score[at] = refine_pairs(
            particles, at[0], templates, poses.label[at], poses.mirrored[at], theta[at], shift[at], self.space,
            rounds, budget,
        )  # fmt: skip
        score += xp.take_along_axis(model.offsets(particles, membership), poses.label, 1)
        return Poses(poses.label, poses.mirrored, theta, shift, score).ranked()


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
