"""The motion in a movie: whole frames first, then, where it pays, over the field of view."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.movie_alignment.fixed_pattern import find_fixed_pattern, remove_fixed_pattern
from xmipp_accel.movie_alignment.local import align_locally, working_grids
from xmipp_accel.movie_alignment.result import GLOBAL, LOCAL, NOT_ALIGNED
from xmipp_accel.movie_alignment.spectra import frame_spectra
from xmipp_accel.movie_alignment.whole_frame import align_whole_frames, between_known
from xmipp_accel.numerics import bspline

# Frequencies above carry no information about shifts in any movie seen so far, but time.
FINEST_RESOLUTION = 3.0
# In standard deviations of noise.
DETECTION_LIMIT = 12.0
LIMIT_FRACTION = 0.5
# Cross-validated gain below which the field of view is taken to move as one. Simulated movies without local motion
# stay below 0.01, nearly all below 0; of those that have some, this loses nothing that shows in the field's error.
LOCAL_GAIN = 0.02


@dataclasses.dataclass(frozen=True)
class Motion:
    """Motion of the aligned frames; see `MovieAlignmentResult` for the attributes.

    Frames that are `lost` fit nowhere and were placed between their neighbours. The `warning` is of a pattern that
    stands still on the detector.
    """

    status: str
    reason: str
    shifts: np.ndarray
    errors: np.ndarray
    control_points: np.ndarray
    quality: dict[str, float]
    reference: int = 0
    lost: tuple[int, ...] = ()
    warning: str = ""

    def relative_to_reference(self):
        """Let the frame that is nearest to all others stay where it is, everywhere in the field."""
        if self.status == NOT_ALIGNED:
            return self
        distance = np.linalg.norm(self.shifts[:, None] - self.shifts[None], axis=-1).max(axis=1)
        reference = int(distance.argmin())
        points = self.control_points
        if points.size:
            at_reference = bspline.basis_matrix([reference], len(self.shifts), len(points))[0]
            points = points - np.einsum("t,tyxc->yxc", at_reference, points)
        shifts = self.shifts - self.shifts[reference]
        return dataclasses.replace(self, shifts=shifts, control_points=points, reference=reference)


def find_motion(movie, valid, parameters, sampling_rate):
    """Find the motion of a prepared movie.

    Parameters
    ----------
    movie : PreparedMovie
    valid : list of int
        Frames with contrast; the others get interpolated shifts.
    parameters : MovieAlignmentParameters
    sampling_rate : float
        A/px.

    Returns
    -------
    Motion
    """
    n = movie.shape[0]
    if len(valid) < 2:
        return _not_aligned(n, f"{len(valid)} of {n} frames has contrast, an alignment needs two", {})
    spectra = frame_spectra(movie, valid, min(0.5, sampling_rate / FINEST_RESOLUTION))
    whole, pattern = _align_moving(spectra, sampling_rate, parameters)
    numbers = {
        "detection": whole.spectrum.detection(),
        "pairs_trusted": whole.pairs_trusted,
        "pairs_at_limit": whole.at_limit,
        "last_change": whole.last_change,
        "lost_frames": float(whole.lost.sum()),
        **pattern.numbers(),
    }
    failure = _failure(whole, parameters, sampling_rate)
    if failure:
        return _not_aligned(n, failure, numbers, pattern.warning())
    sure = np.flatnonzero(~whole.lost)
    lost, valid = np.asarray(valid)[whole.lost], np.asarray(valid)[sure]
    if len(lost):
        spectra = dataclasses.replace(spectra, data=spectra.data[sure])
        whole = dataclasses.replace(whole, shifts=whole.shifts[sure], errors=whole.errors[sure])
    shifts, errors = _on_all_frames(whole, valid, n, parameters.max_shift / sampling_rate)
    motion = Motion(
        GLOBAL, "", shifts, errors, np.zeros((0, 0, 0, 2)), numbers,
        lost=tuple(lost.tolist()), warning=pattern.warning(),
    )  # fmt: skip
    if not parameters.local_alignment:
        return motion
    if len(valid) < 4:
        return dataclasses.replace(motion, reason="local alignment needs 4 frames")
    grids = working_grids(spectra, valid, movie.shape, whole, parameters, sampling_rate)
    del spectra  # as large as the movie in single precision
    return _with_local(motion, valid, align_locally(grids, whole))


def _align_moving(spectra, sampling_rate, parameters):
    """Align whole frames by what moves in them: a pattern that stands still is taken out of the spectra."""
    arguments = sampling_rate, parameters.max_shift, parameters.max_resolution
    whole = align_whole_frames(spectra, *arguments)
    failed = _failure(whole, parameters, sampling_rate)
    # Shifts that cannot be trusted say nothing about what moves.
    pattern = find_fixed_pattern(spectra, np.zeros_like(whole.shifts) if failed else whole.shifts)
    if pattern.harmful:
        remove_fixed_pattern(spectra, pattern)
        again = align_whole_frames(spectra, *arguments)
        # Shifts found beside a pattern are better than none; those of nothing but the pattern are not.
        if not (pattern.among_motion and _failure(again, parameters, sampling_rate)):
            whole = again
    return whole, pattern


def _on_all_frames(whole, valid, n, largest):
    """Shifts and errors (n, 2); a frame without an own one is as uncertain as its neighbours are apart."""
    shifts = between_known(whole.shifts, valid, n)
    errors = between_known(np.minimum(whole.errors, largest), valid, n)
    for t in np.setdiff1d(np.arange(n), valid):
        before, behind = valid[valid < t], valid[valid > t]
        ends = [before[-1] if len(before) else behind[0], behind[0] if len(behind) else before[-1]]
        errors[t] = np.maximum(errors[t], np.abs(np.diff(shifts[ends], axis=0))[0])
    return shifts, errors


def _not_aligned(n, reason, numbers, warning=""):
    zero = np.zeros((n, 2))
    return Motion(NOT_ALIGNED, reason, zero, zero, np.zeros((0, 0, 0, 2)), numbers, warning=warning)


def _failure(whole, parameters, sampling_rate):
    """Why these shifts cannot be trusted, or nothing."""
    detection = whole.spectrum.detection()
    if not detection > DETECTION_LIMIT:
        return (
            f"the frames share no signal: {detection:.1f} standard deviations above noise "
            f"after alignment, less than {DETECTION_LIMIT:g}"
        )
    if whole.at_limit > LIMIT_FRACTION:
        return f"{100 * whole.at_limit:.0f} % of the shifts between frames reach max_shift"
    if whole.lost.mean() > LIMIT_FRACTION:
        return f"{whole.lost.sum()} of {len(whole.lost)} frames fit nowhere"
    shifts = whole.shifts[~whole.lost]
    spread = np.linalg.norm(shifts[:, None] - shifts[None], axis=-1).max() * sampling_rate
    if spread > parameters.max_shift:
        return f"frames lie {spread:.1f} A apart, more than max_shift = {parameters.max_shift:g} A"
    return ""


def _with_local(motion, valid, local):
    numbers = dict(
        motion.quality,
        local_gain=local.gain,
        local_residual=local.residual,
        patches_y=float(local.patches[0]),
        patches_x=float(local.patches[1]),
        stiffness_space=local.stiffness.space,
        stiffness_time=local.stiffness.time,
    )
    if local.gain < LOCAL_GAIN:
        reason = f"no local motion that frames predict for each other (gain {local.gain:.3f})"
        return dataclasses.replace(motion, reason=reason, quality=numbers)
    return dataclasses.replace(
        motion,
        status=LOCAL,
        shifts=between_known(local.shifts, valid, len(motion.shifts)),
        control_points=local.control_points,
        quality=numbers,
    )
