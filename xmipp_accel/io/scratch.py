"""Copies of stacks on a fast disk, which later runs use again.

They stand in a subfolder of the user's own, ``xmipp_accel_<uid>``, beside the files of :mod:`~.scratch_folder`:

``<digest><suffix>``
    A copy, by the path, the size and the time of the last change of its original.
``.<digest><suffix>``
    One that is being made: of full size from the beginning, so that nobody else counts on that room, and locked by
    the run that copies; others that need it wait. Who does not succeed leaves it empty, since others may hold it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.files import open_input, read_into
from xmipp_accel.io.images import open_stack
from xmipp_accel.io.scratch_folder import in_use, locked, make_room

logger = logging.getLogger(__name__)

THREADS = 4  # that copy
CHUNK = 16 << 20
_FULL = errno.ENOSPC, errno.EDQUOT


@contextlib.contextmanager
def scratch(folder):
    """Context in which particles are read from copies of their stacks.

    Parameters
    ----------
    folder : str
        An existing one on a fast disk; ``~`` and environment variables are replaced. If empty, nothing is copied.

    Yields
    ------
    callable
        ``copied(particles, rows=None)``: the same particles; the images at `rows`, by default all, come from
        copies as far as there is room. No run removes these before the context ends. An `InputFileError` names a
        stack that cannot be read, or a folder that cannot be used.
    """
    with contextlib.ExitStack() as context:
        yield lambda particles, rows=None: _copied(particles, rows, folder, context) if folder else particles


def _copied(particles, rows, folder, context):
    rows = range(len(particles)) if rows is None else rows.tolist()
    stacks = dict.fromkeys(particles.stack[row] for row in rows)
    place = Path(os.path.expandvars(os.path.expanduser(folder))).absolute()
    own = place / f"xmipp_accel_{os.getuid()}"
    copies = [_Copy.of(stack, own) for stack in stacks]
    with _refusing(place, "an existing folder for copies of stacks that can be written"):
        own.mkdir(mode=0o700, exist_ok=True)
        with locked(own / "lock"):
            context.enter_context(in_use([copy.path.name for copy in copies], own))
            missing = _with_room(copies, own)
    logger.info("%s: %d of %d stacks to copy, %.1f GB", place, len(missing), len(copies), _gigabytes(missing))
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(copy.make) for copy in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    there = {copy.original: str(copy.path) for copy in copies if copy.is_there()}
    left = [copy for copy in copies if copy.original not in there]
    if left:
        text = "%s: reading %d of %d stacks, %.1f GB, from where they are: no room, or they changed meanwhile"
        logger.warning(text, place, len(left), len(copies), _gigabytes(left))
    return dataclasses.replace(particles, copies=there)


@contextlib.contextmanager
def _refusing(path, expected):
    """Turn what the system refuses into an `InputFileError`."""
    try:
        yield
    except OSError as error:
        raise InputFileError(path, expected, error.strerror or str(error)) from error


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A copy that is there or wanted; `size` and `changed` (ns) are those of the original."""

    original: str
    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, stack, folder):
        path = os.path.realpath(stack)
        with _refusing(stack, "a readable file"):
            status = os.stat(path)
        stamp = status.st_size, status.st_mtime_ns
        digest = hashlib.sha256(os.fsencode(path) + b"\n%d\n%d" % stamp).hexdigest()[:32]
        return cls(stack, folder / (digest + Path(stack).suffix), *stamp)

    @property
    def part(self) -> Path:
        return self.path.with_name(f".{self.path.name}")

    def is_there(self) -> bool:
        return _size(self.path) == self.size

    def take_room(self) -> bool:
        """Begin the copy, unless another run does; False if its room is not there after all, as under a quota."""
        with open(self.part, "ab", buffering=0) as target:
            try:
                fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            with _emptied_if_full(target):
                os.posix_fallocate(target.fileno(), 0, max(1, self.size))
                return True
        return False

    def make(self):
        """Finish the copy, unless another run does; there is none if the disk is full or the original changes."""
        open_stack(self.original)  # a damaged one is refused under its own name
        with _refusing(self.path, f"a copy of {self.original}"), contextlib.suppress(FileNotFoundError):
            with open(self.part, "r+b", buffering=0) as target:  # not there if another run has finished it
                fcntl.flock(target, fcntl.LOCK_EX)
                if self.is_there():
                    self.part.unlink()
                    return
                with _emptied_if_full(target):
                    if self._fill(target):
                        os.replace(self.part, self.path)
                    else:
                        target.truncate(0)

    def _fill(self, target) -> bool:
        """Whether the original stays as it was until all is copied."""
        buffer = np.empty(min(CHUNK, self.size), np.uint8)
        with open_input(self.original) as (source, _):
            for first in range(0, self.size, CHUNK):
                some = buffer[: self.size - first]
                read_into(self.original, source, first, some)
                while len(some):
                    some = some[target.write(some) :]
            os.fsync(target.fileno())
            status = os.fstat(source.fileno())
        return (status.st_size, status.st_mtime_ns) == (self.size, self.changed)


@contextlib.contextmanager
def _emptied_if_full(target):
    """Give the room of an unfinished copy back after an error, which is none if there was not enough."""
    try:
        yield
    except BaseException as error:
        target.truncate(0)
        if not (isinstance(error, OSError) and error.errno in _FULL):
            raise


def _size(path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _gigabytes(copies) -> float:
    return sum(copy.size for copy in copies) / 1e9


def _with_room(copies, folder) -> list[_Copy]:
    """Those copies that are not there but have room, for which others are removed where need be."""
    missing = {}
    for copy in copies:
        if copy.is_there():
            os.utime(copy.path)
        else:
            missing[copy] = copy.size - max(0, _size(copy.part))
    room, found = make_room(sum(missing.values()), folder), []
    for copy, more in missing.items():
        if more <= max(0, room) and copy.take_room():
            found.append(copy)
            room -= more
    return found
