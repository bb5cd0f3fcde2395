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
    for k in range(len(starts)):
        out = counts[targets[k]].reshape(-1)
        electrons[k] = _decode(
            words, starts[k], bits[k], rows, columns, position_bits, x_bits, y_bits, wide, upsampling, out
        )


@numba.njit(nogil=True, cache=True)
def _decode(words, start, bits, rows, columns, position_bits, x_bits, y_bits, wide, upsampling, out):
    full = np.uint64((1 << position_bits) - 1)
    electron_bits = np.uint64(position_bits + x_bits + y_bits)
    skip_bits = electron_bits if wide else np.uint64(position_bits)
    x_shift, y_shift = np.uint64(position_bits + x_bits - 1), np.uint64(position_bits + x_bits + y_bits - 1)
    pixels = np.int64(rows) * np.int64(columns)
    end = start + bits // 32 + 2
    word = start
    buffer, held = np.uint64(0), np.uint64(0)
    place, row_end, electrons = np.int64(0), np.int64(columns), np.int64(0)
    while place != pixels:
        if held < np.uint64(32):
            if word == end:
                return TOO_SHORT
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
    if 32 * (word - start) - np.int64(held) > bits:
        return TOO_SHORT
    return TOO_LONG if place > pixels else electrons
