"""What a 2D classification found for each particle, as columns and as files."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.io.particles import Particles
from xmipp_accel.io.tables import write_blocks

_NO_SCORE = 1e3  # what a class that was not compared counts as worse than the best one


def alternate(labels, parity) -> np.ndarray:
    """Half 0 or 1 for each particle, in turn within each class, so that both are there and of one size."""
    order = np.argsort(labels, kind="stable")
    halves = np.empty(len(labels), dtype=np.int64)
    halves[order] = (np.arange(len(labels)) + parity) % 2
    return halves


def columns_of(images, poses, weight=None) -> dict[str, np.ndarray]:
    """Columns for the rows that were wanted; one whose image cannot be used has the class -1.

    Parameters
    ----------
    images : Images
    poses : Poses
        (m, L) host arrays.
    weight : (m, L) float32 array, optional
        Shares in the classes of the poses, for the columns ``share_label`` and ``share``.
    """
    good = np.isin(images.wanted, images.rows, assume_unique=True)

    def spread(values, default=0):
        column = np.full((len(good), *values.shape[1:]), default, dtype=values.dtype)
        column[good] = values
        return column

    score = poses.score
    second = score[:, 1] if score.shape[1] > 1 else score[:, 0]
    second = np.where(np.isfinite(second), second, score[:, 0] - np.float32(_NO_SCORE))
    columns = dict(
        label=spread(poses.label[:, 0].astype(np.int32), -1),
        mirrored=spread(poses.mirrored[:, 0]),
        theta=spread(poses.theta[:, 0]),
        shift=spread(poses.shift[:, 0]),
        score=spread(score[:, 0]),
        pmax=spread(1 / np.exp(score - score[:, :1]).sum(axis=1)),
        margin=spread(score[:, 0] - second),
    )
    if weight is not None:
        columns.update(share_label=spread(poses.label.astype(np.int32)), share=spread(weight))
    return columns


def unusable_columns(images) -> dict[str, np.ndarray]:
    """Columns for rows none of which can be used."""
    count = len(images.wanted)
    zero = np.zeros(count, np.float32)
    columns = dict(theta=zero, shift=np.zeros((count, 2), np.float32), score=zero, pmax=zero, margin=zero)
    return dict(columns, label=np.full(count, -1, np.int32), mirrored=np.zeros(count, bool))


def join_columns(parts) -> dict[str, np.ndarray]:
    """Columns of all rows; a column that a part without a usable image lacks is zero there."""
    names = max(parts, key=len)

    def part_of(part, name):
        like = names[name]
        return part[name] if name in part else np.zeros((len(part["label"]), *like.shape[1:]), like.dtype)

    return {name: np.concatenate([part_of(part, name) for part in parts]) for name in names}


def classified_particles(particles, table) -> Particles:
    """Particles with class and pose, in the convention of `particle_alignment.poses`."""
    mirrored, used = table["mirrored"], table["label"] >= 0
    psi = np.rad2deg(np.where(mirrored, table["theta"], -table["theta"])).astype(np.float64)
    zero = np.zeros(len(particles))
    return dataclasses.replace(
        particles,
        rot=zero,
        tilt=zero,
        psi=np.where(used, psi, 0.0),
        shift_x=np.where(mirrored, -1.0, 1.0) * table["shift"][:, 1],
        shift_y=table["shift"][:, 0].astype(np.float64),
        flip=mirrored,
        class_id=table["label"] + 1,
        enabled=particles.enabled & used,
        has_pose=True,
        extra=dict(particles.extra, **{name: table[name] for name in ("score", "pmax", "margin")}),
    )


def write_shares(path, particles, table):
    """Publish the share of each particle in each of its classes, a row each, where it is above 0."""
    rows, columns = np.nonzero(table["share"])
    block = dict(
        particle=np.asarray(particles.item_id)[rows],
        rlnClassNumber=table["share_label"][rows, columns] + 1,
        share=table["share"][rows, columns],
    )
    write_blocks(path, {"shares": block})
