"""The pictures of the viewers and the HTML report; each function returns a `Figure` and opens no window."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure


def movie_traces(shifts, title="", uncertainty=None) -> Figure:
    """Path of the translations of one movie, and each component against the frame number.

    Parameters
    ----------
    shifts : (n_frames, 2) array
        Translations to apply, (y, x) in px of the input.
    title : str
    uncertainty : (n_frames, 2) array, optional
        Standard deviation of each shift, px.
    """
    shifts = np.asarray(shifts, dtype=float)
    figure = Figure(figsize=(9, 4), layout="constrained")
    path, components = figure.subplots(1, 2)
    path.plot(shifts[:, 1], shifts[:, 0], "-", color="0.6", lw=1)
    dots = path.scatter(
        shifts[:, 1], shifts[:, 0], c=np.arange(1, len(shifts) + 1), cmap="viridis", s=24, zorder=3
    )
    path.set(xlabel="x shift (px)", ylabel="y shift (px)", title=title)
    path.set_aspect("equal", adjustable="datalim")
    figure.colorbar(dots, ax=path, label="frame")
    frames = np.arange(1, len(shifts) + 1)
    for column, name in ((1, "x"), (0, "y")):
        error = None if uncertainty is None else np.asarray(uncertainty)[:, column]
        components.errorbar(frames, shifts[:, column], yerr=error, marker="o", ms=3, lw=1, label=name)
    components.set(xlabel="frame", ylabel="shift (px)")
    components.legend(frameon=False)
    return figure


def local_field(field, shape, shifts, title="", points=9, exaggeration=None) -> Figure:
    """Local motion, the global part removed, as trajectories on a grid over the micrograph.

    Parameters
    ----------
    field : callable
        ``field(y, x, t)`` gives the total translations (..., 2) in px at positions in px, frame index t.
    shape : (int, int)
        Height and width of the micrograph in px.
    shifts : (n_frames, 2) array
        The global translations, (y, x) in px.
    points : int
        Trajectories along each side.
    exaggeration : float, optional
        How much longer than true the trajectories are drawn; by default the longest fills one cell.
    """
    ny, nx = shape
    y, x = np.meshgrid(*(np.linspace(0.5, points - 0.5, points) * side / points for side in shape), indexing="ij")
    frames = np.arange(len(shifts))
    tracks = np.stack([np.asarray(field(y, x, t)) - shifts[t] for t in frames])
    tracks = tracks - tracks[0]
    longest = np.hypot(tracks[..., 0], tracks[..., 1]).max()
    if exaggeration is None:
        exaggeration = 0.8 * min(ny, nx) / points / max(longest, 1e-6)
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    for i in range(points):
        for j in range(points):
            track = tracks[:, i, j] * exaggeration
            axes.plot(x[i, j] + track[:, 1], y[i, j] + track[:, 0], lw=1, color="tab:blue")
            axes.plot(x[i, j], y[i, j], ".", ms=3, color="tab:red")
    axes.set(xlim=(0, nx), ylim=(0, ny), xlabel="x (px)", ylabel="y (px)")
    axes.set_title(f"{title} local motion up to {longest:.2f} px, drawn {exaggeration:.0f} times".strip())
    axes.set_aspect("equal")
    return figure


def micrograph_image(image, title="", width=600) -> Figure:
    """A micrograph, averaged down to about `width` px, contrast between its 1st and 99th percentile."""
    image = np.asarray(image, dtype=np.float32)
    step = max(1, image.shape[1] // width)
    height, length = (side // step * step for side in image.shape)
    small = image[:height, :length].reshape(height // step, step, length // step, step).mean(axis=(1, 3))
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    _show(axes, small, *np.percentile(small, (1, 99)))
    axes.set_title(title)
    return figure


def power_spectra(before, after, title="") -> Figure:
    """Power spectra of one micrograph, without alignment in the left half and with it in the right half.

    Parameters
    ----------
    before, after : (n, n) array
        Amplitudes with zero frequency at ``n // 2``.
    title : str
    """
    halves = np.where(np.arange(after.shape[1]) < after.shape[1] // 2, before, after)
    image = np.log(np.maximum(halves, 1e-6 * halves.max()))
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    _show(axes, image, *np.percentile(image, (5, 99.5)))
    axes.set_title(f"{title} unaligned | aligned".strip())
    return figure


def class_montage(images, labels=None, title="") -> Figure:
    """Images (n, y, x) side by side, each with its own contrast and label."""
    images = np.asarray(images)
    columns = max(1, int(np.ceil(np.sqrt(len(images) * 1.6))))
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.4 * columns, 1.6 * rows + 0.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for i, cell in enumerate(axes):
        cell.set_axis_off()
        if i < len(images):
            _show(cell, images[i], images[i].min(), images[i].max())
            cell.set_title(str(labels[i]) if labels is not None else str(i + 1), fontsize=8)
    figure.suptitle(title)
    return figure


def volume_slices(volume, sampling_rate, index=None) -> Figure:
    """Three orthogonal slices above the three projections along the same axes.

    Parameters
    ----------
    volume : (z, y, x) array
    sampling_rate : float
        A/px.
    index : int, optional
        Slice number; the central one by default.
    """
    volume = np.asarray(volume)
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    grid = figure.subplots(2, 3)
    for axis, name in enumerate("zyx"):
        position = volume.shape[axis] // 2 if index is None else index
        cut = np.take(volume, position, axis=axis)
        _show(grid[0, axis], cut, volume.min(), volume.max())
        grid[0, axis].set_title(f"{name} = {position}", fontsize=9)
        projection = volume.sum(axis=axis)
        _show(grid[1, axis], projection, projection.min(), projection.max())
        grid[1, axis].set_title(f"projection along {name}", fontsize=9)
    figure.suptitle(f"{' x '.join(map(str, volume.shape[::-1]))} voxels at {sampling_rate:.3g} A")
    return figure


def fsc_curves(curves, thresholds=(0.143, 0.5), resolution=0.0) -> Figure:
    """Fourier shell correlations.

    Parameters
    ----------
    curves : dict of str to (frequencies, values)
        Frequencies in 1/A.
    thresholds : sequence of float
        Dashed lines.
    resolution : float
        A, marked on the first of these lines; 0 for none.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, (frequencies, values) in curves.items():
        axes.plot(frequencies, values, label=label)
    for threshold in thresholds:
        axes.axhline(threshold, ls="--", lw=0.8, color="0.5")
    if resolution > 0:
        place = 1 / resolution, thresholds[0]
        axes.plot(*place, "o", color="black", ms=5)
        axes.annotate(f"{resolution:.2f} A at {thresholds[0]:g}", place, (6, 6), textcoords="offset points")
    axes.set(xlabel="spatial frequency (1/A)", ylabel="FSC", ylim=(-0.1, 1.05))
    axes.legend(frameon=False)
    return figure


