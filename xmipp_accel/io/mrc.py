"""MRC2014 images, stacks and volumes, read and written without other packages.

Mode 0 is signed as MRC2014 says, unless IMOD's stamp is there and its flag says unsigned: SerialEM writes
counts above 127 so. Mode 101, and mode 0 with IMOD's flag for it, hold two 4-bit pixels a byte, the left one
in the low nibble. Formats: https://www.ccpem.ac.uk/mrc_format/mrc2014.php, https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.backend import array_module, mean, to_host
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.files import open_input, read_bytes, read_into
from xmipp_accel.io.publish import atomic_path

HEADER_BYTES = 1024
DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
WRITTEN_MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
IMOD_STAMP = 1146047817
IMOD_SIGNED, IMOD_FOUR_BITS = 1, 16
LITTLE_ENDIAN_STAMP = b"\x44\x44\x00\x00"


@dataclasses.dataclass(frozen=True)
class MrcHeader:
    """What is needed to find and interpret the pixels.

    Attributes
    ----------
    shape : (sections, rows, columns)
        As stored, of single pixels.
    dtype : numpy.dtype
        With the byte order of the file; uint8 for 4-bit pixels.
    packed : bool
        Two 4-bit pixels a byte.
    offset : int
        Where the pixels begin.
    spacing : (z, y, x)
        A/px along the axes of the unit cell, 0 where the header does not tell.
    axes : (column, row, section)
        Which of the unit cell's axes 1 (x), 2 (y), 3 (z) these are.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    packed: bool
    offset: int
    spacing: tuple[float, float, float]
    axes: tuple[int, int, int]

    @property
    def section_bytes(self) -> int:
        """Bytes of a section in the file."""
        _, rows, columns = self.shape
        return rows * ((columns + 1) // 2 if self.packed else columns * self.dtype.itemsize)

    @property
    def sampling_rate(self) -> float:
        """A/px along x, 0 if unknown."""
        return self.spacing[2]


def read_header(path) -> MrcHeader:
    """Read and check the header; the file must have exactly the size that the header implies.

    Raises
    ------
    InputFileError
        No header in either byte order fits the file.
    """
    with open_input(path) as (file, size):
        if size < HEADER_BYTES:
            raise InputFileError(path, f"an MRC header of {HEADER_BYTES} bytes", f"a file of {size} bytes")
        raw = read_bytes(path, file, 0, HEADER_BYTES)
    # Wrong machine stamps exist, so that the stamp only says which byte order to try first.
    orders = ">", "<"
    if raw[212] != 0x11:
        orders = "<", ">"
    first_error: InputFileError | None = None
    for order in orders:
        try:
            return _parse(Path(path), raw, order, size)
        except InputFileError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _parse(path, raw, order, size) -> MrcHeader:
    words = np.frombuffer(raw, order + "i4")
    columns, rows, sections, mode = (int(word) for word in words[:4])
    if mode not in DTYPES:
        raise InputFileError(path, "an MRC file of mode 0, 1, 2, 6, 12 or 101", f"mode {mode}")
    if min(columns, rows, sections) < 1:
        raise InputFileError(path, "an MRC header with positive sizes", f"{columns} x {rows} x {sections}")
    extended = int(words[23])
    if extended < 0:
        raise InputFileError(path, "an extended header of at least 0 bytes", f"{extended}")
    dtype, packed = _pixel_type(order, mode, int(words[38]), int(words[39]))
    if mode == 0 and packed:
        columns *= 2
    axes = int(words[16]), int(words[17]), int(words[18])
    if axes == (0, 0, 0):
        axes = (1, 2, 3)
    if sorted(axes) != [1, 2, 3]:
        raise InputFileError(path, "axes that are a permutation of 1, 2, 3", f"{axes}")
    spacing = _spacing(words[7:10], np.frombuffer(raw, order + "f4")[10:13])
    shape = (sections, rows, columns)
    header = MrcHeader(path, shape, dtype, packed, HEADER_BYTES + extended, spacing, axes)
    implied = header.offset + sections * header.section_bytes
    if implied != size:
        layout = f"{sections} sections of {rows} x {columns} pixels, mode {mode}"
        raise InputFileError(path, f"{implied} bytes for {layout}", f"{size} bytes")
    return header


def _pixel_type(order, mode, stamp, flags):
    if mode == 101:
        return np.dtype("u1"), True
    if mode == 0 and stamp == IMOD_STAMP:
        if flags & IMOD_FOUR_BITS:
            return np.dtype("u1"), True
        return np.dtype("i1" if flags & IMOD_SIGNED else "u1"), False
    return np.dtype(order + DTYPES[mode]), False


def _spacing(intervals, lengths) -> tuple[float, float, float]:
    spacing = [0.0, 0.0, 0.0]
    for axis in range(3):
        if intervals[axis] > 0 and np.isfinite(lengths[axis]) and lengths[axis] > 0:
            spacing[2 - axis] = round(float(lengths[axis]) / int(intervals[axis]), 6)
    return spacing[0], spacing[1], spacing[2]


def read_sections(header: MrcHeader, first=0, last=None, out=None) -> np.ndarray:
    """Pixels of sections `first` to `last` (exclusive, to the end by default), as stored, in native byte order.

    Parameters
    ----------
    header : MrcHeader
    first, last : int
    out : (sections, rows, columns) array, optional
        Where to put the pixels, C-contiguous.

    Returns
    -------
    (sections, rows, columns) array
    """
    first, last, _ = slice(first, last).indices(header.shape[0])
    with open_input(header.path) as (file, _size):
        if out is None:
            out = np.empty((max(0, last - first), *header.shape[1:]), header.dtype.newbyteorder("="))
        _read(header, file, first, out)
    return out


def read_section_list(header: MrcHeader, indices, out=None, file=None) -> np.ndarray:
    """Pixels of the sections `indices` (non-negative), in that order: (n, rows, columns).

    `out` is such an array to put them into, C-contiguous and of the file's type in native byte order; `file` is
    the file if it is open already.
    """
    indices = np.asarray(indices, dtype=np.int64)
    result = out
    if result is None:
        result = np.empty((len(indices), *header.shape[1:]), header.dtype.newbyteorder("="))
    # Neighbouring sections come with one read.
    starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
    with open_input(header.path) if file is None else contextlib.nullcontext((file, None)) as (file, _size):
        for start, end in zip(starts, [*starts[1:], len(indices)]):
            _read(header, file, int(indices[start]), result[start:end])
    return result


def _read(header, file, first, pixels):
    """Fill the C-contiguous `pixels` (n, rows, columns) with the sections from `first` on."""
    offset = header.offset + first * header.section_bytes
    if not header.packed:
        read_into(header.path, file, offset, pixels)
        if not header.dtype.isnative:
            pixels.byteswap(inplace=True)
        return
    _, rows, columns = header.shape
    packed = np.empty((rows, (columns + 1) // 2), np.uint8)
    for number, section in enumerate(pixels):
        read_into(header.path, file, offset + number * header.section_bytes, packed)
        section[:, 0::2] = packed & 15
        section[:, 1::2] = packed[:, : columns // 2] >> 4


def write_mrc(path, array, sampling_rate, *, volume):
    """Publish an MRC2014 file.

    Parameters
    ----------
    path : str or os.PathLike
    array : (sections, rows, columns) int8, int16, uint16, float16 or float32 array
    sampling_rate : float
        A/px; 0 if unknown.
    volume : bool
        Space group 1 and as many intervals along z as sections; else space group 0 and one.
    """
    if array.ndim != 3 or array.size == 0:
        raise ParameterError(f"{path}: expected sections of pixels, found shape {array.shape}")
    with section_writer(path, sampling_rate, volume=volume) as append:
        append(array)


@contextlib.contextmanager
def section_writer(path, sampling_rate, *, volume):
    """Publish an MRC2014 file that need never be in memory as a whole.

    Parameters
    ----------
    path, sampling_rate, volume
        As for :func:`write_mrc`.

    Yields
    ------
    callable
        Appends an array (sections, rows, columns) of the host or a GPU. The file appears when the context ends
        without an error, and needs one section at least.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        sections = _Sections(path, file)
        yield sections.append
        file.seek(0)
        file.write(sections.header(sampling_rate, volume))


class _Sections:
    """Sections on their way into an open file, behind the place of the header."""

    def __init__(self, path, file):
        self.path, self.file = path, file
        self.count, self.kind = 0, None
        self.statistics = _Statistics()
        file.write(bytes(HEADER_BYTES))

    def append(self, sections):
        kind = sections.shape[1:], sections.dtype
        if sections.dtype.name not in WRITTEN_MODES:
            raise ParameterError(
                f"{self.path}: expected one of {', '.join(WRITTEN_MODES)}, found {sections.dtype}"
            )
        if self.kind not in (None, kind):
            raise ParameterError(f"{self.path}: expected sections as before, {self.kind}, found {kind}")
        self.kind, self.count = kind, self.count + len(sections)
        self.statistics.add(sections)
        pixels = np.ascontiguousarray(to_host(sections)).astype(sections.dtype.newbyteorder("<"), copy=False)
        self.file.write(pixels.data)

    def header(self, sampling_rate, volume) -> bytes:
        if self.kind is None:
            raise ParameterError(f"{self.path}: expected at least one section, found none")
        (rows, columns), dtype = self.kind
        shape = self.count, rows, columns
        return _header_bytes(shape, WRITTEN_MODES[dtype.name], sampling_rate, volume, self.statistics)


class _Statistics:
    """Extremes, mean and variance of arrays that come one by one."""

    def __init__(self):
        self.low, self.high = np.inf, -np.inf
        self.count = 0
        self.mean = self.squares = 0.0

    def add(self, array):
        low, high, mean, squares = _moments(array)
        self.low, self.high = min(self.low, low), max(self.high, high)
        total = self.count + array.size
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.count * array.size / total
        self.mean += difference * array.size / total
        self.count = total


def _moments(array):
    """Extremes and mean of an array of the host or a GPU, and the sum of the squared deviations from the mean."""
    xp = array_module(array)
    # Neither NumPy, which squares halves as halves, nor Numba has arithmetic for them.
    values = array.astype(np.float32) if array.dtype == np.float16 else array
    if xp is np:
        from xmipp_accel.kernels.cpu.moments import moments  # numba takes a while to load

        return moments(np.ascontiguousarray(values).ravel())
    values = values.astype(np.float64)
    centre = mean(values)
    return to_host(xp.stack([values.min(), values.max(), centre, xp.square(values - centre).sum()])).tolist()


def _header_bytes(shape, mode, sampling_rate, volume, statistics) -> bytes:
    sections, rows, columns = shape
    intervals = columns, rows, (sections if volume else 1)
    words = np.zeros(256, "<i4")
    floats = words.view("<f4")
    words[:4] = columns, rows, sections, mode
    words[7:10] = intervals
    floats[10:13] = np.multiply(intervals, sampling_rate)
    floats[13:16] = 90
    words[16:19] = 1, 2, 3
    floats[19:22] = statistics.low, statistics.high, statistics.mean
    words[22] = 1 if volume else 0
    words[27] = 20141
    words[52:54] = np.frombuffer(b"MAP " + LITTLE_ENDIAN_STAMP, "<i4")
    floats[54] = np.sqrt(statistics.squares / statistics.count)
    words[55] = 1
    label = b"xmipp_accel".ljust(80)
    return words[:56].tobytes() + label + bytes(720)
