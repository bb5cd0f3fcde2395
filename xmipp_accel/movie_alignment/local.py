"""Local alignment: measure patches, fit the smooth model, repeat."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.movie_alignment.model import LocalModel, Stiffness, robust_factors
from xmipp_accel.movie_alignment.patches import frame_groups, measure_patches
from xmipp_accel.movie_alignment.spectra import gaussian
from xmipp_accel.movie_alignment.whole_frame import combined_weight
from xmipp_accel.numerics import bspline

# Low-pass (A, half amplitude) of the early rounds, which widens their capture; 0 uses all that was measured.
ROUNDS = (20.0, 10.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class LocalAlignment:
    """Shifts of frames and the B-spline added to them; see `MovieAlignmentResult`.

    Attributes
    ----------
    shifts : ndarray, shape (n, 2)
    control_points : ndarray, shape (nt, ny, nx, 2)
    gain : float
        Cross-validated: the part of the patches' motion, noise included, that the model predicts.
    residual : float
        Weighted rms difference between patches and model, px.
    stiffness : Stiffness
    """

    shifts: np.ndarray
    control_points: np.ndarray
    gain: float
    residual: float
    stiffness: Stiffness


def align_locally(images, times, grid, whole, parameters, sampling_rate, lengths, n_control):
    """Refine the shifts of whole frames by a field that varies over the frame.

    Parameters
    ----------
    images : array, shape (n, my, mx)
        Frames on the working grid, not shifted.
    times : ndarray of int, shape (n,)
        Which of the movie's aligned frames they are; blank ones are missing.
    grid : PatchGrid
    whole : WholeFrameAlignment
        Of the same frames.
    parameters : MovieAlignmentParameters
    sampling_rate : float
        A/px of the movie.
    lengths : (float, float, float)
        Frames, height and width of the movie.
    n_control : (int, int, int)

    Returns
    -------
    LocalAlignment
    """
    groups = frame_groups(len(images), parameters.group_frames)
    edges = tuple(grid.size * p for p in grid.pixel)
    centres = [times[g].mean() for g in groups]
    model = LocalModel(n_control, lengths, grid.positions, edges, centres)
    shifts, points, spectrum = np.array(whole.shifts), np.zeros((*n_control, 2)), whole.spectrum
    stiffness, gain, residual = Stiffness(1.0, 1.0), 0.0, 0.0
    for resolution in ROUNDS:
        field = shifts[:, None] + _at_patches(points, grid, times, lengths)
        weight = _weight(spectrum, sampling_rate, parameters.max_resolution, resolution)
        found = measure_patches(images, grid, field, groups, weight, _reach(resolution, sampling_rate))
        values = found.shifts + _at_patches(points, grid, centres, lengths).swapaxes(0, 1)
        information = np.diagonal(found.information, axis1=2, axis2=3)
        information = information * robust_factors(_centred(found.shifts, information), information)[..., None]
        if not resolution:
            stiffness, gain = model.choose_stiffness(values, information)
        points = model.fit(values, information, stiffness)
        misfit = _centred(values - model.predict(points), information)
        residual = float(np.sqrt((information * misfit**2).sum() / max(information.sum(), 1e-300)))
        shifts = shifts + found.frame_shifts - found.frame_shifts.mean(axis=0)
        spectrum = found.spectrum
    return LocalAlignment(shifts, points, gain, residual, stiffness)


def _weight(spectrum, sampling_rate, max_resolution, resolution):
    base = combined_weight(spectrum, sampling_rate, max_resolution)
    if not resolution:
        return base
    return lambda radius: gaussian(radius, max(resolution, max_resolution), sampling_rate)


def _reach(resolution, sampling_rate):
    return (resolution or 6.0) / sampling_rate


def _at_patches(points, grid, times, lengths):
    """Local field (n, p, 2) at the patches' centres."""
    values = bspline.evaluate_grid(points, times, grid.centres_y, grid.centres_x, lengths)
    return values.reshape(len(times), -1, 2)


def _centred(values, information):
    """Values less what all patches of a group share."""
    total = np.maximum(information.sum(axis=0), 1e-300)
    return values - (information * values).sum(axis=0) / total
