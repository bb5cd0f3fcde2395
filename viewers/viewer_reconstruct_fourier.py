"""A map in slices, projections and as a surface, its FSC, coverage and errors, and its particles' directions."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure
from pwem.viewers import Chimera, ChimeraView
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.protocols import XmippAccelProtReconstructFourier
from xmipp_accel.reconstruction.coverage import hemisphere
from xmipp_accel.report import figures
from xmipp_accel.viewers.base import AccelViewer

CURVES = "corrected", "masked", "unmasked", "randomised"
NO_GROUPS = "The run made no groups of particles: see the parameter Groups for errors."


class XmippAccelReconstructFourierViewer(AccelViewer):
    """Shows the map without any program but Scipion's Python; offers ChimeraX where it is installed."""

    _targets = [XmippAccelProtReconstructFourier]
    _label = "reconstruct fourier viewer"
    PICTURES = (
        ("slices", "Slices and projections"),
        ("surface", "Surface"),
        ("fsc", "FSC of the half maps"),
        ("directions", "Projection directions"),
        ("coverage", "Coverage of Fourier space"),
        ("errors", "Standard errors"),
        ("growth", "Resolution against particles"),
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
        # There is a map before the output, while particles arrive.
        return read_volume(self.protocol._getExtraPath(self.protocol.result()["volume"]))

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
        curves = {name: (result["frequencies"], result[f"fsc_{name}"]) for name in CURVES}
        return figures.fsc_curves(curves, resolution=result["resolution"])

    def figure_directions(self):
        poses = convert.particles_from_set(self.protocol.inputParticles.get())
        return figures.direction_plot(poses.rot, poses.tilt)

    def figure_coverage(self):
        return coverage_figure(self.protocol.result()["coverage"])

    def figure_errors(self):
        result = self.protocol.result()
        if not result["error_map"]:
            return NO_GROUPS
        errors, _ = read_volume(self.protocol._getExtraPath(result["error_map"]))
        return error_figure(errors, result)

    def figure_growth(self):
        growth = self.protocol.result()["growth"]
        return growth_figure(growth) if growth else NO_GROUPS


def coverage_figure(coverage):
    """Weights by direction, on one hemisphere in equal-area projection, and by shell."""
    x, y, z = hemisphere().T
    scale = 1 / np.sqrt(1 + z)  # Lambert's projection: the rim is the equator
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    sphere, shells = figure.subplots(1, 2)
    highest = max(2.0, np.percentile(coverage["directions"], 99))
    dots = sphere.scatter(x * scale, y * scale, c=coverage["directions"], s=22, vmin=0, vmax=highest)
    figure.colorbar(dots, ax=sphere, label="coverage (mean 1)")
    sphere.set(xlabel="x", ylabel="y", xticks=[], yticks=[])
    sphere.set_title(f"SCF {coverage['scf']:.2f}, {coverage['empty_directions']:.1%} of the directions empty")
    sphere.set_aspect("equal")
    frequencies = coverage["frequencies"][1:]
    for name in ("mean", "minimum"):
        shells.semilogy(frequencies, np.maximum(coverage[name][1:], 1e-3), label=f"{name} weight")
    share = shells.twinx()
    share.plot(frequencies, coverage["empty"][1:], "--", color="0.5", label="empty fraction")
    share.set(ylim=(0, 1.02), ylabel="empty fraction")
    shells.set(xlabel="spatial frequency (1/A)", ylabel="weight")
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    return figure


def error_figure(errors, result):
    """Central slices of the standard error (z, y, x), and the relative error of each shell."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    picture, shells = figure.subplots(1, 2)
    image = picture.imshow(errors[len(errors) // 2], cmap="viridis", origin="lower")
    figure.colorbar(image, ax=picture, label="standard error")
    picture.set(title=f"z = {len(errors) // 2}", xticks=[], yticks=[])
    frequencies = np.arange(len(result["relative_error"])) / (result["box"] * result["sampling_rate"])
    shells.plot(frequencies[1:], result["relative_error"][1:])
    shells.set(xlabel="spatial frequency (1/A)", ylabel="standard error / amplitude", ylim=(0, None))
    return figure


def growth_figure(growth):
    """1 / d^2 against the number of particles, with the line of the B factor."""
    particles, resolutions = (np.asarray(growth[name], dtype=float) for name in ("particles", "resolutions"))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(particles, 1 / resolutions**2, "o")
    if growth["b_factor"]:
        line = 2 / growth["b_factor"] * np.log(particles)
        axes.semilogx(particles, line + np.mean(1 / resolutions**2 - line), "-", lw=1)
        axes.set_title(f"B factor {growth['b_factor']:.0f} A$^2$")
    for number, resolution in zip(particles, resolutions):
        axes.annotate(f"{resolution:.2f} A", (number, 1 / resolution**2), (4, 4), textcoords="offset points")
    axes.set(xlabel="particles", ylabel="1 / resolution$^2$ (1/A$^2$)")
    return figure


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
