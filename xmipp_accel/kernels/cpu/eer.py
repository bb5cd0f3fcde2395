"""Electron event representation (EER) of Thermo Fisher's Falcon 4: a frame is a stream of electrons.

Bits are taken from the low end of each byte on. A code of `position_bits` says how many pixels to skip; all bits
set means to skip that many and no electron yet. Otherwise an electron is there, followed by the bits of its place
within the pixel, x before y, each with the upper bit inverted. The stream ends when the last pixel has been
passed; only then a frame is valid.

imagecodecs' decoder refuses streams with an odd number of bytes, takes those that end early, and reads `wide` ones
like the others.
"""

from __future__ import annotations

import numba
import numpy as np

TOO_SHORT, TOO_LONG = -1, -2


@numba.njit(nogil=True, cache=True)
def decode_frame(stream, rows, columns, position_bits, x_bits, y_bits, wide, upsampling, out):
    """Add the electrons of one frame to `out`.

    Parameters
    ----------
    stream : (n,) uint8 array
    rows, columns : int
        Of the sensor, px.
    position_bits, x_bits, y_bits : int
        Widths of the codes.
    wide : bool
        Whether a skip without an electron is followed by unused bits for a place within the pixel.
    upsampling : {1, 2}
        2: the upper bits of the place within the pixel are used.
    out : (rows * upsampling, columns * upsampling) integer array

    Returns
    -------
    int
        Number of electrons; `TOO_SHORT` if the stream ends before the last pixel, `TOO_LONG` if it goes beyond.
    """
    full = np.int64((1 << position_bits) - 1)
    sub_bits = x_bits + y_bits
    pixels = np.int64(rows) * np.int64(columns)
    total = np.int64(stream.size) * 8
    position, place, electrons = np.int64(0), np.int64(0), 0
    while place != pixels:
        if position + position_bits > total:
            return TOO_SHORT
        code = _window(stream, position)
        skip = code & full
        position += position_bits
        place += skip
        if place > pixels:
            return TOO_LONG
        if skip == full:
            if wide:
                position += sub_bits
            continue
        if place == pixels:
            break
        if position + sub_bits > total:
            return TOO_SHORT
        y, x = place // columns, place % columns
        if upsampling == 2:
            code >>= position_bits
            x = 2 * x + 1 - ((code >> (x_bits - 1)) & 1)
            y = 2 * y + 1 - ((code >> (x_bits + y_bits - 1)) & 1)
        position += sub_bits
        out[y, x] += 1
        place += 1
        electrons += 1
    return electrons


@numba.njit(nogil=True, cache=True, inline="always")
def _window(stream, position):
    """Return at least 25 bits from bit `position` on, with zeros behind the end."""
    byte = position >> 3
    size = stream.size
    value = np.int64(stream[byte])
    if byte + 1 < size:
        value |= np.int64(stream[byte + 1]) << 8
    if byte + 2 < size:
        value |= np.int64(stream[byte + 2]) << 16
    if byte + 3 < size:
        value |= np.int64(stream[byte + 3]) << 24
    return value >> (position & 7)
