"""The directories of TIFF and BigTIFF files, read strictly.

Half-copied movies are common, and a reader that forgives gives short stacks or wrong pixels without a word. So the
chain of directories is walked to its end, everything that it points to must lie within the file and not overlap,
and a gap that could be a page which no directory mentions is an error. Format: TIFF 6.0, and libtiff's BigTIFF.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.files import open_input, read_bytes

# Struct codes of the field types; rationals are pairs.
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_TYPES.update({13: "I", 16: "Q", 17: "q", 18: "Q"})
STRIP_OFFSETS, STRIP_BYTE_COUNTS = 273, 279


@dataclasses.dataclass(frozen=True)
class Directory:
    """One page.

    Attributes
    ----------
    tags : dict
        Values by tag, rationals as pairs; of texts and private blocks outside the directory only NaN.
    size : int
        Bytes of the directory and the strips.
    """

    tags: dict[int, tuple[float, ...]]
    size: int

    def whole(self, tag, default=None):
        """The one whole number of a tag; None or `default` if it is absent, -1 if it is anything else."""
        values = self.tags.get(tag)
        if values is None:
            return default
        return values[0] if len(values) == 1 and isinstance(values[0], int) else -1


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Sizes that differ between TIFF and BigTIFF."""

    order: str
    header: int
    count: str
    entry: str
    offset: str

    def size(self, code) -> int:
        return struct.calcsize(self.order + code)


class DirectoryReader:
    """Walks the chain of a file once.

    Attributes
    ----------
    order : {"<", ">"}
        Byte order of the file.
    pages : list of Directory
        In the order of the chain.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.pages: list[Directory] = []
        self._regions: dict[tuple[int, int], str] = {}
        with open_input(path) as (file, size):
            self._file, self._size = file, size
            self._layout, offset = self._start()
            self.order = self._layout.order
            while offset:
                offset = self._directory(offset)
        if not self.pages:
            self._fail("at least one page", "none")
        self._check_regions()

    def _fail(self, expected, found):
        raise InputFileError(self.path, expected, found)

    def _start(self):
        if self._size < 16:
            self._fail("a TIFF header", f"a file of {self._size} bytes")
        raw = read_bytes(self.path, self._file, 0, 16)
        order = {b"II": "<", b"MM": ">"}.get(raw[:2], "")
        magic = struct.unpack(order + "H", raw[2:4])[0] if order else None
        if magic == 42:
            self._claim(0, 8, "the header")
            return _Layout(order, 8, "H", "HHI", "I"), struct.unpack(order + "I", raw[4:8])[0]
        if magic == 43 and struct.unpack(order + "HH", raw[4:8]) == (8, 0):
            self._claim(0, 16, "the header")
            return _Layout(order, 16, "Q", "HHQ", "Q"), struct.unpack(order + "Q", raw[8:])[0]
        self._fail("a TIFF or BigTIFF header", repr(raw[:8]))
        raise AssertionError

    def _claim(self, start, length, what):
        """Note what the bytes are for; writers let pages share values, but nothing else."""
        end = start + length
        if end > self._size:
            self._fail(f"{what} in bytes {start} to {end}", f"a file of {self._size} bytes")
        region = (start, end)
        if region in self._regions and not (what == self._regions[region] and what.startswith("tag")):
            self._fail("separate places for all parts", f"{what} in the place of {self._regions[region]}")
        self._regions[region] = what

    def _unpack(self, offset, code, count, what):
        length = count * self._layout.size(code)
        self._claim(offset, length, what)
        raw = read_bytes(self.path, self._file, offset, length)
        return struct.unpack(self._layout.order + count * code, raw)

    def _directory(self, offset) -> int:
        """Read one directory and return the offset of the next."""
        layout, page = self._layout, len(self.pages)
        head, tail = layout.size(layout.count), layout.size(layout.offset)
        if offset + head > self._size:
            self._fail(f"the directory of page {page} at byte {offset}", f"a file of {self._size} bytes")
        (count,) = struct.unpack(layout.order + layout.count, read_bytes(self.path, self._file, offset, head))
        entry = layout.size(layout.entry) + tail
        length = head + count * entry + tail
        self._claim(offset, length, f"the directory of page {page}")
        raw = read_bytes(self.path, self._file, offset, length)
        tags: dict[int, tuple[float, ...]] = {}
        previous = -1
        for start in range(head, head + count * entry, entry):
            tag, kind, values = struct.unpack_from(layout.order + layout.entry, raw, start)
            if tag <= previous:
                self._fail(f"ascending tags in page {page}", f"tag {tag} after {previous}")
            previous = tag
            tags[tag] = self._values(tag, kind, values, raw[start + entry - tail : start + entry], offset)
        self.pages.append(Directory(tags, length + self._claim_strips(tags, page)))
        return struct.unpack(layout.order + layout.offset, raw[-tail:])[0]

    def _values(self, tag, kind, count, inline, offset):
        layout = self._layout
        if kind not in _TYPES or count < 1:
            self._fail(f"a known type and values of tag {tag}", f"type {kind}, {count} values")
        code = _TYPES[kind]
        if count * layout.size(code) <= len(inline):
            return struct.unpack_from(layout.order + count * code, inline)
        (place,) = struct.unpack(layout.order + layout.offset, inline)
        # Texts and private blocks may be long; only their place is of interest.
        if kind in (1, 2, 6, 7):
            self._claim(place, count, f"tag {tag}")
            return (float("nan"),)
        if count * layout.size(code) > self._size:
            self._fail(f"tag {tag} with {count} values", f"a file of {self._size} bytes")
        return self._unpack(place, code, count, f"tag {tag}")

    def _claim_strips(self, tags, page) -> int:
        offsets, counts = tags.get(STRIP_OFFSETS, ()), tags.get(STRIP_BYTE_COUNTS, ())
        if not offsets or len(offsets) != len(counts):
            self._fail(f"strips in page {page}", f"{len(offsets)} offsets and {len(counts)} byte counts")
        for strip, (offset, count) in enumerate(zip(offsets, counts)):
            if not (isinstance(offset, int) and isinstance(count, int) and offset > 0 and count > 0):
                self._fail(f"place and size of strip {strip} of page {page}", f"byte {offset}, {count} bytes")
            self._claim(offset, count, f"strip {strip} of page {page}")
        return sum(counts)

    def _check_regions(self):
        regions = np.array(sorted(self._regions), dtype=np.int64)
        overlapping = np.flatnonzero(regions[1:, 0] < regions[:-1, 1])
        if len(overlapping):
            first, second = (self._regions[tuple(regions[overlapping[0] + k].tolist())] for k in (0, 1))
            self._fail("separate places for all parts", f"{second} within {first}")
        unused = self._size - int((regions[:, 1] - regions[:, 0]).sum())
        smallest = min(page.size for page in self.pages)
        # Writers leave gaps of some bytes, or an old directory; half a page is more than that.
        if 2 * unused >= smallest:
            self._fail(f"{len(self.pages)} pages to fill the file", f"{unused} bytes that none refers to")
