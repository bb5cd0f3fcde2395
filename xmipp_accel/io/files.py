"""Opening of input files: what the system refuses becomes an `InputFileError`, and sizes are known beforehand."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.errors import InputFileError

# Larger reads are shared by threads: one alone copies a file out of the system's cache at a few GB/s.
PART_BYTES, MOST_PARTS = 32 << 20, 8
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@contextlib.contextmanager
def open_input(path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for unbuffered reading; gives the file and its size in bytes.

    Raises
    ------
    InputFileError
        It does not exist, is a folder, a pipe or a device, or may not be read.
    """
    try:
        status = os.stat(path)
        # Opening a pipe would wait for ever for somebody to write into it.
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise InputFileError(path, "a regular file", kind)
        file = open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        raise InputFileError(path, "a readable file", getattr(error, "strerror", None) or str(error)) from error
    with file:
        yield file, os.fstat(file.fileno()).st_size


def read_text(path) -> str:
    """Contents of a UTF-8 text file; `InputFileError` if it is anything else."""
    with open_input(path) as (file, size):
        content = read_bytes(path, file, 0, size)
    control = _CONTROL.search(content)
    if control:
        raise InputFileError(path, "text", f"a binary file, byte {control.group()[0]:#04x} at {control.start()}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputFileError(path, "UTF-8 text", f"byte {content[error.start]:#04x} at {error.start}") from error


def read_bytes(path, file, offset, count) -> bytes:
    """Exactly `count` bytes from `offset` on."""
    buffer = np.empty(count, np.uint8)
    read_into(path, file, offset, buffer)
    return buffer.tobytes()


def read_into(path, file, offset, array):
    """Fill the C-contiguous `array` with the bytes from `offset` on.

    Reading rather than mapping the file: when a mapped file is cut while it is in use, the process dies.
    """
    view = memoryview(array).cast("B") if array.size else memoryview(b"")
    parts = min(cpu_count(), MOST_PARTS, -(-len(view) // PART_BYTES))
    if parts < 2:
        _fill(path, file, offset, view)
        return
    edges = [len(view) * part // parts for part in range(parts + 1)]
    with concurrent.futures.ThreadPoolExecutor(parts) as pool:
        jobs = [
            pool.submit(_fill, path, file, offset + start, view[start:end]) for start, end in zip(edges, edges[1:])
        ]
        for job in jobs:
            job.result()


def _fill(path, file, offset, view):
    done = 0
    try:
        while done < len(view):
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
            if count == 0:
                raise InputFileError(
                    path, f"{len(view)} bytes from byte {offset}", f"{done} before the file's end"
                )
            done += count
    except OSError as error:
        raise InputFileError(path, f"{len(view)} bytes from byte {offset}", error.strerror) from error
