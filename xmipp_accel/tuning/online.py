"""Choice among ways of doing the same work, by their times on the work itself.

The results of all ways count, so that trying costs no more than a slow way's time. This is the dynamic tuning of
KTT (Petrovic et al., Future Gener. Comput. Syst. 108 (2020), 161), for spaces of a few options.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from xmipp_accel.tuning.cache import Entry

logger = logging.getLogger(__name__)

SHARE = 0.03  # of a run's images that other options than the default may be tried on
UNTIMED, TIMED = 1, 2  # batches of a trial: kernels are loaded in the first one
HOPELESS = 1.5  # times the best: no second time is taken
TOLERANCE = 1e-4  # relative to the largest result; float32 sums in another order differ by 1e-6


@dataclasses.dataclass(frozen=True)
class Option:
    """A way of doing the work, and which problems it suits."""

    name: str
    suits: Callable[[Mapping[str, Any]], bool] = lambda problem: True


@dataclasses.dataclass
class Budget:
    """Images that other options than the default may still be tried on; several tuners may share it."""

    images: float = 0.0

    def expect(self, images: float):
        """Allow for trials by the number of images that are to come."""
        self.images = SHARE * images


class Tuner:
    """Chooses between options for one problem on one device; for one thread, and it never waits.

    Parameters
    ----------
    options : sequence of str
        Those that suit the problem.
    default : str
        One of them.
    budget : Budget
    stopwatch : callable
        See :meth:`xmipp_accel.backend.Device.stopwatch`.
    check : callable
        Given an option, does a small problem with it and with the default and returns the largest difference,
        relative to the largest result. Called in the background.
    background : concurrent.futures.Executor
    known : dict of str to list of float, optional
        Earlier times of options, seconds for each image.
    store : callable, optional
        Called with an `Entry` when something was learnt, in the background.

    Attributes
    ----------
    times : dict of str to list of float
        Seconds for each image.
    """

    def __init__(
        self,
        options: Sequence[str],
        default: str,
        budget: Budget,
        stopwatch: Callable,
        check: Callable[[str], float],
        background: Executor,
        known: Mapping[str, Sequence[float]] | None = None,
        store: Callable[[Entry], None] | None = None,
    ):
        self.default = default
        self.times = {name: list((known or {}).get(name, ())) for name in sorted(options, key=default.__ne__)}
        self._budget, self._stopwatch, self._check, self._store = budget, stopwatch, check, store
        self._background = background
        # Batches that options still get; what was measured was checked before.
        self._left = {name: UNTIMED + TIMED if len(times) < TIMED else 0 for name, times in self.times.items()}
        self._checks: dict[str, Future] = {}
        self._checked = {default, *(name for name, times in self.times.items() if times)}
        self._running: collections.deque = collections.deque()
        self._largest = 1

    @property
    def best(self) -> str:
        """The fastest option of those that are known; the default as long as its own speed is not."""
        medians = {name: statistics.median(times) for name, times in self.times.items() if len(times) >= TIMED}
        return min(medians, key=medians.__getitem__) if self.default in medians else self.default

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be tried."""
        return not self._running and not any(map(self._is_open, self.times))

    @contextlib.contextmanager
    def trial(self, images: int):
        """Give the option that a batch of `images` images, enqueued within this context, is to be done with."""
        self._collect()
        option = self._next(images)
        if option is None:
            yield self.best
        elif self._left[option] >= TIMED:
            yield option
        else:
            watch = self._stopwatch()
            yield option
            watch.stop()
            self._running.append((option, images, watch))

    def _next(self, images):
        """The option that a batch is a trial of, if it is one."""
        self._largest = max(self._largest, images)
        if 2 * images < self._largest:  # small batches take longer for each image
            return None
        for option in filter(self._is_open, self.times):
            if not 0 < self._left[option] * images <= self._budget.images or not self._passes(option):
                continue
            if option != self.default:
                self._budget.images -= images
            self._left[option] -= 1
            return option
        return None

    def _is_open(self, option):
        """Whether an option may still get batches or times."""
        times = self.times[option]
        hopeless = times and self.times[self.best] and min(times) > HOPELESS * min(self.times[self.best])
        return option in self._left and len(times) < TIMED and not hopeless

    def _passes(self, option):
        """Whether an option is known to do what the default does; one that does not is struck off."""
        if option in self._checked:
            return True
        if option not in self._checks:
            self._checks[option] = self._background.submit(self._fault, option)
        if not self._checks[option].done():
            return False
        fault = self._checks[option].result()
        if fault:
            logger.warning("tuning: %s is not used on this device: %s", option, fault)
            del self._left[option]
            return False
        self._checked.add(option)
        return True

    def _fault(self, option):
        try:
            difference = self._check(option)
        except Exception as error:  # compilers and drivers have types of their own; each means: not this option
            return f"{type(error).__name__}: {error}"
        if not difference <= TOLERANCE:
            return f"expected the results of {self.default}, found them to differ by {difference:.1e}"
        return ""

    def _collect(self):
        """Take the times that the device has come to, without waiting for the others."""
        learnt = False
        while self._running:
            option, images, watch = self._running[0]
            seconds = watch.seconds()
            if seconds is None:
                break
            self._running.popleft()
            self.times[option].append(seconds / images)
            learnt |= not self._is_open(option)
        if learnt and self.times[self.best]:
            entry = Entry.of(self.best, self.times)
            logger.info("tuning: %s is the fastest of %s", entry.option, entry.trials)
            if self._store is not None:
                self._background.submit(self._store, entry)
