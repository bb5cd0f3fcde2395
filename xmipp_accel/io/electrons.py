"""The streams of electron events of an EER movie's camera frames, and their decoding on any device."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, to_host
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.files import read_into
from xmipp_accel.kernels.reference.eer import TOO_SHORT

WARP = 32


@dataclasses.dataclass(frozen=True)
class Coding:
    """Sensor size in px and widths of the codes in bits, the same for all frames of a file."""

    rows: int
    columns: int
    position_bits: int
    x_bits: int
    y_bits: int
    wide: bool


class Streams:
    """Streams of the camera frames that make some frames of a movie, side by side in memory.

    Parameters
    ----------
    header : EerHeader
    first, last : int
        Frames (last exclusive) of the movie.

    Attributes
    ----------
    numbers : range
        Of the camera frames.
    words : int
        32-bit words that all streams take. Each begins with a word and has two more than it fills, since decoders
        read beyond its end.
    """

    def __init__(self, header, first, last):
        self.header = header
        self.numbers = range(sum(header.sizes[:first]), sum(header.sizes[:last]))
        self._sizes = np.array([sum(header.strips[number][1]) for number in self.numbers], np.int64)
        ends = np.cumsum(self._sizes // 4 + 2)
        self._starts = np.concatenate([[0], ends[:-1]])
        self._targets = np.repeat(np.arange(last - first), header.sizes[first:last])
        self.words = int(ends[-1])

    def read(self, file, k, words):
        """Read the stream of the camera frame ``numbers[k]`` to its place in `words` (uint32), zeros behind it."""
        content = words[self._starts[k] : self._starts[k] + self._sizes[k] // 4 + 2].view(np.uint8)
        end = 0
        for offset, count in zip(*self.header.strips[self.numbers[k]]):
            read_into(self.header.path, file, offset, content[end : end + count])
            end += count
        content[end:] = 0

    def add_electrons(self, words, counts):
        """Add all electrons to `counts` (frame, row, column); as :func:`add_electrons`.

        Raises
        ------
        InputFileError
            A stream does not end with the last pixel.
        """
        header = self.header
        electrons = add_electrons(
            header.coding, header.upsampling, words, self._starts, 8 * self._sizes, self._targets, counts
        )
        for number, found in zip(self.numbers, electrons.tolist()):
            if found < 0:
                what = "its end before the last pixel" if found == TOO_SHORT else "electrons beyond the last pixel"
                raise InputFileError(header.path, f"a complete camera frame {number}", what)


def add_electrons(coding: Coding, upsampling, words, starts, bits, targets, counts) -> np.ndarray:
    """Add the electrons of camera frames to the frames of a movie, on the device of `words`.

    Parameters
    ----------
    coding : Coding
    upsampling : {1, 2}
    words : (m,) uint32 array
        Streams. Each begins with a word and has two more than it fills; behind it are zeros.
    starts, bits : (n,) sequences of int
        First word of each stream, and its length.
    targets : (n,) sequence of int
        Frame of the movie that each belongs to.
    counts : (k, rows * upsampling, columns * upsampling) uint8 or uint16 array
        C-contiguous, wide enough for one electron of each camera frame, in memory of whole 4-byte words.

    Returns
    -------
    (n,) int32 NumPy array
        Numbers of electrons, or what is wrong: see `kernels.reference.eer`.
    """
    xp = array_module(words)
    streams = words, xp.asarray(starts, np.int64), xp.asarray(bits, np.int64), xp.asarray(targets, np.int32)
    widths = coding.position_bits, coding.x_bits, coding.y_bits
    sizes = coding.rows, coding.columns, *widths, coding.wide, upsampling
    electrons = xp.empty(len(starts), np.int32)
    if xp is np:
        from xmipp_accel.kernels.cpu.eer import decode_frames

        decode_frames(*streams, *sizes, counts, electrons)
        return electrons
    kernel = cuda_kernel("eer", f"decode_frames<unsigned {'char' if counts.dtype == np.uint8 else 'short'}>")
    kernel((len(starts),), (WARP,), (*streams, *(np.int32(size) for size in sizes), counts, electrons))
    return to_host(electrons)
