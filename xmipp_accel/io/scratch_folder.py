"""What runs that share a folder of copies agree on: which of them are in use, and who makes room.

``lock`` is held by the run that does. ``run_<id>`` has the names of the copies that a run uses, which stay as long
as it holds a lock on that file; a lock on each copy would take more open files than a process may have.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import uuid

RESERVE = 1 << 30  # bytes of the disk that are left to others
_COPY = re.compile(r"\.?[0-9a-f]{32}(\.[^./]+)?")


@contextlib.contextmanager
def locked(path):
    """Context with a file that is written anew, and that no other run has at the same time."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextlib.contextmanager
def in_use(names, folder):
    """Context in which no run removes copies of these names."""
    path = folder / f"run_{uuid.uuid4().hex}"
    with locked(path) as file:
        file.write("\n".join(names))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _used_by_runs(folder) -> set[str]:
    """Names of the copies in use; what runs that were killed have left of themselves is removed."""
    names: set[str] = set()
    for path in folder.glob("run_*"):
        with contextlib.suppress(FileNotFoundError), open(path, "r+") as file:  # a run may end meanwhile
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                names.update(file.read().split("\n"))
            else:
                path.unlink()
    return names


def make_room(wanted, folder) -> int:
    """Free bytes, once the least recently used copies that nobody uses have been removed as far as needed."""
    room = shutil.disk_usage(folder).free - RESERVE
    if room >= wanted:
        return room
    used = _used_by_runs(folder)
    ours = (path for path in folder.iterdir() if _COPY.fullmatch(path.name) and path.name.lstrip(".") not in used)
    for path in sorted(ours, key=lambda path: path.stat().st_atime_ns):
        path.unlink()
        room = shutil.disk_usage(folder).free - RESERVE
        if room >= wanted:
            break
    return room
