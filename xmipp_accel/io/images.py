"""Micrographs and stacks of particles or references: MRC (.mrc, .mrcs), SPIDER (.stk, .xmp, .spi) and TIFF."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import mrc, spider, tiff
from xmipp_accel.io.files import open_input

SPIDER_SUFFIXES = (".stk", ".xmp", ".spi", ".vol")
TIFF_SUFFIXES = (".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack whose header has been read; threads may read from it at once.

    Attributes
    ----------
    path : str or os.PathLike
        What errors call it; the file is that of the header.
    header : MrcHeader, SpiderHeader or TiffHeader
    """

    path: Any
    header: Any
    _pixels: Any  # function that reads a list of images
    _holds_file: bool  # whether it can use a file that is open

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of images, rows and columns."""
        return self.header.shape

    @property
    def sampling_rate(self) -> float:
        """A/px, 0 if the header does not tell."""
        return float(getattr(self.header, "sampling_rate", 0.0))

    @contextlib.contextmanager
    def open(self):
        """Context with the open file for :meth:`read`, or None if that is of no use."""
        if not self._holds_file:
            yield None
            return
        with open_input(self.header.path) as (file, _size):
            yield file

    def read(self, indices=None, out=None, file=None) -> np.ndarray:
        """Read images.

        Parameters
        ----------
        indices : sequence of int, optional
            Which images, counted from 0, in the order wanted; all by default.
        out : (n, y, x) float32 array, optional
            Where to put them, C-contiguous.
        file : file, optional
            Of :meth:`open`.

        Returns
        -------
        (n, y, x) float32 array

        Raises
        ------
        InputFileError
            The file is damaged, has fewer images than `indices` asks for, or images of another size than `out`.
        """
        path, header, count = self.path, self.header, self.shape[0]
        wanted = np.arange(count) if indices is None else np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            worst = wanted.max() if wanted.max() >= count else wanted.min()
            raise InputFileError(path, f"an image with the index {worst} (from 0)", f"{count} images")
        opened = {} if file is None else {"file": file}
        if out is None:
            return self._pixels(header, wanted, **opened).astype(np.float32, copy=False)
        if out.shape[1:] != header.shape[1:]:
            raise InputFileError(path, image_size(out.shape[1:]), image_size(header.shape[1:]))
        as_stored = out.dtype == header.dtype.newbyteorder("=")
        pixels = self._pixels(header, wanted, out=out if as_stored else None, **opened)
        if not as_stored:
            out[...] = pixels
        return out


def open_stack(path) -> Stack:
    """Read the header of a stack."""
    suffix = Path(path).suffix.lower()
    if suffix in SPIDER_SUFFIXES:
        return Stack(path, spider.read_header(path), spider.read_section_list, True)
    if suffix in TIFF_SUFFIXES:
        return Stack(path, tiff.read_header(path), tiff.read_page_list, False)
    return Stack(path, mrc.read_header(path), mrc.read_section_list, True)


def stack_shape(path) -> tuple[int, int, int]:
    """Number of images, rows and columns, from the header alone."""
    return open_stack(path).shape


def read_stack(path, indices=None) -> np.ndarray:
    """Images (n, y, x) float32 of a stack, all of them or those at `indices`; see :meth:`Stack.read`."""
    return open_stack(path).read(indices)


def image_size(shape) -> str:
    """How errors tell the size (rows, columns) of images."""
    return f"images of {shape[0]} x {shape[1]} px"


def read_image(path) -> tuple[np.ndarray, float]:
    """Read a file with one image.

    Returns
    -------
    (y, x) float32 array
    float
        Sampling rate in A/px, 0 if the file does not tell.
    """
    stack = open_stack(path)
    if stack.shape[0] != 1:
        raise InputFileError(path, "one image", f"{stack.shape[0]} images")
    return stack.read()[0], stack.sampling_rate


def write_image(path, array, sampling_rate, dtype=np.float32):
    """Publish one image as MRC (.mrc) or TIFF (.tif).

    Parameters
    ----------
    path : str or os.PathLike
    array : (y, x) array
    sampling_rate : float
        A/px; 0 if unknown.
    dtype : {float32, float16, int16, uint16, int8}
        Whole numbers are rounded; a value outside the type's range is a `ParameterError`.
    """
    array = np.asarray(array)
    if array.ndim != 2:
        raise ParameterError(f"{path}: expected an image (y, x), found shape {array.shape}")
    write_stack(path, array[None], sampling_rate, dtype)


def write_stack(path, array, sampling_rate, dtype=np.float32):
    """Publish a stack of images as MRC (.mrc, .mrcs), SPIDER (.stk, float32 without sampling rate) or TIFF.

    Parameters
    ----------
    path : str or os.PathLike
    array : (n, y, x) array
    sampling_rate, dtype
        As for :func:`write_image`.
    """
    array = convert(path, array, np.dtype(dtype))
    suffix = Path(path).suffix.lower()
    if suffix in SPIDER_SUFFIXES:
        spider.write_stack(path, array)
    elif suffix in TIFF_SUFFIXES:
        tiff.write_tiff(path, array, sampling_rate)
    elif suffix in (".mrc", ".mrcs"):
        mrc.write_mrc(path, array, sampling_rate, volume=False)
    else:
        raise ParameterError(f"{path}: expected a name that ends in .mrc, .mrcs, .stk, .tif or .tiff")


@contextlib.contextmanager
def stack_writer(path, sampling_rate, dtype=np.float32):
    """Publish a stack as MRC (.mrc, .mrcs) image by image.

    Parameters
    ----------
    path, sampling_rate, dtype
        As for :func:`write_stack`.

    Yields
    ------
    callable
        Appends an image (y, x). The file appears when the context ends without an error.
    """
    with mrc.section_writer(path, sampling_rate, volume=False) as append:
        yield lambda image: append(convert(path, image, np.dtype(dtype))[None])


def convert(path, array, dtype: np.dtype) -> np.ndarray:
    """Convert for writing without silent wrapping: values beyond the range of `dtype` are a `ParameterError`."""
    array = np.asarray(array)
    if array.dtype == dtype or array.size == 0:
        return array
    limits: tuple[float, float] | None = None
    if dtype.kind in "iu":
        limits = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
        array = np.rint(array) if array.dtype.kind == "f" else array
    elif dtype.itemsize < array.dtype.itemsize and array.dtype.kind == "f":
        finite = np.isfinite(array)
        limits = float(np.finfo(dtype).min), float(np.finfo(dtype).max)
        array = array if finite.all() else np.where(finite, array, 0)
    if limits is not None and not (array.min() >= limits[0] and array.max() <= limits[1]):
        raise ParameterError(f"{path}: {dtype} cannot hold the values from {array.min():g} to {array.max():g}")
    return array.astype(dtype)
