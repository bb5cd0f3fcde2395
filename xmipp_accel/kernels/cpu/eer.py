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

from xmipp_accel.kernels.reference.eer import TOO_LONG, TOO_SHORT

BAND_BYTES = 1 << 18


@numba.njit(nogil=True, cache=True)
def decode_frames(
    words, starts, bits, targets, rows, columns, position_bits, x_bits, y_bits, wide, upsampling, counts, electrons
):
    """Add the electrons of camera frames to the frames of a movie.

    Parameters
    ----------
    words : (m,) uint32 array
        The streams. Each begins with a word and has two more than it fills; behind it are zeros.
    starts, bits : (n,) int64 arrays
        First word and length of each stream.
    targets : (n,) int32 array
        Frame of the movie that each belongs to.
    rows, columns : int
        Of the sensor, px.
    position_bits, x_bits, y_bits : int
        Widths of the codes.
    wide : bool
        Whether a skip without an electron is followed by unused bits for a place within the pixel.
    upsampling : {1, 2}
        2: the upper bits of the place within the pixel are used.
    counts : (k, rows * upsampling, columns * upsampling) integer array
    electrons : (n,) int32 array
        Is filled with numbers of electrons, or with `TOO_SHORT` or `TOO_LONG`, when the counts are of no use.
    """
    pixels = np.int64(rows) * np.int64(columns)
    state = np.zeros((len(starts), 3), np.int64)
    # All camera frames go through the same rows, as many as the cache holds, before any goes on to the next.
    band = columns * max(1, BAND_BYTES // (columns * upsampling * upsampling * counts.itemsize))
    for first in range(0, pixels, band):
        stop = min(first + band, pixels)
        for k in range(len(starts)):
            out = counts[targets[k]].reshape(-1)
            _advance(
                words, starts[k], bits[k], stop, pixels, columns, position_bits, x_bits, y_bits, wide, upsampling,
                state[k], out,
            )  # fmt: skip
    for k in range(len(starts)):
        position, place, found = state[k]
        electrons[k] = TOO_SHORT if position > bits[k] else TOO_LONG if place > pixels else found


@numba.njit(nogil=True, cache=True)
def _advance(
    words, start, bits, stop, pixels, columns, position_bits, x_bits, y_bits, wide, upsampling, state, out
):
    """Decode until pixel `stop` or beyond; `state` is the place in the stream, the pixel, and electrons so far."""
    full = np.uint64((1 << position_bits) - 1)
    electron_bits = np.uint64(position_bits + x_bits + y_bits)
    skip_bits = electron_bits if wide else np.uint64(position_bits)
    x_shift, y_shift = np.uint64(position_bits + x_bits - 1), np.uint64(position_bits + x_bits + y_bits - 1)
    position, place, electrons = state
    end = start + bits // 32 + 2
    word = start + position // 32
    buffer, held = np.uint64(0), np.uint64(0)
    if position % 32:
        buffer, held = np.uint64(words[word]) >> np.uint64(position % 32), np.uint64(32 - position % 32)
        word += 1
    row_end = (place // columns + 1) * columns
    while place < stop:
        if held < np.uint64(32):
            if word == end:
                place = pixels
                break
            buffer |= np.uint64(words[word]) << held
            held += np.uint64(32)
            word += 1
        skip = buffer & full
        place += np.int64(skip)
        if place >= pixels:
            held -= np.uint64(position_bits)
            break
        # Adding nothing for a skip is faster than a jump that the processor guesses wrong.
        is_electron = np.int64(skip != full)
        if upsampling == 2:
            while place >= row_end:
                row_end += columns
            index = 2 * (place + row_end - columns) + 1 - np.int64((buffer >> x_shift) & np.uint64(1))
            index += 2 * columns * (1 - np.int64((buffer >> y_shift) & np.uint64(1)))
        else:
            index = place
        out[index] += is_electron
        place += is_electron
        electrons += is_electron
        used = electron_bits if is_electron else skip_bits
        buffer >>= used
        held -= used
    state[0], state[1], state[2] = 32 * (word - start) - np.int64(held), place, electrons
