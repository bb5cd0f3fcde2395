"""What was measured on the devices of a user, kept for later runs: ``tune.json`` in the user's cache folder.

Nothing depends on it but speed. A file that cannot be read or written is as good as none, and is told of once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import logging
import math
import os
import statistics
import time
from pathlib import Path

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.publish import read_json, write_json

logger = logging.getLogger(__name__)

VERSION = 1
PATIENCE = 1.0  # seconds that a writer waits for others; an entry is not worth more


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of one decision.

    Attributes
    ----------
    option : str
        The fastest.
    median : float
        Of its times, seconds for each image.
    count : int
        Times of all options.
    date : str
        When the last one was taken.
    trials : dict of str to list of float
        All times by option, seconds for each image.
    """

    option: str
    median: float
    count: int
    date: str
    trials: dict[str, list[float]]

    def __post_init__(self):
        times = [self.median, *(seconds for found in self.trials.values() for seconds in found)]
        if self.option not in self.trials or not all(type(t) is float and 0 <= t < math.inf for t in times):
            raise ValueError(f"expected times of {self.option!r} and others, found {times!r}")

    @classmethod
    def of(cls, option: str, trials: dict[str, list[float]]) -> Entry:
        """Entry of today for the fastest option."""
        trials = {name: list(times) for name, times in trials.items() if times}
        count, today = sum(map(len, trials.values())), datetime.date.today().isoformat()
        return cls(option, statistics.median(trials[option]), count, today, trials)


class TuningCache:
    """Entries by key, shared by all processes of a user.

    Parameters
    ----------
    path : path, optional
        By default ``xmipp_accel/tune.json`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """

    def __init__(self, path=None):
        folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self.path = Path(path or os.path.join(folder, "xmipp_accel", "tune.json"))

    def entries(self) -> dict[str, Entry]:
        """All entries; none where there is no usable file."""
        if not os.path.exists(self.path):
            return {}
        try:
            content = read_json(self.path)
            if content["version"] != VERSION:
                raise ValueError(f"expected version {VERSION}, found {content['version']!r}")
            return {key: Entry(**entry) for key, entry in content["entries"].items()}
        except (InputFileError, AttributeError, KeyError, TypeError, ValueError) as error:
            _tell(self.path, f"{type(error).__name__}: {error}")
            return {}

    def store(self, key: str, entry: Entry):
        """Add an entry, or put it in place of an older one; entries of other processes stay."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                entries = {**self.entries(), key: entry}
                plain = {name: dataclasses.asdict(one) for name, one in sorted(entries.items())}
                write_json(self.path, dict(version=VERSION, entries=plain))
        except OSError as error:
            _tell(self.path, str(error))


@contextlib.contextmanager
def _locked(path):
    """Hold a lock; `BlockingIOError` where others do not let go of it."""
    deadline = time.monotonic() + PATIENCE
    with open(path, "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
        yield


@functools.cache  # once for each file and reason
def _tell(path, reason):
    logger.warning("%s: speeds that were measured before are not used or kept: %s", path, reason)
