"""From the scores of all pairs to rows of particles with poses, and to averages of each reference's particles."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.numerics.rotations import viewing_directions
from xmipp_accel.numerics.symmetry import view_symmetry
from xmipp_accel.particle_alignment.poses import apply_poses, opposite_view
from xmipp_accel.particle_alignment.significance import (
    PooledRanks,
    best_first,
    entropies,
    margins,
    neighbourhoods,
)
from xmipp_accel.particle_alignment.sweep import sweep

# References of a particle that are compared finely, at least: a number, and a share of a dense gallery.
_CANDIDATES, _CANDIDATE_SHARE = 128, 0.075
_REFINED = 4  # of them polished beyond those kept
_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Rows:
    """One row for each particle and reference that it is assigned to.

    Attributes
    ----------
    particles : Particles
        The input rows with the new poses and the columns maxCC, weightSignificant, imageIndex, margin and entropy;
        grouped by particle, best first.
    reference : (rows,) int64 array
        Place of the reference.
    mirrored : (rows,) bool array
        Whether the row fitted the reference's mirror image.
    pose : (rows, 3) float64 array
        In-plane angle (degrees), shift y and shift x (px) relative to that image of the reference.
    first : (rows,) bool array
        Whether the row is its particle's best.
    unusable : (n,) int64 array
        Places of the particles whose images are constant or not finite.
    """

    particles: Particles
    reference: np.ndarray
    mirrored: np.ndarray
    pose: np.ndarray
    first: np.ndarray
    unusable: np.ndarray


def assign(aligners, particles, references, parameters, progress=None, candidate_mask=None) -> Rows:
    """Align all particles, choose the references of each, and weigh them.

    Parameters
    ----------
    aligners : list of PolarAligner or of xmipp_accel.particle_alignment.compat.OriginalAligner
        One for each device; they share the particles.
    particles : Particles
    references : References
    parameters : AlignSignificantParameters
    progress : callable, optional
        Called as ``progress(done, total)``.
    candidate_mask : (n, R) bool array, optional
        False excludes a pair.
    """
    if candidate_mask is not None:
        candidate_mask = np.asarray(candidate_mask, dtype=bool)
        if candidate_mask.shape != (len(particles), len(references)):
            expected = f"{len(particles)} particles x {len(references)} references"
            raise ParameterError(f"candidate_mask: expected {expected}, found shape {candidate_mask.shape}")
    sweeps = 2 if parameters.use_weight else 1
    report = _Report(progress, sweeps, len(particles))
    ranks = PooledRanks(_neighbours(references, parameters))

    def compare(aligner, rows):
        allowed = None if candidate_mask is None else candidate_mask[rows]
        return aligner.compare(particles.take(np.arange(rows.start, rows.stop)), allowed)

    def count(aligner, rows):
        return [compare(aligner, rows).score]

    def choose(aligner, rows):
        compared = compare(aligner, rows)
        votes = ranks.matrix(compared.score) if parameters.use_weight else compared.score
        chosen = _choose(compared, votes, parameters, aligner.independent)
        return [(dataclasses.replace(chosen, particle=chosen.particle + rows.start), compared.score)]

    if parameters.use_weight:
        for score in sweep(aligners, len(particles), count, report):
            ranks.add(score)
    parts = []
    for chosen, score in sweep(aligners, len(particles), choose, report):
        if not parameters.use_weight:
            ranks.add(score)
        parts.append(chosen)
    return _rows(_Chosen.join(parts), ranks, references, particles)


class _Report:
    """Progress over particles although there may be two passes over them."""

    def __init__(self, progress, sweeps, total):
        self._progress, self._sweeps, self._total, self._done = progress, sweeps, total, 0

    def __call__(self, count):
        self._done += count
        if self._progress is not None:
            self._progress(self._done // self._sweeps, self._total)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Rows as arrays: the score that is ranked, then the pose and its score; and which particles are useful."""

    particle: np.ndarray
    reference: np.ndarray
    rank_score: np.ndarray
    score: np.ndarray
    psi: np.ndarray
    shift_y: np.ndarray
    shift_x: np.ndarray
    mirrored: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    useful: np.ndarray

    @classmethod
    def join(cls, parts) -> _Chosen:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _choose(compared, votes, parameters, independent) -> _Chosen:
    """The references of the particles of one batch."""
    n_references = votes.shape[1]
    keep = min(parameters.keep_best, n_references)
    count = max(_CANDIDATES, math.ceil(_CANDIDATE_SHARE * n_references), 2 * keep)
    candidates = best_first(votes, min(n_references, count))
    poses = compared.poses(candidates)
    if not parameters.use_weight:
        candidates, poses = _sorted(candidates, poses)
    if parameters.refine:
        refined = min(candidates.shape[1], keep + _REFINED)
        rest, candidates = poses.score[:, refined:], candidates[:, :refined]
        poses = compared.polished(candidates, poses.take(np.broadcast_to(np.arange(refined), candidates.shape)))
        if not parameters.use_weight:
            candidates, poses = _sorted(candidates, poses)
        others = np.concatenate([poses.score, rest], axis=1)
    else:
        others = poses.score
    particle, place = np.nonzero(np.take_along_axis(votes, candidates, axis=1)[:, :keep] > 0)
    where = particle, place
    reference = candidates[where]
    return _Chosen(
        particle=particle,
        reference=reference,
        rank_score=compared.score[particle, reference],
        **{field.name: getattr(poses, field.name)[where] for field in dataclasses.fields(poses)},
        margin=margins(others)[where],
        entropy=entropies(compared.score, independent)[particle],
        useful=compared.useful,
    )


