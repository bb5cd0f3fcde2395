"""SPIDER images, stacks (.stk of Xmipp) and volumes.

The header is made of float32 words, numbered from 1: nslice 1, nrow 2, irec 3, iform 5, fmax 7, fmin 8, av 9,
sig 10, nsam 12, labrec 13, labbyt 22, lenbyt 23, istack 24, maxim 26, imgnum 27. In a stack each image has a
header of its own after the common one. Format: https://spider.wadsworth.org/spider_doc/spider/docs/image_doc.html.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.files import open_input, read_bytes, read_into
from xmipp_accel.io.publish import atomic_path

_SMALLEST_HEADER = 1024
_WORDS = 256
_LARGEST = 1 << 24  # beyond this a float32 does not hold every whole number


@dataclasses.dataclass(frozen=True)
class SpiderHeader:
    """What is needed to find the pixels.

    Attributes
    ----------
    shape : (sections, rows, columns)
        The sections are the images of a stack, or the slices of a volume.
    dtype : numpy.dtype
        float32 with the byte order of the file.
    first : int
        Where the first section's pixels begin.
    stride : int
        Bytes from one section to the next.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    first: int
    stride: int


def read_header(path) -> SpiderHeader:
    """Read and check the header; the file must have exactly the size that the header implies."""
    with open_input(path) as (file, size):
        if size < _SMALLEST_HEADER:
            raise InputFileError(path, f"a SPIDER header of {_SMALLEST_HEADER} bytes", f"a file of {size} bytes")
        raw = read_bytes(path, file, 0, _SMALLEST_HEADER)
    for order in "<>":
        words = np.frombuffer(raw, order + "f4", _WORDS)
        if _is_header(words):
            return _parse(Path(path), words, order, size)
    raise InputFileError(path, "a SPIDER header", "sizes and record lengths that contradict each other")


def _word(words, number) -> int:
    value = words[number - 1]
    return int(value) if np.isfinite(value) and value == np.rint(value) and abs(value) <= _LARGEST else -1


def _is_header(words) -> bool:
    rows, columns, record, records, length = (_word(words, number) for number in (2, 12, 23, 13, 22))
    if min(rows, columns, _word(words, 1)) < 1:
        return False
    expected = _record_layout(columns)
    return (record, records, length) == expected


def _record_layout(columns) -> tuple[int, int, int]:
    """Bytes of a record, records of a header and bytes of a header: a header is whole records of one row each."""
    record = 4 * columns
    records = -(-_SMALLEST_HEADER // record)
    return record, records, records * record


def _parse(path, words, order, size) -> SpiderHeader:
    slices, rows, columns, header = (_word(words, number) for number in (1, 2, 12, 22))
    stacked, images = _word(words, 24), _word(words, 26)
    section = 4 * rows * columns
    if stacked <= 0:
        shape, first, stride = (slices, rows, columns), header, section
        implied = header + slices * section
    elif slices != 1:
        raise InputFileError(path, "a SPIDER stack of images", f"a stack of volumes with {slices} slices")
    elif images < 1:
        raise InputFileError(path, "a SPIDER stack of at least 1 image", f"maxim {words[25]}")
    else:
        shape, first, stride = (images, rows, columns), 2 * header, header + section
        implied = header + images * stride
    if implied != size:
        layout = " x ".join(map(str, shape))
        raise InputFileError(path, f"{implied} bytes for {layout} pixels", f"{size} bytes")
    return SpiderHeader(path, shape, np.dtype(order + "f4"), first, stride)


def read_section_list(header: SpiderHeader, indices, out=None, file=None) -> np.ndarray:
    """Pixels of the sections `indices` (non-negative), in that order: (n, rows, columns) float32.

    `out` is such an array to put them into, C-contiguous; `file` is the file if it is open already.
    """
    native = header.dtype.newbyteorder("=")
    result = np.empty((len(indices), *header.shape[1:]), native) if out is None else out
    with open_input(header.path) if file is None else contextlib.nullcontext((file, None)) as (file, _size):
        for pixels, index in zip(result, indices):
            read_into(header.path, file, header.first + int(index) * header.stride, pixels)
    return result if header.dtype == native else result.byteswap(inplace=True)


def write_stack(path, array):
    """Publish a little-endian SPIDER stack, as Xmipp writes it.

    Parameters
    ----------
    path : str or os.PathLike
    array : (n, rows, columns) array
        Written as float32.
    """
    array = np.ascontiguousarray(array, dtype="<f4")
    if array.ndim != 3 or array.size == 0:
        raise ParameterError(f"{path}: expected a stack of images, found shape {array.shape}")
    count, rows, columns = array.shape
    if max(array.shape) > _LARGEST:
        raise ParameterError(f"{path}: a SPIDER header cannot hold {max(array.shape)}")
    record, records, length = _record_layout(columns)
    common = np.zeros(length // 4, "<f4")
    common[[0, 1, 4, 11, 12, 21, 22]] = 1, rows, 1, columns, records, length, record
    own = common.copy()
    common[[2, 23, 24, 25]] = records + rows, 2, 1, count
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(common.tobytes())
        for number, image in enumerate(array, start=1):
            deviation = image.std(dtype=np.float64)
            own[[2, 5, 6, 7, 8, 9]] = (
                records + rows,
                1,
                image.max(),
                image.min(),
                image.mean(dtype=np.float64),
                deviation,
            )
            own[26] = number
            file.write(own.tobytes())
            file.write(image.data)
