"""What has changed between the particles in saved sums and those that are wanted now."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.reconstruction.members import Members, joined_codes, same_values

# What a float32 position in a volume of 1000 voxels can show.
TOLERANCE = 1e-7


@dataclasses.dataclass(frozen=True)
class Changes:
    """Numbers of members, int64 arrays.

    Attributes
    ----------
    kept : (k,) array
        Of those that are in the sums and stay there as they are.
    removed : (r,) array
        Of those in the sums that are not wanted any more, or not with these values.
    added : (a,) array
        Of those wanted that are not in the sums, or with other values.
    """

    kept: np.ndarray
    removed: np.ndarray
    added: np.ndarray


def find_changes(old: Members, new: Members) -> Changes:
    """Differences between the members of sums and the wanted ones.

    A particle is known by its stack and its place there; if an image occurs several times, as it does for
    particles expanded by a symmetry, its first occurrences belong together, its second ones, and so on.
    """
    earlier = find_earlier(old, new)
    known = np.flatnonzero(earlier >= 0)
    same = known[same_values(old.take(earlier[known]), new.take(known), TOLERANCE)]
    kept = earlier[same]
    return Changes(
        kept=kept,
        removed=np.setdiff1d(np.arange(len(old)), kept),
        added=np.setdiff1d(np.arange(len(new)), same),
    )


def find_earlier(old: Members, new: Members) -> np.ndarray:
    """Number of each new member among the old ones, -1 where it is not there, (n,) int64."""
    _, places = joined_codes((old.stacks, old.places), (new.stacks, new.places))
    index = np.concatenate([old.index, new.index])
    parts = slice(0, len(old)), slice(len(old), None)
    keys = np.stack([places, index, np.concatenate([_occurrences(places[part], index[part]) for part in parts])])
    order = np.lexsort(keys)
    # Each set has a key once, and sorting is stable: equal neighbours are an old and then a new member.
    pairs = np.flatnonzero((keys[:, order[1:]] == keys[:, order[:-1]]).all(axis=0))
    earlier = np.full(len(new), -1, dtype=np.int64)
    earlier[order[pairs + 1] - len(old)] = order[pairs]
    return earlier


def _occurrences(places, index):
    """How many equal ones stand before each pair."""
    order = np.lexsort((index, places))
    steps = np.diff(places[order], prepend=-1).astype(bool) | np.diff(index[order], prepend=-1).astype(bool)
    positions = np.arange(len(order))
    found = np.empty(len(order), dtype=np.int64)
    found[order] = positions - np.maximum.accumulate(np.where(steps, positions, 0))
    return found


def settle_sets(old: Members, new: Members, given, groups: int, seed) -> Members:
    """New members in the half sets and groups of the old ones; those that are new make them as even as possible.

    Parameters
    ----------
    old, new : Members
    given : (n,) array_like of 0, 1 and 2
        Half sets that the new members must have; 0 where it is free. Of no effect without half sets.
    groups : int
        How many, within each half set; 0 for none.
    seed : int or sequence of int
        Decides who goes where.
    """
    earlier, rng = find_earlier(old, new), np.random.default_rng(seed)
    known, views = earlier >= 0, new.views
    halves = np.ones(len(new), dtype=np.int64)
    if views.halves is not None:
        halves = np.array(given, dtype=np.int64)
        staying = known & (halves == 0)
        halves[staying] = old.views.halves[earlier[staying]]
        halves = 1 + _filled_evenly(halves - 1, 2, rng)
        views = dataclasses.replace(views, halves=halves)
    if groups:
        numbers = np.full(len(new), -1, dtype=np.int64)
        numbers[known] = old.views.groups[earlier[known]]
        for half in np.unique(halves):
            members = halves == half
            numbers[members] = _filled_evenly(numbers[members], groups, rng)
        views = dataclasses.replace(views, groups=numbers)
    return dataclasses.replace(new, views=views)


def _filled_evenly(labels, number, rng):
    """Labels 0 to number - 1, where those below 0 are replaced at random so that all become as frequent."""
    free = np.flatnonzero(labels < 0)
    counts = np.bincount(labels[labels >= 0], minlength=number)
    filled = len(free) + np.cumsum(np.sort(counts))
    level = (filled // np.arange(1, number + 1)).min()
    missing = np.maximum(level - counts, 0)
    missing[np.flatnonzero(counts <= level)[: len(free) - missing.sum()]] += 1
    labels = labels.copy()
    labels[free] = rng.permutation(np.repeat(np.arange(number), missing))
    return labels
