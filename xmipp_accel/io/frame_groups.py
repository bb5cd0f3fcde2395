"""Which frames of a file are summed into the frames of a movie, and the exposure of each.

The text files are MotionCor's (``-FmIntFile``): each row is ``group_size integration_size [dose]``. The next
`group_size` frames of the file are summed `integration_size` at a time, and `dose` is the exposure of one frame of
the file in e/A^2. Frames left after the last row go by the last row; what does not make a whole sum at the end of
the file is dropped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.files import read_text


@dataclasses.dataclass(frozen=True)
class Row:
    """`frames` frames of the file, summed `size` at a time; `dose` (e/A^2) of each, 0 where the file has none."""

    frames: int
    size: int
    dose: float


@dataclasses.dataclass(frozen=True)
class FrameGroups:
    """Rows of a file of frame groups, for movies of any length; made by :func:`read_frame_groups`."""

    path: Path
    rows: tuple[Row, ...]

    @property
    def has_doses(self) -> bool:
        """Whether the rows tell the exposure; either all do or none."""
        return self.rows[0].dose > 0

    def sizes(self, movie_path, available) -> tuple[int, ...]:
        """How many frames of a file are summed into each frame of the movie.

        Parameters
        ----------
        movie_path : path
            Of the file, for the error.
        available : int
            Frames in it.
        """
        sizes: list[int] = []
        for row in self.rows:
            left = available - sum(sizes)
            # A row that the file's end cuts is the last one, whatever sizes follow.
            last = row is self.rows[-1] or left < row.frames
            sizes += [row.size] * ((left if last else row.frames) // row.size)
            if last:
                break
        if not sizes:
            expected = f"at least {self.rows[0].size} frames, for the first sum of {self.path}"
            raise InputFileError(movie_path, expected, f"{available}")
        return tuple(sizes)

    def exposures(self, sizes, dose_per_frame=0.0) -> np.ndarray:
        """Exposure (e/A^2) of each frame of the movie.

        Parameters
        ----------
        sizes : sequence of int
            From :meth:`sizes`.
        dose_per_frame : float
            Of one frame of the file, used where the rows have no dose.
        """
        ends = list(itertools.accumulate(row.frames for row in self.rows[:-1]))
        first = np.cumsum(sizes) - sizes
        of_row = [row.dose or dose_per_frame for row in self.rows]
        return np.asarray(sizes) * np.take(of_row, np.searchsorted(ends, first, side="right"))


def equal_groups(frames, movie_path, available) -> tuple[int, ...]:
    """Sizes as :meth:`FrameGroups.sizes`, for a movie of so many `frames`; a remainder is dropped."""
    if frames < 1:
        raise ParameterError(f"eer_frames: expected at least 1, found {frames}")
    if available < frames:
        raise InputFileError(movie_path, f"at least {frames} camera frames, to make as many", f"{available}")
    return (available // frames,) * frames


def read_frame_groups(path) -> FrameGroups:
    """Read a file of frame groups.

    Raises
    ------
    InputFileError
        The file is no such text; the message names the line.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split("#")[0].split()
        if words:
            rows.append(_row(path, number, words))
    if not rows:
        raise InputFileError(path, "rows of 'group_size integration_size [dose]'", "none")
    for number, row in enumerate(rows[:-1], start=1):
        if row.frames % row.size:
            found = f"{row.frames} and {row.size} in row {number}"
            raise InputFileError(path, "a group size that is a multiple of the integration size", found)
    with_dose = sum(row.dose > 0 for row in rows)
    if with_dose not in (0, len(rows)):
        raise InputFileError(path, "a dose in all rows or in none", f"{with_dose} doses in {len(rows)} rows")
    return FrameGroups(Path(path), tuple(rows))


def _row(path, number, words) -> Row:
    expected = f"'group_size integration_size [dose]' in line {number}"
    found = repr(" ".join(words)[:60])
    if len(words) not in (2, 3):
        raise InputFileError(path, expected, found)
    try:
        row = Row(int(words[0]), int(words[1]), float(words[2]) if len(words) == 3 else 0.0)
    except ValueError:
        raise InputFileError(path, expected, found) from None
    if not 1 <= row.size <= row.frames:
        raise InputFileError(path, f"1 <= integration size <= group size in line {number}", found)
    if len(words) == 3 and not (math.isfinite(row.dose) and row.dose > 0):
        raise InputFileError(path, f"a positive dose in line {number}", found)
    return row
