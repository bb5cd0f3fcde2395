"""Scipion's sets of what the executors on particles report."""

from __future__ import annotations

import os

from pwem.objects import Transform

from xmipp_accel import convert


def fill_classes(classes, rows, matrices, kind, representatives):
    """Put each particle into the class of the reference that it fits best.

    Parameters
    ----------
    classes : SetOfClasses2D
        Empty, with its images set.
    rows : Particles
        As the executor wrote them: `item_id` of the particle, whose best row comes first, and `class_id` of its
        class. Particles without a row are in no class.
    matrices : (n, 4, 4) array
        Of the rows, for `Transform`.
    kind : {"projection", "2d"}
        Of the alignment.
    representatives : Particles
        The classes' images by `class_id`, with the particles' size and sampling rate.
    """
    best: dict[int, int] = {}
    for row, number in enumerate(rows.item_id):
        best.setdefault(int(number), row)
    place = {int(number): row for row, number in enumerate(representatives.class_id)}

    def update_item(item, _):
        row = best.get(item.getObjId())
        item.setClassId(0 if row is None else int(rows.class_id[row]))  # Scipion leaves out class 0
        if row is not None:
            update_aligned(item, rows, row, matrices[row])

    def update_class(group):
        (group.setAlignmentProj if kind == "projection" else group.setAlignment2D)()
        row = place[group.getObjId()]
        representative = group.getRepresentative()
        name = os.path.relpath(representatives.stack[row])
        representative.setLocation(int(representatives.index[row]) + 1, name)
        representative.setSamplingRate(representatives.sampling_rate)

    classes.classifyItems(updateItemCallback=update_item, updateClassCallback=update_class)


def update_aligned(item, rows, row, matrix):
    """Give a Scipion particle the pose, weight and correlation of one row."""
    item.setTransform(Transform(matrix))
    convert.set_attributes(item, weight=rows.weight[row], max_cc=rows.extra["maxCC"][row])
