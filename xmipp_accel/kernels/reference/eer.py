"""Electron event representation: the oracle of `kernels.cpu.eer`, one electron at a time on Python integers."""

from __future__ import annotations

import numpy as np

TOO_SHORT, TOO_LONG = -1, -2


def decode_frame(stream, rows, columns, position_bits, x_bits, y_bits, wide, upsampling, out):
    """Add the electrons of one camera frame to `out`.

    Parameters
    ----------
    stream : (n,) uint8 array
    rows, columns, position_bits, x_bits, y_bits, wide, upsampling
        As for :func:`kernels.cpu.eer.decode_frames`.
    out : (rows * upsampling, columns * upsampling) integer array

    Returns
    -------
    int
        Number of electrons; `TOO_SHORT` if the stream ends before the last pixel, `TOO_LONG` if it goes beyond.
    """
    bits = int.from_bytes(bytes(stream), "little")
    left = 8 * len(stream)
    pixels, place, electrons = rows * columns, 0, 0
    while place != pixels:
        if left < position_bits:
            return TOO_SHORT
        skip = bits & ((1 << position_bits) - 1)
        bits, left = bits >> position_bits, left - position_bits
        place += skip
        if skip == (1 << position_bits) - 1:
            if wide and place < pixels:
                bits, left = bits >> (x_bits + y_bits), left - x_bits - y_bits
            if place > pixels:
                return TOO_LONG
            continue
        if place > pixels:
            return TOO_LONG
        if place == pixels:
            break
        if left < x_bits + y_bits:
            return TOO_SHORT
        sub_x, sub_y = bits & ((1 << x_bits) - 1), (bits >> x_bits) & ((1 << y_bits) - 1)
        bits, left = bits >> (x_bits + y_bits), left - x_bits - y_bits
        y, x = divmod(place, columns)
        if upsampling == 2:
            # The upper bit is inverted: offsets are counted from the middle of the pixel.
            x, y = 2 * x + (1 - (sub_x >> (x_bits - 1))), 2 * y + (1 - (sub_y >> (y_bits - 1)))
        out[y, x] += 1
        place, electrons = place + 1, electrons + 1
    return electrons


def encode_frame(events, rows, columns, position_bits, x_bits, y_bits, wide):
    """Inverse of :func:`decode_frame`, for tests.

    Parameters
    ----------
    events : iterable of (y, x, sub_y, sub_x)
        Sorted, at most one a pixel; the offsets as stored.

    Returns
    -------
    (n,) uint8 array
    """
    value, used, place = 0, 0, 0
    full = (1 << position_bits) - 1

    def put(number, bits):
        nonlocal value, used
        value |= number << used
        used += bits

    for y, x, sub_y, sub_x in [*events, (rows, 0, 0, 0)]:
        skip = int(y) * columns + int(x) - place
        while skip >= full:
            put(full, position_bits + (x_bits + y_bits if wide else 0))
            skip -= full
        put(skip, position_bits)
        put(int(sub_x), x_bits)
        put(int(sub_y), y_bits)
        place = int(y) * columns + int(x) + 1
    return np.frombuffer(value.to_bytes((used + 7) // 8, "little"), np.uint8)