def direction_plot(rot, tilt, weights=None) -> Figure:
    """Viewing directions on the sphere, both hemispheres, as a density in equal-area projection.

    Parameters
    ----------
    rot, tilt : (n,) array
        Degrees.
    """
    rot, tilt = np.deg2rad(rot), np.deg2rad(tilt)
    figure = Figure(figsize=(8, 4), layout="constrained")
    for side, (axes, name) in enumerate(zip(figure.subplots(1, 2), ("upper", "lower"))):
        chosen = (np.cos(tilt) >= 0) == (side == 0)
        polar = tilt[chosen] if side == 0 else np.pi - tilt[chosen]
        radius = np.sqrt(2) * np.sin(polar / 2)  # Lambert's equal-area projection: the rim is the equator
        axes.hexbin(
            radius * np.cos(rot[chosen]),
            radius * np.sin(rot[chosen]),
            C=None if weights is None else np.asarray(weights)[chosen],
            reduce_C_function=np.sum,
            gridsize=24,
            extent=(-1, 1, -1, 1),
            cmap="viridis",
            mincnt=1,
        )
        axes.set(title=f"{name} hemisphere, {int(chosen.sum())} particles", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        axes.set_aspect("equal")
        axes.set_axis_off()
    return figure


def _show(axes, image, low, high):
    axes.imshow(image, cmap="gray", vmin=low, vmax=high if high > low else low + 1, origin="lower")
    axes.set_xticks([])
    axes.set_yticks([])
