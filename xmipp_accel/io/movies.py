"""Movies of all formats through one interface.

Row 0 of a frame is the bottom one. MRC files begin with it; TIFF files end with it, so that their rows are turned
over, as RELION and IMOD do it. EER frames stay as they are stored, and so do the ``.gain`` files that belong to
them, although both are TIFF files: again as in RELION.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import eer, mrc, tiff
from xmipp_accel.io.frame_groups import equal_groups
from xmipp_accel.io.ifd import DirectoryReader

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".st", ".ali")
GAIN_SUFFIX = ".gain"
TIFF_SUFFIXES = (".tif", ".tiff", GAIN_SUFFIX, ".eer")


class MovieReader:
    """Frames of a movie; made by :func:`open_movie`.

    Opening checks all headers and sizes; the file is open only while frames are read, so that thousands of readers
    may exist. A file that is cut later is an `InputFileError` when its frames are read.

    Attributes
    ----------
    path : Path
    shape : (n_frames, ny, nx)
    dtype : numpy.dtype
        Of the frames: as stored, in native byte order, or wide enough for their sums.
    sampling_rate : float
        A/px, 0 if the file does not tell.
    group_sizes : tuple of int
        How many frames of the file each frame is the sum of.
    is_eer : bool
        Whether the file holds electron events.
    """

    def __init__(self, path, shape, dtype, sampling_rate, read, group_sizes=None, is_eer=False, read_to=None):
        self.path = Path(path)
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.sampling_rate = sampling_rate
        self.group_sizes = (1,) * shape[0] if group_sizes is None else group_sizes
        self.is_eer = is_eer
        self._read = read
        self._read_to = read_to

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
        last = self._checked(first, last)
        expected = (last - first, *self.shape[1:])
        if out is not None and not (out.shape == expected and out.dtype == self.dtype and out.flags.c_contiguous):
            raise ParameterError(
                f"{self.path}: expected memory for {expected} {self.dtype}, found {out.shape} {out.dtype}"
            )
        return self._read(first, last, out)

    def read_to(self, device, first=0, last=None):
        """Read the frames `first` to `last` (exclusive, to the end by default) to a device.

        The electrons of EER movies are counted there, where ten times less is copied to a GPU.

        Parameters
        ----------
        device : Device
        first, last : int

        Returns
        -------
        (n, ny, nx) array of `dtype` on the device
        """
        last = self._checked(first, last)
        if self._read_to is not None:
            return self._read_to(device, first, last)
        buffer = device.host_buffer((last - first, *self.shape[1:]), self.dtype)
        return device.upload(self.read(first, last, buffer))

    def _checked(self, first, last):
        last = self.shape[0] if last is None else last
        if not 0 <= first < last <= self.shape[0]:
            raise ParameterError(
                f"{self.path}: expected frames within 0 to {self.shape[0]}, found {first} to {last}"
            )
        return last

    def frames(self, first=0, last=None) -> Iterator[np.ndarray]:
        """Iterate over frames (ny, nx), as :meth:`read` returns them, a few of which are decoded at a time."""
        last = self.shape[0] if last is None else last
        for start in range(first, last, cpu_count()):
            yield from self.read(start, min(start + cpu_count(), last))


def open_movie(path, eer_frames=40, eer_upsampling=1, groups=None) -> MovieReader:
    """Open an MRC (.mrc, .mrcs), TIFF or BigTIFF (.tif, .tiff) or EER (.eer) movie.

    Parameters
    ----------
    path : str or os.PathLike
    eer_frames : int
        Frames into which the camera's frames of an EER file are summed; a remainder is dropped.
    eer_upsampling : {1, 2}
        2 gives EER movies pixels of half the size, from the electrons' places within the pixels.
    groups : FrameGroups, optional
        Which frames of the file are summed; of EER files the camera's frames, instead of `eer_frames`.

    Raises
    ------
    InputFileError
        The file is missing, damaged, cut short or of another format.
    """
    suffix = Path(path).suffix.lower()
    if suffix in MRC_SUFFIXES:
        return _summed(_reader(mrc.read_header(path), _read_mrc), groups)
    if suffix not in TIFF_SUFFIXES:
        raise InputFileError(path, f"a name that ends in {', '.join(MRC_SUFFIXES + TIFF_SUFFIXES)}", repr(suffix))
    directories = DirectoryReader(path)
    if suffix == ".eer" or eer.is_eer(directories):
        if not eer.is_eer(directories):
            raise InputFileError(path, "pages of electron events (compression 65000, 65001 or 65002)", "none")
        divide = groups.sizes if groups else functools.partial(equal_groups, eer_frames)
        header = eer.read_header(directories, divide, eer_upsampling)
        read_to = functools.partial(eer.read_frames_to, header)
        return _reader(header, _read_eer, group_sizes=header.sizes, is_eer=True, read_to=read_to)
    read = _read_as_stored if suffix == GAIN_SUFFIX else _read_tiff
    return _summed(_reader(tiff.check_header(directories), read), groups)


def _reader(header, read, **properties):
    dtype = header.dtype.newbyteorder("=")
    read = functools.partial(read, header)
    return MovieReader(header.path, header.shape, dtype, header.sampling_rate, read, **properties)


def _summed(reader, groups):
    """Let a reader sum the frames of its file, where there are `groups`."""
    if groups is None:
        return reader
    sizes = groups.sizes(reader.path, len(reader))
    shape = len(sizes), *reader.shape[1:]
    dtype = _sum_dtype(reader.dtype, max(sizes))
    read = functools.partial(_read_sums, reader, sizes, dtype)
    return MovieReader(reader.path, shape, dtype, reader.sampling_rate, read, group_sizes=sizes)


def _sum_dtype(dtype, count) -> np.dtype:
    """Smallest type that holds every sum of `count` whole numbers; at least float32 for real ones."""
    if dtype.kind == "f":
        return np.result_type(dtype, np.float32)
    limits = np.iinfo(dtype)
    return np.min_scalar_type(count * (limits.min or limits.max))


def _read_sums(reader, sizes, dtype, first, last, out):
    result = np.empty((last - first, *reader.shape[1:]), dtype) if out is None else out
    frames = reader.frames(sum(sizes[:first]), sum(sizes[:last]))
    for size, target in zip(sizes[first:last], result):
        target[:] = 0
        for frame in itertools.islice(frames, size):
            target += frame
    return result


def _read_mrc(header, first, last, out):
    return mrc.read_sections(header, first, last, out)


def _read_as_stored(header, first, last, out):
    return tiff.read_page_list(header, range(first, last), out=out)


def _read_tiff(header, first, last, out):
    result = np.empty((last - first, *header.shape[1:]), header.dtype) if out is None else out
    tiff.read_page_list(header, range(first, last), out=result[:, ::-1])
    return result


def _read_eer(header, first, last, out):
    return eer.read_frames(header, first, last, out=out)
