"""EER movies: BigTIFF files with one directory for each of the camera's hundreds of frames a second.

A frame of the movie is the sum of several of these. Compression 65000 has codes of 8 + 4 bits, 65001 of 7 + 4, and
65002 tells their widths in tags.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from pathlib import Path

import numpy as np

from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.electrons import Coding, Streams
from xmipp_accel.io.files import open_input
from xmipp_accel.io.ifd import STRIP_BYTE_COUNTS, STRIP_OFFSETS, Directory, DirectoryReader
from xmipp_accel.io.tiff import page_format, sampling_rate

COMPRESSIONS = (65000, 65001, 65002)
_LARGEST_SENSOR = 1 << 15


@dataclasses.dataclass(frozen=True)
class EerHeader:
    """What is needed to find and decode the camera's frames.

    Attributes
    ----------
    strips : list of (offsets, byte counts)
        One pair for each of the camera's frames.
    sizes : tuple of int
        How many of them make each frame of the movie.
    """

    path: Path
    coding: Coding
    strips: list
    sizes: tuple[int, ...]
    upsampling: int
    sampling_rate: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames of the movie, rows, columns."""
        rows, columns = self.coding.rows * self.upsampling, self.coding.columns * self.upsampling
        return len(self.sizes), rows, columns

    @property
    def dtype(self) -> np.dtype:
        """Wide enough for an electron in each of the summed frames."""
        return np.dtype(np.uint8 if max(self.sizes) <= 255 else np.uint16)


def is_eer(reader: DirectoryReader) -> bool:
    """Whether any page holds electron events."""
    return any(page.whole(259) in COMPRESSIONS for page in reader.pages)


def read_header(reader: DirectoryReader, divide, upsampling) -> EerHeader:
    """Check the directories of an EER file.

    Parameters
    ----------
    reader : DirectoryReader
    divide : callable
        ``divide(path, number of camera frames)`` gives how many of them make each frame of the movie.
    upsampling : {1, 2}
        2 for pixels of half the size, from the electrons' places within the pixels.
    """
    if upsampling not in (1, 2):
        raise ParameterError(f"eer_upsampling: expected 1 or 2, found {upsampling}")
    path = reader.path
    pages = _frame_pages(reader)
    codings = [_coding(path, page) for page in pages]
    for number, coding in enumerate(codings):
        if coding != codings[0]:
            raise InputFileError(path, f"frames like the first, {codings[0]}", f"frame {number} with {coding}")
    sizes = divide(path, len(pages))
    if upsampling == 2 and not (codings[0].x_bits and codings[0].y_bits):
        raise InputFileError(path, "places within pixels, for upsampling", "a file without")
    strips = [(page.tags[STRIP_OFFSETS], page.tags[STRIP_BYTE_COUNTS]) for page in pages]
    return EerHeader(path, codings[0], strips, sizes, upsampling, sampling_rate(pages[0]))


def _frame_pages(reader) -> list[Directory]:
    """Pages with electron events, which some writers precede or follow with the sum as an ordinary image."""
    pages = list(reader.pages)
    for place in (0, -1):
        if pages[place].whole(259) not in COMPRESSIONS:
            page_format(reader.path, pages.pop(place), reader.order)
    return pages


def _coding(path, page) -> Coding:
    rows, columns, compression = page.whole(257, -1), page.whole(256, -1), page.whole(259)
    if not (0 < rows <= _LARGEST_SENSOR and 0 < columns <= _LARGEST_SENSOR):
        raise InputFileError(path, f"a sensor of up to {_LARGEST_SENSOR} px", f"{columns} x {rows}")
    if compression == 65000:
        widths = 8, 2, 2
    elif compression == 65001:
        widths = 7, 2, 2
    elif compression == 65002:
        widths = page.whole(65007, 7), page.whole(65008, 2), page.whole(65009, 2)
        if not (1 <= widths[0] <= 16 and 0 <= widths[1] <= 4 and 0 <= widths[2] <= 4):
            raise InputFileError(path, "codes of 1-16, 0-4 and 0-4 bits", f"{widths}")
    else:
        raise InputFileError(path, "electron events in all pages but one", f"a page of compression {compression}")
    # A code covers at most 2**bits pixels: more of them than the strips can hold means a wrong size.
    smallest = rows * columns // (1 << widths[0]) * widths[0] // 8
    held = sum(page.tags[STRIP_BYTE_COUNTS])
    if held < smallest:
        raise InputFileError(path, f"{smallest} bytes or more for {columns} x {rows} px", f"{held} bytes")
    return Coding(rows, columns, *widths, wide=compression == 65000)


def read_frames(header: EerHeader, first, last, workers=None, out=None) -> np.ndarray:
    """Decode and sum the frames `first` to `last` (exclusive) of the movie.

    Parameters
    ----------
    header : EerHeader
    first, last : int
    workers : int, optional
        Threads, one for each frame of the movie; as many as there are cores by default.
    out : (last - first, rows, columns) array of `header.dtype`, optional

    Returns
    -------
    (last - first, rows, columns) array of electron counts
    """
    result = np.empty((last - first, *header.shape[1:]), header.dtype) if out is None else out
    workers = max(1, min(last - first, workers or cpu_count()))
    frames = iter(list(zip(range(first, last), result)))
    with open_input(header.path) as (file, _size), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for task in [pool.submit(_sum_groups, header, file, frames) for _ in range(workers)]:
            task.result()
    return result


def _sum_groups(header, file, frames):
    """Decode what is left of `frames`, which other threads take from as well."""
    words = np.empty(0, np.uint32)
    for frame, target in frames:
        streams = Streams(header, frame, frame + 1)
        words = words if len(words) >= streams.words else np.empty(streams.words, np.uint32)
        for k in range(len(streams.numbers)):
            streams.read(file, k, words)
        target[:] = 0
        streams.add_electrons(words, target[None])


def read_frames_to(header: EerHeader, device, first, last):
    """As :func:`read_frames`; a GPU gets the streams, which are smaller, and decodes them.

    Returns
    -------
    (last - first, rows, columns) array of `header.dtype` on the device
    """
    if device.kind == "cpu":
        return read_frames(header, first, last)
    streams = Streams(header, first, last)
    words = device.host_buffer((streams.words,), np.uint32)
    with open_input(header.path) as (file, _size), concurrent.futures.ThreadPoolExecutor(cpu_count()) as pool:
        for task in [pool.submit(streams.read, file, k, words) for k in range(len(streams.numbers))]:
            task.result()
    words = device.upload(words)
    shape = last - first, *header.shape[1:]
    with device.activate():
        # The GPU adds to words of four bytes.
        memory = device.xp.zeros(-(-math.prod(shape) * header.dtype.itemsize // 4), np.uint32)
        counts = memory.view(header.dtype)[: math.prod(shape)].reshape(shape)
        streams.add_electrons(words, counts)
    return counts
