"""Where aligned particles look from, how well they fit and how far they were shifted."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from xmipp_accel import convert
from xmipp_accel.protocols import XmippAccelProtAlignSignificant
from xmipp_accel.report import figures
from xmipp_accel.viewers.base import AccelViewer


class XmippAccelAlignSignificantViewer(AccelViewer):
    """Shows the poses of aligned particles."""

    _targets = [XmippAccelProtAlignSignificant]
    _label = "align significant viewer"
    PICTURES = (
        ("directions", "Projection directions"),
        ("scores", "Correlations and shifts"),
        ("classes", "Classes of the references"),
        ("references", "Updated references"),
    )

    def figure_directions(self):
        particles = self.protocol.outputParticles
        if not particles.hasAlignmentProj():
            return "The particles were aligned to 2D references, which have no projection directions."
        poses = convert.particles_from_set(particles)
        return figures.direction_plot(poses.rot, poses.tilt)

    def figure_scores(self):
        particles = self.protocol.outputParticles
        poses = convert.particles_from_set(particles)
        scores = np.array([float(item._xmipp_maxCC) for item in particles.iterItems()])
        return score_figure(scores, np.stack([poses.shift_x, poses.shift_y], axis=1))

    def figure_classes(self):
        if not self.protocol.hasAttribute("outputClasses"):
            return "No classes were created in this run."
        classes = self.protocol.outputClasses
        sizes = {group.getObjId(): group.getSize() for group in classes.iterItems()}
        largest = sorted(sizes, key=lambda number: -sizes[number])[:100]
        averages = convert.references_from_set(classes)
        place = {int(number): row for row, number in enumerate(averages.class_id)}
        labels = [f"{number}: {sizes[number]}" for number in largest]
        return figures.class_montage(averages.images([place[number] for number in largest]), labels)

    def figure_references(self):
        if not self.protocol.hasAttribute("outputAverages"):
            return "The references were not updated in this run."
        references = convert.particles_from_set(self.protocol.outputAverages)
        shown = references.take(np.arange(min(100, len(references))))
        return figures.class_montage(shown.images(), shown.item_id)


def score_figure(scores, shifts) -> Figure:
    """Histogram of correlations, and the shifts (n, 2), (x, y) in px."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    histogram, plane = figure.subplots(1, 2)
    histogram.hist(scores, bins=50)
    histogram.set(xlabel="correlation", ylabel="particles")
    plane.plot(shifts[:, 0], shifts[:, 1], ".", ms=2)
    plane.set(xlabel="x shift (px)", ylabel="y shift (px)")
    plane.set_aspect("equal", adjustable="datalim")
    return figure
