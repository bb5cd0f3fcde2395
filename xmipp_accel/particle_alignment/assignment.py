"""From the scores of all pairs to rows of particles with poses, and to averages of each reference's particles."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.numerics.rotations import viewing_directions
from xmipp_accel.numerics.symmetry import view_symmetry
from xmipp_accel.particle_alignment.poses import apply_poses, opposite_view
from xmipp_accel.particle_alignment.significance import (
    PooledRanks,
    best_references,
    entropies,
    margins,
    neighbourhoods,
)

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
    """

    particles: Particles
    reference: np.ndarray
    mirrored: np.ndarray
    pose: np.ndarray
    first: np.ndarray


def assign(pairs, references, particles, parameters, independent) -> Rows:
    """Choose the references of each particle and weigh them.

    Parameters
    ----------
    pairs : PairScores
    references : References
    particles : Particles
    parameters : AlignSignificantParameters
    independent : float
        Number of independent data behind a correlation, for the entropy.
    """
    ranks = PooledRanks(pairs.score, _neighbours(references, parameters))
    votes = ranks.matrix(pairs.score) if parameters.use_weight else pairs.score
    particle, reference = best_references(votes, parameters.keep_best)
    score = pairs.score[particle, reference]
    weight = np.zeros(len(particle))
    for value in np.unique(reference):
        rows = np.flatnonzero(reference == value)
        weight[rows] = ranks.weights(value, score[rows])
    columns = dict(
        maxCC=score.astype(np.float64),
        weightSignificant=weight,
        imageIndex=particle + 1,
        margin=margins(pairs.score, particle, reference).astype(np.float64),
        entropy=entropies(pairs.score, independent)[particle],
    )
    where = particle, reference
    pose = np.column_stack([pairs.psi[where], pairs.shift_y[where], pairs.shift_x[where]]).astype(np.float64)
    mirrored = pairs.mirrored[where]
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
    return Rows(table, reference, mirrored, pose, first)


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
