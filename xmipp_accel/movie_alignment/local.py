"""Local alignment: measure patches, fit the smooth model, repeat."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module, trim_heap
from xmipp_accel.movie_alignment.model import LocalModel, Stiffness, centred, robust_factors
from xmipp_accel.movie_alignment.patches import PatchStack, frame_groups, make_grid, measure_patches
from xmipp_accel.movie_alignment.spectra import SignalSpectrum, gaussian
from xmipp_accel.movie_alignment.whole_frame import (
    combined_weight,
    frames_on_grid,
    low_pass_limit,
    turned_into_images,
)
from xmipp_accel.numerics import bspline

# Of a remaining translation in the rounds without low-pass, A.
UNFILTERED_REACH = 6.0
# Low-pass (A, half amplitude) of the rounds on a coarse grid, which find the motion, and on the fine grid, which
# measure it; 0 uses all frequencies as they were measured.
COARSE_ROUNDS, FINE_ROUNDS = (20.0, 20.0), (0.0, 0.0)
# The fine grid keeps the frequencies that hold this part of the information.
INFORMATION = 0.9
CONTROL_SPACING = 1000.0


@dataclasses.dataclass(frozen=True)
class LocalAlignment:
    """Shifts of frames and the B-spline added to them; see `MovieAlignmentResult`.

    Attributes
    ----------
    shifts : ndarray, shape (n, 2)
    control_points : ndarray, shape (nt, ny, nx, 2)
    spectrum : SignalSpectrum
        Of the patches.
    stiffness : Stiffness
    gain : float
        Cross-validated: the part of the patches' motion, noise included, that the model predicts.
    residual : float
        Weighted rms difference between patches and model, px.
    patches : (int, int)
        Along y and x.
    """

    shifts: np.ndarray
    control_points: np.ndarray
    spectrum: SignalSpectrum
    stiffness: Stiffness
    gain: float = 0.0
    residual: float = 0.0
    patches: tuple[int, int] = (0, 0)


def working_grids(spectra, times, shape, whole, parameters, sampling_rate):
    """Frames at the resolutions at which local motion is found and measured; `spectra` are lost.

    Parameters
    ----------
    spectra : Spectra
        Of the frames, not shifted.
    times : ndarray of int, shape (n,)
        Which of the movie's aligned frames they are; blank ones are missing.
    shape : (int, int, int)
        Frames, height and width of the movie.
    whole : WholeFrameAlignment
        Of the same frames.
    parameters : MovieAlignmentParameters
    sampling_rate : float
        A/px of the movie.

    Returns
    -------
    list of WorkingGrid
        For :func:`align_locally`.
    """
    limits = low_pass_limit(COARSE_ROUNDS[0], sampling_rate), whole.spectrum.limit(INFORMATION)
    coarse = frames_on_grid(spectra, limits[0])
    trim_heap(array_module(coarse))  # before as much is needed at a time as ever
    images = coarse, turned_into_images(spectra, limits[1])
    return [WorkingGrid(array, spectra.extent, times, shape, parameters, sampling_rate) for array in images]


def align_locally(grids, whole):
    """Refine the shifts of whole frames by a field that varies over the frame.

    Parameters
    ----------
    grids : list of WorkingGrid
        From :func:`working_grids`.
    whole : WholeFrameAlignment
        Of the same frames.

    Returns
    -------
    LocalAlignment
    """
    points = np.zeros((*grids[0].model.n_control, 2))
    found = LocalAlignment(np.array(whole.shifts), points, whole.spectrum, Stiffness(1.0, 1.0))
    for grid, rounds in zip(grids, (COARSE_ROUNDS, FINE_ROUNDS)):
        stack = PatchStack(grid.images, grid.patches, grid.field(found))
        for resolution in rounds:
            found = grid.refine(stack, found, resolution)
            if not resolution and found.gain < 0:  # another round would not find any local motion
                return found
    return found


def control_counts(parameters, shape, sampling_rate):
    """Control points in t, y and x, as wanted or one for each 1000 A and each seven frames, and three more."""
    wanted = parameters.control_points_t, parameters.control_points_y, parameters.control_points_x
    automatic = [int(np.ceil(shape[0] / 7)) + 3]
    automatic += [max(5, round(length * sampling_rate / CONTROL_SPACING) + 3) for length in shape[1:]]
    return tuple(w or a for w, a in zip(wanted, automatic))


class WorkingGrid:
    """Frames, patches and model at one resolution; `images` (n, my, mx) span `extent` pixels of the movie."""

    def __init__(self, images, extent, times, shape, parameters, sampling_rate):
        self.parameters, self.sampling_rate, self.times = parameters, sampling_rate, times
        self.images = images
        self.lengths = tuple(map(float, shape))
        origin = tuple((s - e) // 2 for s, e in zip(shape[1:], extent))
        edge = min(parameters.min_local_resolution / sampling_rate, min(extent) / 2)
        counts = parameters.patches_y, parameters.patches_x
        self.patches = make_grid(self.images.shape[1:], extent, origin, edge, counts)
        self.groups = frame_groups(len(times), parameters.group_frames)
        self.times_of_groups = [times[group].mean() for group in self.groups]
        edges = tuple(self.patches.size * p for p in self.patches.pixel)
        centres = self.patches.centres_y, self.patches.centres_x
        n_control = control_counts(parameters, shape, sampling_rate)
        xp = array_module(self.images)
        self.model = LocalModel(n_control, self.lengths, self.times_of_groups, centres, edges, xp)

    def field(self, found):
        """Translations (n, p, 2) at the patches' centres."""
        return found.shifts[:, None] + self._local(found, self.times)

    def _local(self, found, times):
        patches = self.patches
        values = bspline.evaluate_grid(
            found.control_points, times, patches.centres_y, patches.centres_x, self.lengths
        )
        return values.reshape(len(times), -1, 2)

    def refine(self, stack, found, resolution):
        """One round: measure the patches, weight them, fit the model."""
        model = self.model
        weight = self._weight(found.spectrum, resolution)
        reach = (resolution or UNFILTERED_REACH) / self.sampling_rate
        measured = measure_patches(stack, self.field(found), self.groups, weight, reach)
        values = measured.shifts + self._local(found, self.times_of_groups).swapaxes(0, 1)
        factors = robust_factors(centred(measured.shifts, measured.information), measured.information)
        information = measured.information * factors[..., None]
        equations = model.equations(values, information)
        stiffness, gain = found.stiffness, found.gain
        if not resolution:
            stiffness, gain = model.choose_stiffness(equations, stiffness)
        points, residual = model.fit(equations, stiffness)
        step = measured.frame_shifts
        return LocalAlignment(
            found.shifts + step - step.mean(axis=0),
            points,
            measured.spectrum,
            stiffness,
            gain,
            residual,
            (len(self.patches.centres_y), len(self.patches.centres_x)),
        )

    def _weight(self, spectrum, resolution):
        finest = self.parameters.max_resolution
        if not resolution:
            return combined_weight(spectrum, self.sampling_rate, finest)
        return lambda radius: gaussian(radius, max(resolution, finest), self.sampling_rate)
