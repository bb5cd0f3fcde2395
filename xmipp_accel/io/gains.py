"""Gain and dark references, and defects, brought to the orientation and size of a movie's frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xmipp_accel.backend import array_module
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.files import read_text
from xmipp_accel.io.movies import open_movie

ROTATIONS = (0, 90, 180, 270)
FLIPS = ("none", "up_down", "left_right")
# More dead pixels than this mean that the file is no gain reference.
_MOST_DEFECTS = 0.5
_TEXT_SUFFIXES = (".txt", ".defects")


def divides(mode, gain_path, is_eer) -> bool:
    """Whether frames are divided by a gain reference.

    Parameters
    ----------
    mode : {"auto", "multiply", "divide"}
        ``"auto"``: the references of EER movies show the detector's response, but for the ``.gain`` files of newer
        cameras; all others are factors.
    gain_path : str or os.PathLike
    is_eer : bool
        Whether the movie holds electron events.
    """
    if mode == "auto":
        return is_eer and Path(gain_path).suffix.lower() != ".gain"
    return mode == "divide"


def read_reference(path) -> np.ndarray:
    """Pixels of a file with one image (y, x), its rows as those of movies, see `io.movies`."""
    with open_movie(path) as movie:
        if len(movie) != 1:
            raise InputFileError(path, "one image", f"{len(movie)} images")
        return movie.read()[0]


def read_gain(path, frame_shape, rotation=0, flip="none", divide=False) -> tuple[np.ndarray, np.ndarray]:
    """Read a gain reference to multiply frames by.

    Parameters
    ----------
    path : str or os.PathLike
        MRC, TIFF or the .gain file of an EER movie. Rows are those of movies, see `io.movies`.
    frame_shape : (ny, nx)
        After rotation and flip, the responses in a reference of twice this size are averaged over 2 x 2 pixels,
        and a reference of half of it is repeated.
    rotation : {0, 90, 180, 270}
        Degrees counter-clockwise, as `numpy.rot90`; before the flip.
    flip : {"none", "up_down", "left_right"}
    divide : bool
        The reference is one to divide by: the gain is its mean divided by it.

    Returns
    -------
    gain : (ny, nx) float32 array
        Factor of each pixel, 0 at defects.
    defects : (ny, nx) bool array
        Where the reference is zero, negative or not finite.

    Raises
    ------
    InputFileError
        The file is damaged, has another size, or more than half of it is defective.
    """
    gain = orient(read_reference(path).astype(np.float32, copy=False), rotation, flip)
    defects = ~(np.isfinite(gain) & (gain > 0))
    gain = np.where(defects, np.float32(1), gain)
    with np.errstate(over="ignore"):  # of the smallest numbers, which become defects
        inverse = 1 / gain
        if divide and not defects.all():
            gain = inverse * gain[~defects].mean(dtype=np.float64).astype(np.float32)
    defects |= ~(np.isfinite(inverse) & np.isfinite(gain))
    gain[defects] = 0
    gain, defects = _fit(path, gain, defects, tuple(frame_shape))
    if np.count_nonzero(defects) > _MOST_DEFECTS * defects.size:
        found = f"{np.count_nonzero(defects)} of {defects.size} pixels zero, negative or not finite"
        raise InputFileError(path, "a gain reference", found)
    return gain, defects


def read_dark(path, frame_shape, rotation=0, flip="none") -> np.ndarray:
    """Read a dark reference to subtract from frames.

    Parameters
    ----------
    path, frame_shape, rotation, flip
        As for :func:`read_gain`, but the size must be that of the frames.

    Returns
    -------
    (ny, nx) float32 array
    """
    dark = np.ascontiguousarray(orient(read_reference(path).astype(np.float32, copy=False), rotation, flip))
    if dark.shape != tuple(frame_shape):
        raise _wrong_size(path, "a dark reference", frame_shape, dark.shape)
    bad = dark.size - np.count_nonzero(np.isfinite(dark))
    if bad:
        raise InputFileError(path, "finite values", f"{bad} that are not")
    return dark


def read_defects(path, frame_shape) -> np.ndarray:
    """Read where the camera is defective.

    Parameters
    ----------
    path : str or os.PathLike
        Text with lines ``x y width height`` (MotionCor, px from 0), whose rows are the array's for movies of all
        formats, as RELION has it; or an MRC or TIFF map with 1 at defects.
    frame_shape : (ny, nx)

    Returns
    -------
    (ny, nx) bool array
    """
    if Path(path).suffix.lower() in _TEXT_SUFFIXES:
        return _read_boxes(path, tuple(frame_shape))
    values = read_reference(path)
    if values.shape != tuple(frame_shape):
        raise _wrong_size(path, "a map of defects", frame_shape, values.shape)
    defects = values == 1
    if not (defects | (values == 0)).all():
        raise InputFileError(path, "a map of 0 and 1", f"values from {values.min():g} to {values.max():g}")
    return defects


def _read_boxes(path, frame_shape):
    defects = np.zeros(frame_shape, bool)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0][0].isalpha():
            expected = "lines of four numbers x y width height, as MotionCor's"
            raise InputFileError(path, expected, f"{words[0]!r} in line {number}: a defect file of SerialEM?")
        try:
            x, y, width, height = (int(word) for word in words)
        except ValueError:
            raise InputFileError(path, f"x y width height in line {number}", repr(line.strip()[:60])) from None
        if not (0 <= x < x + width <= frame_shape[1] and 0 <= y < y + height <= frame_shape[0]):
            frame = f"{frame_shape[1]} x {frame_shape[0]} px"
            raise InputFileError(path, f"boxes within frames of {frame}", f"line {number}: {line.strip()[:60]}")
        defects[y : y + height, x : x + width] = True
    return defects


def orient(array, rotation=0, flip="none"):
    """Rotate an image (y, x) of any array module counter-clockwise by so many degrees, and flip it then."""
    if rotation not in ROTATIONS:
        raise ParameterError(f"rotation: expected 0, 90, 180 or 270, found {rotation!r}")
    if flip not in FLIPS:
        raise ParameterError(f"flip: expected one of {', '.join(FLIPS)}, found {flip!r}")
    array = array_module(array).rot90(array, rotation // 90)
    if flip == "up_down":
        return array[::-1]
    return array[:, ::-1] if flip == "left_right" else array


def _fit(path, gain, defects, frame_shape):
    if gain.shape == frame_shape:
        return np.ascontiguousarray(gain), np.ascontiguousarray(defects)
    ny, nx = frame_shape
    if gain.shape == (2 * ny, 2 * nx):
        # Counts add up, and so do responses, of which the gain is the inverse.
        response = np.divide(1, gain, out=np.zeros_like(gain), where=~defects)
        total = response.reshape(ny, 2, nx, 2).sum(axis=(1, 3))
        valid = (~defects).reshape(ny, 2, nx, 2).sum(axis=(1, 3))
        return np.divide(valid, total, out=np.zeros_like(total), where=valid > 0), valid == 0
    if frame_shape == (2 * gain.shape[0], 2 * gain.shape[1]):
        return gain.repeat(2, axis=0).repeat(2, axis=1), defects.repeat(2, axis=0).repeat(2, axis=1)
    raise _wrong_size(path, "a gain reference", frame_shape, gain.shape)


def _wrong_size(path, what, expected, found) -> InputFileError:
    return InputFileError(
        path, f"{what} of {expected[1]} x {expected[0]} px", f"{found[1]} x {found[0]} px (rotated)"
    )
