"""What the alignment of one movie yields, as an object and as JSON."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.publish import read_json
from xmipp_accel.numerics import bspline

LOCAL, GLOBAL, NOT_ALIGNED = "local", "global", "not aligned"


@dataclasses.dataclass(frozen=True)
class MovieAlignmentResult:
    """Motion of one movie and the files that were written.

    Attributes
    ----------
    name, movie : str
        Stem of the output files, and the input's path.
    status : {"local", "global", "not aligned"}
        Which motion was corrected. ``"not aligned"`` marks averages of uncorrected frames.
    reason : str
        Why less was corrected than was asked for, and what is wrong with the input; empty otherwise.
    n_frames : int
        Of the movie.
    first_frame : int
        Index from 0 of the first aligned frame.
    shape : (int, int)
        Frame's height and width.
    sampling_rate : float
        A/px of the movie.
    output_sampling_rate : float
        A/px of the averages.
    reference_frame : int
        Index from 0, within the movie, of the frame that is not moved.
    shifts : ndarray, shape (n_aligned, 2)
        Translation (y, x) to apply to each aligned frame, in px of the movie.
    shift_errors : ndarray, shape (n_aligned, 2)
        Standard error of `shifts` in px.
    control_points : ndarray, shape (nt, ny, nx, 2)
        Cubic B-spline, in px of the movie, that is added to `shifts`; empty without local alignment.
    quality : dict of str to float
        See :mod:`xmipp_accel.movie_alignment.quality`.
    outputs : dict of str to str
        Paths relative to the result's folder: ``unweighted``, ``dose_weighted``, ``even``, ``odd``,
        ``dose_weighted_even``, ``dose_weighted_odd``, ``initial``, ``aligned_movie``, ``power_spectrum``,
        ``power_spectrum_initial``, ``xmd``, ``star``.
    timings : dict of str to float
        Seconds of each stage.
    parameters : dict
        Of the run.
    exposures : ndarray, shape (n_frames,)
        Of each of the movie's frames, e/A^2; zeros if unknown.
    group_sizes : tuple of int
        How many frames of the file each of the movie's frames is the sum of.
    alignment : str
        Path of the earlier alignment that was applied; empty if the motion was measured.
    """

    name: str
    movie: str
    status: str
    reason: str
    n_frames: int
    first_frame: int
    shape: tuple[int, int]
    sampling_rate: float
    output_sampling_rate: float
    reference_frame: int
    shifts: np.ndarray
    shift_errors: np.ndarray
    control_points: np.ndarray
    quality: dict[str, float]
    outputs: dict[str, str]
    timings: dict[str, float]
    parameters: dict[str, Any]
    exposures: np.ndarray
    group_sizes: tuple[int, ...]
    alignment: str = ""

    @property
    def n_aligned(self) -> int:
        """Number of frames in `shifts`."""
        return len(self.shifts)

    def field(self, y, x, t):
        """Total translation to apply.

        Parameters
        ----------
        y, x : array_like
            Position in the average without stretch, px of the movie.
        t : array_like of int
            Aligned frame, counted from 0. All three broadcast against each other.

        Returns
        -------
        ndarray, shape broadcast + (2,)
            (y, x) in px of the movie: the average at (y, x) shows frame t at (y, x) minus this.
        """
        y, x, t = np.broadcast_arrays(y, x, t)
        total = self.shifts[t]
        if self.control_points.size:
            total = total + bspline.evaluate(self.control_points, t, y, x, self.lengths)
        return total

    @property
    def lengths(self) -> tuple[float, float, float]:
        """Extents (t, y, x) that the control points cover."""
        return float(self.n_aligned), float(self.shape[0]), float(self.shape[1])

    def output_path(self, key, folder):
        """Path of one output, for a result that lies in `folder`."""
        return Path(folder) / self.outputs[key]

    def summary(self) -> str:
        """One line for people."""
        steps = np.diff(self.shifts, axis=0)
        motion = float(np.hypot(steps[:, 0], steps[:, 1]).sum())
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.status}{reason}, {self.n_aligned} frames, total motion {motion:.2f} px, {self.name}.json"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for key in ("shifts", "shift_errors", "control_points", "exposures"):
            values[key] = np.asarray(values[key], dtype=np.float64).tolist()
        return values

    @classmethod
    def from_json(cls, source):
        """Build from the path of a JSON file, or from what it holds."""
        values = dict(read_json(source) if isinstance(source, (str, os.PathLike)) else source)
        known = {field.name for field in dataclasses.fields(cls)}
        wrong = sorted((known - {"alignment"}) - values.keys() | values.keys() - known)
        if wrong:
            found = f"{wrong[0]} where it does not belong" if wrong[0] in values else f"no {wrong[0]}"
            raise InputFileError(source, "the result of a movie alignment", found)
        for key in ("shifts", "shift_errors"):
            values[key] = np.asarray(values[key], dtype=np.float64).reshape(-1, 2)
        points = np.asarray(values["control_points"], dtype=np.float64)
        values["control_points"] = points if points.ndim == 4 else np.zeros((0, 0, 0, 2))
        values["exposures"] = np.asarray(values["exposures"], dtype=np.float64)
        values["shape"], values["group_sizes"] = tuple(values["shape"]), tuple(values["group_sizes"])
        return cls(**values)
