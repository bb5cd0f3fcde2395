"""Alignments that were measured before, to be applied to the same movie again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.movie_alignment import gain_check
from xmipp_accel.movie_alignment.metadata import read_xmd
from xmipp_accel.movie_alignment.motion import Motion
from xmipp_accel.movie_alignment.result import GLOBAL, LOCAL, MovieAlignmentResult
from xmipp_accel.numerics import bspline

# Local motion (px) that is only the rounding of the numbers in a file.
NEGLIGIBLE = 1e-5


def saved_motion(path, n_frames, first, last, shape):
    """Read the motion of an earlier alignment of a movie.

    Parameters
    ----------
    path : path
        The ``<name>.json`` of a :class:`MovieAlignmentResult`, or an ``.xmd`` of this program or of FlexAlign. The
        latter does not tell the frames' size, nor how sure the shifts are.
    n_frames : int
        Of the movie.
    first, last : int
        Aligned frames, counted from 1; the alignment must be of the same ones.
    shape : (int, int)
        Of the frames; numbers are px of this size.

    Returns
    -------
    Motion

    Raises
    ------
    InputFileError
        The alignment is of another movie: one with more or fewer frames, another range or another size of them.
    """
    if Path(path).suffix.lower() == ".xmd":
        motion, found = _from_xmd(path, shape)
    else:
        motion, found = _from_json(path)
    expected = (n_frames, first, last, tuple(shape))
    if found != expected:
        raise InputFileError(path, f"an alignment of {_describe(expected)}", _describe(found))
    return motion


def _describe(movie):
    n_frames, first, last, shape = movie
    return f"frames {first} to {last} of {n_frames}, {shape[0]} x {shape[1]} px"


def _from_json(path):
    result = MovieAlignmentResult.from_json(str(path))
    reference = result.reference_frame - result.first_frame
    # The gain is another matter now, and is checked anew.
    reason = "; ".join(r for r in result.reason.split("; ") if not r.startswith(gain_check.WARNING))
    motion = Motion(
        result.status, reason, result.shifts, result.shift_errors, result.control_points,
        result.quality, reference,
    )  # fmt: skip
    last = result.first_frame + result.n_aligned
    return motion, (result.n_frames, result.first_frame + 1, last, tuple(result.shape))


def _from_xmd(path, shape):
    saved = read_xmd(path)
    aligned = np.flatnonzero(saved["enabled"])
    if not len(aligned):
        raise InputFileError(path, "at least one frame that is enabled", "none")
    first, last = int(aligned[0]), int(aligned[-1]) + 1
    shifts = saved["shifts"][first:last]
    n = len(shifts)
    points = np.zeros((0, 0, 0, 2))
    if "control_points" in saved:
        points = _local_part(saved["control_points"], shifts)
    motion = Motion(
        LOCAL if points.size else GLOBAL,
        "",
        shifts,
        np.zeros((n, 2)),
        points,
        {},
        saved["reference_frame"] - first,
    )
    return motion, (len(saved["shifts"]), first + 1, last, tuple(shape))


def _local_part(total, shifts):
    """B-spline of what a spline of the total motion has beyond `shifts`, empty if that is nothing.

    It needs a control point for each frame and three more to take the shifts away exactly.
    """
    n = len(shifts)
    # FlexAlign's three control points along an axis are the first of four, the last of which is zero.
    total = np.pad(total, [(0, max(0, 4 - size)) for size in total.shape[:3]] + [(0, 0)])
    in_time = bspline.basis_matrix(np.arange(n), n, len(total))
    values = np.einsum("ni,iyxc->nyxc", in_time, total) - shifts[:, None, None]
    if np.abs(values).max() < NEGLIGIBLE:
        return np.zeros((0, 0, 0, 2))
    return np.einsum("in,nyxc->iyxc", np.linalg.pinv(bspline.basis_matrix(np.arange(n), n, n + 3)), values)
