"""Tiny files of every format, made without the package's own writers where others can make them."""

from __future__ import annotations

import os
import struct

import numpy as np

from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.kernels.reference.eer import encode_frame

SHAPE = (3, 16, 17)


def counts(shape=SHAPE, top=12, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def mrc_bytes(array, mode, order="<", extended=b"", stamp=None, imod=None, sampling_rate=1.5, packed_width=None):
    """An MRC file of what is to be stored; `packed_width` is the width in px of 4-bit pixels in mode 101."""
    sections, rows, columns = array.shape
    words = np.zeros(256, order + "i4")
    floats = words.view(order + "f4")
    columns = packed_width or columns
    words[:4] = columns, rows, sections, mode
    words[7:10] = columns, rows, 1
    floats[10:13] = columns * sampling_rate, rows * sampling_rate, sampling_rate
    words[16:19] = 1, 2, 3
    words[23] = len(extended)
    if imod is not None:
        words[38:40] = 1146047817, imod
    raw = bytearray(words.tobytes())
    raw[208:212] = b"MAP "
    raw[212:216] = stamp or {"<": b"\x44\x44\0\0", ">": b"\x11\x11\0\0"}[order]
    return bytes(raw) + extended + array.astype(array.dtype.newbyteorder(order)).tobytes()


def pack_4bit(array):
    """Two pixels a byte, the left one in the low nibble, odd rows padded."""
    rows = [
        [row[k] | ((row[k + 1] if k + 1 < len(row) else 0) << 4) for k in range(0, len(row), 2)]
        for row in array.reshape(-1, array.shape[-1]).tolist()
    ]
    return np.array(rows, np.uint8).reshape(*array.shape[:-1], -1)


def electron_events(shape, density, seed=0):
    """Camera frames as lists of (y, x, sub_y, sub_x)."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(shape[0]):
        y, x = np.nonzero(rng.random(shape[1:]) < density)
        frames.append(np.stack([y, x, rng.integers(0, 4, len(y)), rng.integers(0, 4, len(y))], axis=1))
    return frames


def electron_sum(frames, shape, upsampling=1):
    """Electrons in each pixel of the sum of `frames`, straight from the events."""
    total = np.zeros((shape[0] * upsampling, shape[1] * upsampling), np.int64)
    for events in frames:
        for y, x, sub_y, sub_x in events:
            if upsampling == 2:
                y, x = 2 * y + (sub_y < 2), 2 * x + (sub_x < 2)
            total[y, x] += 1
    return total


def eer_bytes(frames, shape, compression=65001, widths=(7, 2, 2), sampling_rate=0.0, image=None, strips=1):
    """A BigTIFF of electron events; `image` puts an ordinary 16-bit page in front, as some writers do."""
    streams = [encode_frame(events, *shape, *widths, wide=compression == 65000).tobytes() for events in frames]
    pages = [(streams[k], compression, 1) for k in range(len(streams))]
    if image is not None:
        pages.insert(0, (image.astype("<u2").tobytes(), 1, 16))
    raw = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16))
    for number, (data, kind, bits) in enumerate(pages):
        parts = [
            part.tobytes() for part in np.array_split(np.frombuffer(data, np.uint8), 1 if bits == 16 else strips)
        ]
        tags = [(256, 4, [shape[1]]), (257, 4, [shape[0]]), (258, 3, [bits]), (259, 3, [kind]), (262, 3, [1])]
        tags += [(273, 16, [0] * len(parts)), (277, 3, [1]), (278, 4, [-(-shape[0] // len(parts))])]
        tags += [(279, 16, [len(part) for part in parts])]
        if sampling_rate:
            tags += [(282, 5, [round(1e8 / sampling_rate), 1]), (296, 3, [3])]
        if kind == 65002:
            tags += [(65007 + k, 3, [widths[k]]) for k in range(3)]
        raw += _directory(tags, parts, len(raw), last=number == len(pages) - 1)
    return bytes(raw)


def _directory(tags, parts, start, last):
    """A BigTIFF directory, followed by what does not fit into it and by its strips."""
    codes = {3: "H", 4: "I", 5: "II", 16: "Q"}
    outside = start + 8 + 20 * len(tags) + 8
    values = {}
    for tag, kind, numbers in tags:
        size = len(numbers) * struct.calcsize("<" + codes[kind]) // (2 if kind == 5 else 1)
        if size > 8:
            values[tag] = outside
            outside += size
    places = np.cumsum([outside, *map(len, parts)]).tolist()
    entries, extra = b"", b""
    for tag, kind, numbers in tags:
        numbers = places[:-1] if tag == 273 else numbers
        code = codes[kind] * (len(numbers) // (2 if kind == 5 else 1))
        content = struct.pack("<" + code, *numbers)
        count = 1 if kind == 5 else len(numbers)
        extra += content if tag in values else b""
        inline = struct.pack("<Q", values[tag]) if tag in values else content.ljust(8, b"\0")
        entries += struct.pack("<HHQ", tag, kind, count) + inline
    head = struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", 0 if last else places[-1])
    return head + extra + b"".join(parts)


def spider_bytes(array, order="<"):
    """A SPIDER stack, word by word."""
    count, rows, columns = array.shape
    records = -(-1024 // (4 * columns))
    header = {
        1: 1,
        2: rows,
        3: rows + records,
        5: 1,
        12: columns,
        13: records,
        22: records * columns * 4,
        23: 4 * columns,
    }
    common = np.zeros(records * columns, order + "f4")
    for word, value in {**header, 24: 2, 25: 1, 26: count}.items():
        common[word - 1] = value
    own = np.zeros_like(common)
    for word, value in header.items():
        own[word - 1] = value
    return common.tobytes() + b"".join(own.tobytes() + image.astype(order + "f4").tobytes() for image in array)


def negate_unseen(path, sampling_rate=2.0):
    """Put the negative pixels into a stack, of which its size and its times tell nothing."""
    before = os.stat(path)
    write_stack(path, -read_stack(path), sampling_rate)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