def _sorted(candidates, poses):
    order = np.argsort(-poses.score, axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1), poses.take(order)


def _rows(chosen, ranks, references, particles) -> Rows:
    particle, reference, mirrored = chosen.particle, chosen.reference, chosen.mirrored
    weight = ranks.weights(reference, chosen.rank_score)
    columns = dict(
        maxCC=chosen.score.astype(np.float64),
        weightSignificant=weight,
        imageIndex=particle + 1,
        margin=chosen.margin.astype(np.float64),
        entropy=chosen.entropy,
    )
    pose = np.column_stack([chosen.psi, chosen.shift_y, chosen.shift_x]).astype(np.float64)
    table = particles.take(particle)
    table = dataclasses.replace(
        table,
        **_pose_columns(references, reference, pose, mirrored),
        weight=weight,
        class_id=references.labels[reference],
        enabled=True,
        has_pose=True,
        extra={**table.extra, **columns},
    )
    first = np.ones(len(particle), bool)
    first[1:] = particle[1:] != particle[:-1]
    return Rows(table, reference, mirrored, pose, first, np.flatnonzero(~chosen.useful))


def _neighbours(references, parameters):
    if references.kind == "2d":
        return [np.array([place]) for place in range(len(references))]
    group = view_symmetry(parameters.symmetry) if parameters.symmetric_neighbours else None
    return neighbourhoods(viewing_directions(references.rot, references.tilt), parameters.angular_distance, group)


def _pose_columns(references, reference, pose, mirrored):
    psi = pose[:, 0] + references.psi[reference]
    rot, tilt = references.rot[reference], references.tilt[reference]
    shift_x = pose[:, 2].copy()
    if references.kind == "2d":
        # The pose of the mirrored particle relative to the reference as it is.
        psi, shift_x = np.where(mirrored, -psi, psi), np.where(mirrored, -shift_x, shift_x)
        flip = mirrored
    else:
        if mirrored.any():
            turned = (pose[:, 0] - references.psi[reference])[mirrored]
            rot[mirrored], tilt[mirrored], psi[mirrored] = opposite_view(rot[mirrored], tilt[mirrored], turned)
        flip = np.zeros(len(mirrored), bool)
    psi = (psi + 180.0) % 360.0 - 180.0
    return dict(rot=rot, tilt=tilt, psi=psi, shift_y=pose[:, 1], shift_x=shift_x, flip=flip)


def write_updated_references(folder, rows, references, device):
    """Average the particles of each reference, weighted, and publish ``references.mrcs`` and ``references.xmd``.

    Each average is ``sum w x / sum w`` of its own particles; a reference without particles becomes zero.

    Returns
    -------
    pathlib.Path
        Of the table; its `class_id` is the reference's number and ``classCount`` counts its particles.
    """
    table = rows.particles
    box = table.box
    sums = np.zeros((len(references), box, box))
    for start in range(0, len(table), _BATCH):
        part = np.arange(start, min(start + _BATCH, len(table)))
        psi, shift_y, shift_x = rows.pose[part].T
        sign = np.where(rows.mirrored[part], -1.0, 1.0)
        images = device.asarray(table.images(part), np.float32)
        aligned = to_host(apply_poses(images, sign * psi, sign * shift_x, shift_y, rows.mirrored[part]))
        np.add.at(sums, rows.reference[part], aligned * table.weight[part, None, None])
    total = np.bincount(rows.reference, table.weight, len(references))
    averages = sums / np.maximum(total, 1e-30)[:, None, None]
    stack = folder / "references.mrcs"
    write_stack(stack, averages.astype(np.float32), table.sampling_rate)
    count = np.bincount(rows.reference, minlength=len(references))
    written = Particles(
        stack=[str(stack)] * len(references),
        index=np.arange(len(references)),
        rot=references.rot,
        tilt=references.tilt,
        psi=references.psi,
        weight=total,
        class_id=references.labels,
        enabled=total > 0,
        sampling_rate=table.sampling_rate,
        has_pose=references.kind == "projection",
        extra=dict(classCount=count),
    )
    write_particles(folder / "references.xmd", written)
    return folder / "references.xmd"
