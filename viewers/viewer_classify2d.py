"""Class averages side by side, and how the classification went."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.protocols import XmippAccelProtClassify2D
from xmipp_accel.report import figures
from xmipp_accel.viewers.base import AccelViewer


class XmippAccelClassify2DViewer(AccelViewer):
    """Shows class averages, the largest first."""

    _targets = [XmippAccelProtClassify2D]
    _label = "2D classification viewer"
    PICTURES = (
        ("montage", "Class averages"),
        ("convergence", "Convergence"),
        ("particles", "Particles of a class"),
    )

    def _define_choices(self, form):
        form.addParam("classId", params.IntParam, default=1, label="Class", help="For *Particles of a class*.")

    def figure_montage(self):
        groups = sorted(
            ((group.getSize(), group.getObjId()) for group in self.protocol.outputClasses.iterItems()),
            reverse=True,
        )
        averages = convert.particles_from_set(self.protocol.outputAverages)
        place = {int(number): row for row, number in enumerate(averages.item_id)}
        resolutions = self.protocol.results()[-1]["resolutions"]
        labels = [
            f"{number}: {size}" + (f", {resolutions[number - 1]:.0f} A" if resolutions[number - 1] else "")
            for size, number in groups
        ]
        return figures.class_montage(averages.images([place[number] for _, number in groups]), labels)

    def figure_convergence(self):
        objective = [value for result in self.protocol.results() for value in result["objective"]]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(np.arange(1, len(objective) + 1), objective, ".-")
        axes.set(xlabel="iteration", ylabel="mean log-likelihood gain of a particle")
        return figure

    def figure_particles(self):
        classes, number = self.protocol.outputClasses, self.classId.get()
        if number not in classes.getIdSet():
            return f"There is no class {number}."
        members = convert.particles_from_set(classes[number])
        shown = members.take(np.arange(min(60, len(members))))
        return figures.class_montage(shown.images(), shown.item_id, f"{len(members)} particles")
