"""TIFF and BigTIFF stacks of one sample a pixel, in strips, uncompressed or LZW, deflate, zstd or PackBits.

The directories are read by `ifd`; imagecodecs only unpacks strips, each of which must give exactly its pixels.
Row 0 of an array is the first row stored, which TIFF means to be the top one. Movies are read the other way round,
see `io.movies`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.files import open_input, read_bytes, read_into
from xmipp_accel.io.ifd import STRIP_BYTE_COUNTS, STRIP_OFFSETS, Directory, DirectoryReader
from xmipp_accel.io.publish import atomic_path

NONE = 1
# Decoder of imagecodecs and the most that a byte of it can unpack to, by compression tag.
_DECODERS = {5: ("lzw", 4096), 8: ("deflate", 1100), 32946: ("deflate", 1100), 32773: ("packbits", 128)}
_DECODERS.update({50000: ("zstd", 1 << 16), 34926: ("zstd", 1 << 16)})
_DTYPES = {(1, 8): "u1", (1, 16): "u2", (1, 32): "u4", (2, 8): "i1", (2, 16): "i2", (2, 32): "i4"}
_DTYPES.update({(3, 16): "f2", (3, 32): "f4", (3, 64): "f8"})
# Pages are divided where there are too few of them to end at about the same time in all threads.
_PIECES_A_WORKER = 4
# Small strips are decoded together before they go to their places, as long as all of them stay in the cache.
_SCRATCH_BYTES = 1 << 17
_CENTIMETRE = 3
_LARGEST_SAMPLING_RATE = 1000.0  # A/px; above, the tag describes a print


@dataclasses.dataclass(frozen=True)
class PageFormat:
    """What all pages of a stack have in common.

    Attributes
    ----------
    dtype : numpy.dtype
        With the byte order of the file.
    predictor : {1, 2}
        2: differences between neighbours in a row are stored.
    """

    rows: int
    columns: int
    dtype: np.dtype
    compression: int
    predictor: int
    rows_per_strip: int


@dataclasses.dataclass(frozen=True)
class TiffHeader:
    """What is needed to find and decode the pages.

    Attributes
    ----------
    strips : list of (offsets, byte counts)
        One pair a page.
    sampling_rate : float
        A/px, 0 if unknown.
    """

    path: Path
    format: PageFormat
    strips: list
    sampling_rate: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pages, rows, columns."""
        return len(self.strips), self.format.rows, self.format.columns

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels, in native byte order."""
        return self.format.dtype.newbyteorder("=")


def read_header(path) -> TiffHeader:
    """Read and check all directories.

    Raises
    ------
    InputFileError
        The file is damaged or cut, its pages differ, or it has tiles, colours or a compression not listed above.
    """
    return check_header(DirectoryReader(path))


def check_header(reader: DirectoryReader) -> TiffHeader:
    """Check what the directories say; as :func:`read_header`."""
    path = reader.path
    formats = [page_format(path, page, reader.order) for page in reader.pages]
    for number, other in enumerate(formats):
        if other != formats[0]:
            raise InputFileError(path, f"pages like the first, {formats[0]}", f"page {number} with {other}")
    strips = [(page.tags[STRIP_OFFSETS], page.tags[STRIP_BYTE_COUNTS]) for page in reader.pages]
    for number, (_offsets, counts) in enumerate(strips):
        _check_strips(path, formats[0], number, counts)
    return TiffHeader(path, formats[0], strips, sampling_rate(reader.pages[0]))


def page_format(path, page: Directory, order) -> PageFormat:
    """Format of a page; `InputFileError` if it is none that can be read."""
    rows, columns, bits = page.whole(257, -1), page.whole(256, -1), page.whole(258, -1)
    compression, predictor = page.whole(259, -1), page.whole(317, 1)
    # Without the tag the pixels are whole numbers, which those of 32 bits never are in practice: a damaged tag.
    sample_format = page.whole(339, 1 if bits <= 16 else -1)
    expected = {
        "one sample a pixel": page.whole(277, 1) == 1,
        "photometric interpretation 1 (0 is black)": page.whole(262, 1) == 1,
        "bits from the left (fill order 1)": page.whole(266, 1) == 1,
        "strips, not tiles": 322 not in page.tags and 324 not in page.tags,
        "a size above 0": rows > 0 and columns > 0,
        "8 or 16-bit pixels, or ones of 32 or 64 bits with a sample format": (sample_format, bits) in _DTYPES,
        "no compression, LZW, deflate, zstd or PackBits": compression == NONE or compression in _DECODERS,
        "predictor 1 or 2": predictor == 1 or (predictor == 2 and sample_format in (1, 2) and compression != NONE),
    }
    for text, fulfilled in expected.items():
        if not fulfilled:
            tags = (256, 257, 258, 259, 262, 266, 277, 317, 339)
            found = ", ".join(f"{tag}={page.tags[tag][0]}" for tag in tags if tag in page.tags)
            raise InputFileError(path, text, f"the tags {found}")
    rows_per_strip = min(page.whole(278, rows), rows)
    dtype = np.dtype(order + _DTYPES[sample_format, bits])
    strips = len(page.tags[STRIP_OFFSETS])
    if rows_per_strip < 1 or -(-rows // rows_per_strip) != strips:
        raise InputFileError(path, f"strips of {rows_per_strip} rows for {rows} rows", f"{strips} strips")
    return PageFormat(rows, columns, dtype, compression, predictor, rows_per_strip)


def _strip_rows(format: PageFormat, strip) -> int:
    return min(format.rows_per_strip, format.rows - strip * format.rows_per_strip)


def _check_strips(path, format, number, counts):
    """Compare sizes before anything of that size is allocated."""
    for strip, count in enumerate(counts):
        size = _strip_rows(format, strip) * format.columns * format.dtype.itemsize
        name = f"strip {strip} of page {number}"
        if format.compression == NONE and count != size:
            raise InputFileError(path, f"{size} bytes in {name}", f"{count}")
        if format.compression != NONE and count * _DECODERS[format.compression][1] < size:
            raise InputFileError(path, f"{name} to unpack to {size} bytes", f"{count} bytes, too few for that")


def sampling_rate(page: Directory) -> float:
    """A/px from the resolution tags, 0 if they are not in pixels a centimetre."""
    resolution = page.tags.get(282, ())
    if page.whole(296) != _CENTIMETRE or len(resolution) != 2 or min(resolution) <= 0:
        return 0.0
    rate = round(1e8 * resolution[1] / resolution[0], 6)
    return rate if 0 < rate <= _LARGEST_SAMPLING_RATE else 0.0


def read_page_list(header: TiffHeader, indices, workers=None, out=None) -> np.ndarray:
    """Decode the pages `indices` (non-negative), in that order.

    Parameters
    ----------
    header : TiffHeader
    indices : sequence of int
    workers : int, optional
        Threads; as many as there are cores by default.
    out : (n, rows, columns) array of `header.dtype`, optional
        Where to put the pixels; any view, such as one with its rows in reverse.

    Returns
    -------
    (n, rows, columns) array
        Native byte order.
    """
    result = np.empty((len(indices), *header.shape[1:]), header.dtype) if out is None else out
    decode = _strip_decoder(header.path, header.format.compression)
    workers = workers or cpu_count()
    pieces = iter(list(_pieces(header, indices, result, workers)))
    with open_input(header.path) as (file, _size), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for task in [pool.submit(_decode_pieces, header, file, decode, pieces) for _ in range(workers)]:
            task.result()
    return result


def _pieces(header, indices, result, workers):
    """Index of a page, range of its strips and memory for its rows, of enough pieces to keep all workers busy."""
    parts = -(-_PIECES_A_WORKER * workers // max(1, len(indices)))
    for index, page in zip(indices, result):
        strips = len(header.strips[index][0])
        edges = sorted({strips * part // parts for part in range(parts + 1)})
        for first, last in zip(edges, edges[1:]):
            rows = page[first * header.format.rows_per_strip : last * header.format.rows_per_strip]
            yield int(index), first, last, rows


def _strip_decoder(path, compression):
    if compression == NONE:
        return _copied
    name = _DECODERS[compression][0]
    try:
        import imagecodecs
    except ModuleNotFoundError as error:
        raise InputFileError(
            path, "an uncompressed file", f"{name} and no package imagecodecs to read it"
        ) from error
    return getattr(imagecodecs, f"{name}_decode")


def _decode_pieces(header, file, decode, pieces):
    """Decode what is left of `pieces`, which other threads take from as well."""
    stored = header.format
    strip_bytes = stored.rows_per_strip * stored.columns * stored.dtype.itemsize
    strips = max(1, _SCRATCH_BYTES // strip_bytes)
    # One byte of room more shows a strip that holds too much.
    scratch = np.empty(strips * strip_bytes + 1, np.uint8)
    for index, first, last, page in pieces:
        offsets, counts = (numbers[first:last] for numbers in header.strips[index])
        packed = enumerate(_packed_strips(header.path, file, offsets, counts), start=first)
        for start in range(0, len(page), strips * stored.rows_per_strip):
            rows = page[start : start + strips * stored.rows_per_strip]
            for begin in range(0, rows.nbytes, strip_bytes):
                size = min(strip_bytes, rows.nbytes - begin)
                _unpack(header, decode, index, *next(packed), scratch.data[begin : begin + size + 1])
            pixels = scratch[: rows.nbytes].view(stored.dtype).reshape(rows.shape)
            if stored.predictor == 2:
                np.cumsum(pixels, axis=1, dtype=rows.dtype, out=rows)
            else:
                rows[:] = pixels


def _packed_strips(path, file, offsets, counts):
    """Yield the bytes of each strip; read at once, unless much else lies between them."""
    start, end = min(offsets), max(offset + count for offset, count in zip(offsets, counts))
    if end - start > 2 * sum(counts):
        yield from (memoryview(read_bytes(path, file, offset, count)) for offset, count in zip(offsets, counts))
        return
    content = np.empty(end - start, np.uint8)
    read_into(path, file, start, content)
    yield from (content.data[offset - start : offset - start + count] for offset, count in zip(offsets, counts))


def _unpack(header, decode, page, strip, packed, room):
    """Fill all but the last byte of `room`."""
    # An LZW stream begins with the clear code; a strip that does not is at a wrong place.
    if header.format.compression == 5 and (len(packed) < 2 or packed[0] != 0x80 or packed[1] & 0x80):
        expected = f"strip {strip} of page {page} to begin with an LZW clear code"
        raise InputFileError(header.path, expected, packed[:2].hex())
    size = len(room) - 1
    try:
        found = len(decode(packed, out=room))
    except Exception as error:  # each codec has an error type of its own, and some raise those of Python
        raise InputFileError(header.path, _expected(page, strip, size), f"{error}") from error
    if found != size:
        raise InputFileError(header.path, _expected(page, strip, size), f"{found} or more")


def _expected(page, strip, size):
    return f"strip {strip} of page {page} to unpack to {size} bytes"


def _copied(packed, out):
    """Decoder of strips that are not compressed."""
    out = out[: len(packed)]
    out[:] = packed
    return out


def write_tiff(path, array, sampling_rate, compression=None):
    """Publish a multi-page TIFF with the package tifffile.

    Parameters
    ----------
    path : str or os.PathLike
    array : (n, rows, columns) array
        Row 0 is stored first; for movies that must be the last one.
    sampling_rate : float
        A/px; 0 if unknown.
    compression : {None, "lzw", "zlib", "zstd"}
    """
    import tifffile

    array = np.asarray(array)
    if array.ndim != 3 or array.size == 0:
        raise ParameterError(f"{path}: expected a stack of images, found shape {array.shape}")
    options: dict = dict(photometric="minisblack", compression=compression, metadata=None)
    if sampling_rate:
        # A fraction of whole numbers: from a float, tifffile makes an inexact one.
        resolution = round(1e8 / sampling_rate), 1
        options.update(resolution=(resolution, resolution), resolutionunit="CENTIMETER")
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=array.nbytes > 2**31) as writer:
        for page in array:
            writer.write(page, **options)
