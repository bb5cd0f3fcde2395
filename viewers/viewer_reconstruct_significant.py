"""An initial volume, how its starts came along, and the directions of the images."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure

from xmipp_accel.io.particles import read_particles
from xmipp_accel.protocols import XmippAccelProtReconstructSignificant
from xmipp_accel.report import figures
from xmipp_accel.viewers.viewer_reconstruct_fourier import XmippAccelReconstructFourierViewer


class XmippAccelReconstructSignificantViewer(XmippAccelReconstructFourierViewer):
    """Shows the volume as that of a reconstruction, and the convergence."""

    _targets = [XmippAccelProtReconstructSignificant]
    _label = "reconstruct significant viewer"
    PICTURES = (
        ("slices", "Slices and projections"),
        ("surface", "Surface"),
        ("convergence", "Convergence"),
        ("directions", "Projection directions"),
    )

    def figure_convergence(self):
        result = self.protocol.result()
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for number, start in enumerate(result["starts"]):
            kept = number == result["best_start"]
            curve = [iteration["mean_cc"] for iteration in start["iterations"]]
            axes.plot(np.arange(1, len(curve) + 1), curve, "-", color="C0" if kept else "0.7", zorder=1 + kept)
        finer = [iteration["mean_cc"] for iteration in result["iterations"]]
        axes.plot(np.arange(len(curve) + 1, len(curve) + len(finer) + 1), finer, ".-", color="C1")
        axes.set(
            xlabel="iteration", ylabel="mean correlation", title="Starts, and the best one at finer resolution"
        )
        return figure

    def figure_directions(self):
        poses = read_particles(os.path.join(self.protocol._getExtraPath(), "aligned.xmd"))
        return figures.direction_plot(poses.rot, poses.tilt)
