"""Movies of all formats through one interface."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xmipp_accel.backend.arrays import cpu_count
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import eer, mrc, tiff
from xmipp_accel.io.ifd import DirectoryReader

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".st", ".ali")
TIFF_SUFFIXES = (".tif", ".tiff", ".gain", ".eer")


class MovieReader:
    """Frames of a movie; made by :func:`open_movie`.

    Opening checks all headers and sizes; the file is open only while frames are read, so that thousands of readers
    may exist. A file that is cut later is an `InputFileError` when its frames are read.

    Attributes
    ----------
    path : Path
    shape : (n_frames, ny, nx)
    dtype : numpy.dtype
        Of the frames: as stored, in native byte order.
    sampling_rate : float
        A/px, 0 if the file does not tell.
    """

    def __init__(self, path, shape, dtype, sampling_rate, read):
        self.path = Path(path)
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.sampling_rate = sampling_rate
        self._read = read

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        return None

    def __len__(self):
        return self.shape[0]

    def read(self, first=0, last=None, out=None) -> np.ndarray:
        """Read the frames `first` to `last` (exclusive, to the end by default).

        Parameters
        ----------
        first, last : int
        out : (n, ny, nx) array of `dtype`, optional
            Where to put them, such as pinned memory; C-contiguous.

        Returns
        -------
        (n, ny, nx) array
            `out` if it was given.

        Raises
        ------
        InputFileError
            The file is damaged.
        ParameterError
            The movie has no such frames, or `out` does not fit.
        """
        last = self.shape[0] if last is None else last
        if not 0 <= first < last <= self.shape[0]:
            raise ParameterError(
                f"{self.path}: expected frames within 0 to {self.shape[0]}, found {first} to {last}"
            )
        expected = (last - first, *self.shape[1:])
        if out is not None and not (out.shape == expected and out.dtype == self.dtype and out.flags.c_contiguous):
            raise ParameterError(
                f"{self.path}: expected memory for {expected} {self.dtype}, found {out.shape} {out.dtype}"
            )
        return self._read(first, last, out)

    def frames(self, first=0, last=None) -> Iterator[np.ndarray]:
        """Iterate over frames (ny, nx), as :meth:`read` returns them, a few of which are decoded at a time."""
        last = self.shape[0] if last is None else last
        for start in range(first, last, cpu_count()):
            yield from self.read(start, min(start + cpu_count(), last))


def open_movie(path, eer_frames=40, eer_upsampling=1) -> MovieReader:
    """Open an MRC (.mrc, .mrcs), TIFF or BigTIFF (.tif, .tiff) or EER (.eer) movie.

    Parameters
    ----------
    path : str or os.PathLike
    eer_frames : int
        Frames into which the camera's frames of an EER file are summed; a remainder is dropped.
    eer_upsampling : {1, 2}
        2 gives EER movies pixels of half the size, from the electrons' places within the pixels.

    Raises
    ------
    InputFileError
        The file is missing, damaged, cut short or of another format.
    """
    suffix = Path(path).suffix.lower()
    if suffix in MRC_SUFFIXES:
        return _reader(mrc.read_header(path), _read_mrc)
    if suffix not in TIFF_SUFFIXES:
        raise InputFileError(path, f"a name that ends in {', '.join(MRC_SUFFIXES + TIFF_SUFFIXES)}", repr(suffix))
    directories = DirectoryReader(path)
    if suffix == ".eer" or eer.is_eer(directories):
        if not eer.is_eer(directories):
            raise InputFileError(path, "pages of electron events (compression 65000, 65001 or 65002)", "none")
        return _reader(eer.read_header(directories, eer_frames, eer_upsampling), _read_eer)
    return _reader(tiff.check_header(directories), _read_tiff)


def _reader(header, read):
    dtype = header.dtype.newbyteorder("=")
    return MovieReader(header.path, header.shape, dtype, header.sampling_rate, functools.partial(read, header))


def _read_mrc(header, first, last, out):
    return mrc.read_sections(header, first, last, out)


def _read_tiff(header, first, last, out):
    return tiff.read_page_list(header, range(first, last), out=out)


def _read_eer(header, first, last, out):
    return eer.read_frames(header, first, last, out=out)
