"""A map in slices, projections and as a surface, its FSC, and the directions that it was made of."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure
from pwem.viewers import Chimera, ChimeraView
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.protocols import XmippAccelProtReconstructFourier
from xmipp_accel.report import figures
from xmipp_accel.viewers.base import AccelViewer


class XmippAccelReconstructFourierViewer(AccelViewer):
    """Shows the map without any program but Scipion's Python; offers ChimeraX where it is installed."""

    _targets = [XmippAccelProtReconstructFourier]
    _label = "reconstruct fourier viewer"
    PICTURES = (
        ("slices", "Slices and projections"),
        ("surface", "Surface"),
        ("fsc", "FSC of the half maps"),
        ("directions", "Projection directions"),
    )

    def _define_choices(self, form):
        form.addParam("sliceNumber", params.IntParam, default=-1, label="Slice", help="-1 is the central one.")
        form.addParam(
            "surfaceLevel",
            params.FloatParam,
            default=3.0,
            label="Surface level",
            help="Standard deviations above the mean.",
        )
        if os.path.exists(Chimera.getProgram() or ""):
            form.addParam("chimera", params.LabelParam, label="Open in ChimeraX", help="The map.")

    def _getVisualizeDict(self):
        actions = super()._getVisualizeDict()
        return {**actions, "chimera": self._open_chimera} if self.hasAttribute("chimera") else actions

    def _open_chimera(self, name):
        return [ChimeraView(os.path.abspath(self.protocol.outputVolume.getFileName()))]

    def _volume(self):
        return read_volume(self.protocol.outputVolume.getFileName())

    def figure_slices(self):
        volume, sampling_rate = self._volume()
        index = self.sliceNumber.get()
        if index >= len(volume):
            return f"The map has {len(volume)} slices, counted from 0."
        return figures.volume_slices(volume, sampling_rate, None if index < 0 else index)

    def figure_surface(self):
        volume, sampling_rate = self._volume()
        return surface_figure(volume, sampling_rate, self.surfaceLevel.get())

    def figure_fsc(self):
        result = self.protocol.result()
        if not result["frequencies"]:
            return "The run made no half maps."
        curves = {name: (result["frequencies"], result[f"fsc_{name}"]) for name in ("masked", "unmasked")}
        return figures.fsc_curves(curves)

    def figure_directions(self):
        poses = convert.particles_from_set(self.protocol.inputParticles.get())
        return figures.direction_plot(poses.rot, poses.tilt)


def surface_figure(volume, sampling_rate, sigmas):
    """Surface of a map (z, y, x) `sigmas` standard deviations above its mean, or why there is none."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection
    from skimage.measure import marching_cubes

    step = max(1, len(volume) // 64)  # matplotlib draws every triangle by itself
    level = volume.mean() + sigmas * volume.std()
    if not volume.min() < level < volume.max():
        return f"No voxel lies {sigmas:g} standard deviations above the mean."
    vertices, faces, normals, _ = marching_cubes(volume, level, step_size=step)
    vertices, normals = vertices[:, ::-1] * sampling_rate, normals[:, ::-1]
    shade = 0.35 + 0.65 * np.abs(normals[faces].mean(axis=1) @ np.array([0.4, -0.6, 0.69]))
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    colours = np.clip(shade, 0, 1)[:, None] * np.array([0.45, 0.68, 0.85])
    axes.add_collection3d(Poly3DCollection(vertices[faces], facecolors=colours))
    size = len(volume) * sampling_rate
    axes.set(xlim=(0, size), ylim=(0, size), zlim=(0, size), xlabel="x (A)", ylabel="y (A)", zlabel="z (A)")
    axes.set_box_aspect((1, 1, 1))
    return figure
