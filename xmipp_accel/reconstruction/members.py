"""The particles in saved sums: where their images are, and all that decided what they added to the sums."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles
from xmipp_accel.reconstruction.optics import ParticleOptics
from xmipp_accel.reconstruction.selection import Selection
from xmipp_accel.reconstruction.views import Views

_COLUMNS = "places", "index", "numbers", "stamps", "fingerprints"
_OPTICS = tuple(field.name for field in dataclasses.fields(ParticleOptics))
_VIEWS = tuple(field.name for field in dataclasses.fields(Views) if field.name != "optics")


@dataclasses.dataclass(frozen=True)
class Members:
    """n particles; arrays on the host.

    Attributes
    ----------
    stacks : tuple of str
        Absolute paths, each once.
    places : (n,) int64 array
        The stack of each particle, a number from 0.
    index : (n,) int64 array
        Of its image there, from 0.
    views : Views
    kinds : tuple of OpticsGroup
        With boxes and sampling rates, each once.
    numbers : (n,) int64 array
        The optics group of each particle, a number from 0.
    stamps : (n, 2) int64 array
        Size in bytes of its stack, and when that was last changed in ns, before the image was read.
    fingerprints : (n,) uint32 array
        CRC of the pixels, 0 as long as the image has not been read.
    """

    stacks: tuple[str, ...]
    places: np.ndarray
    index: np.ndarray
    views: Views
    kinds: tuple[OpticsGroup, ...]
    numbers: np.ndarray
    stamps: np.ndarray
    fingerprints: np.ndarray

    @classmethod
    def from_selection(cls, particles: Particles, selection: Selection) -> Members:
        """Those of `particles` that are selected, in the order of the selection."""
        names, places = _coded([particles.stack[row] for row in selection.rows.tolist()])
        stacks, codes = _coded([os.path.abspath(name) for name in names])
        groups, numbers = np.unique(selection.numbers, return_inverse=True)
        kinds, kind_codes = _coded([selection.groups[number] for number in groups.tolist()])
        places = codes[places]
        members = cls(
            stacks=stacks,
            places=places,
            index=particles.index[selection.rows],
            views=selection.views,
            kinds=kinds,
            numbers=kind_codes[numbers.reshape(-1)],
            stamps=np.zeros((len(places), 2), np.int64),
            fingerprints=np.zeros(len(places), np.uint32),
        )
        return members.stamped()

    def stamped(self) -> Members:
        """The same with the stamps that their stacks have now; those of a stack that is gone stay."""
        found = [_stamp(path) for path in self.stacks]
        there = np.array([values is not None for values in found], dtype=bool)
        now = np.array([values or (0, 0) for values in found], dtype=np.int64).reshape(-1, 2)
        stamps = np.where(there[self.places, None], now[self.places], self.stamps)
        return dataclasses.replace(self, stamps=stamps)

    def __len__(self):
        return len(self.index)

    def take(self, rows) -> Members:
        """The members at `rows`: numbers from 0, or a bool each."""
        taken = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return dataclasses.replace(self, views=self.views.take(rows), **taken)

    def join(self, other: Members) -> Members:
        """These members, and then others that have the same columns."""
        stacks, places = joined_codes((self.stacks, self.places), (other.stacks, other.places))
        kinds, numbers = joined_codes((self.kinds, self.numbers), (other.kinds, other.numbers))
        columns = "index", "stamps", "fingerprints"
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in columns}
        views = _views({name: np.concatenate(pair) for name, pair in _paired(self, other)})
        return Members(stacks=stacks, places=places, kinds=kinds, numbers=numbers, views=views, **joined)

    def to_take_out(self) -> Members:
        """The same with negative weights."""
        return dataclasses.replace(self, views=dataclasses.replace(self.views, weights=-self.views.weights))

    def to_insert(self) -> tuple[Particles, Selection]:
        """What :class:`~.run.Insertion` takes; row i of the particles is member i."""
        order = np.argsort(self.numbers, kind="stable")
        groups = dict(enumerate(self.kinds))
        particles = Particles(
            [self.stacks[place] for place in self.places.tolist()],
            self.index,
            optics_group=self.numbers,
            groups=groups,
        )
        used = {number: groups[number] for number in np.unique(self.numbers).tolist()}
        return particles, Selection(order, self.views.take(order), used, self.numbers[order])

    def by_stack(self, rows):
        """Yield each stack that has members at `rows`, (n,) numbers, and which."""
        order = rows[np.argsort(self.places[rows], kind="stable")]
        for part in np.split(order, np.flatnonzero(np.diff(self.places[order])) + 1):
            if len(part):
                yield self.stacks[self.places[part[0]]], part

    def name(self, row) -> str:
        """Of the image of a member, as tables write it."""
        return f"{self.index[row] + 1:06d}@{self.stacks[self.places[row]]}"

    def columns(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return {**{name: getattr(self, name) for name in _COLUMNS}, **_view_columns(self.views)}

    @classmethod
    def from_columns(cls, stacks, kinds, columns) -> Members:
        """The members whose :meth:`columns` these are; `ValueError` if one lacks or has another length."""
        missing = {*_COLUMNS, "matrices", "shifts", "weights", "decays"} - set(columns)
        if missing:
            raise ValueError(f"no column {min(missing)}")
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"columns of {min(lengths)} and {max(lengths)} particles")
        own = {name: columns[name] for name in _COLUMNS}
        views = _views({name: values for name, values in columns.items() if name not in own})
        return cls(stacks=tuple(stacks), kinds=tuple(kinds), views=views, **own)


def same_values(first: Members, second: Members, tolerance: float) -> np.ndarray:
    """Which particles add the same to the sums, (n,) bool, if their images are the same.

    Values computed from the same angles on different machines may differ in their last digits; `tolerance` is
    both absolute and relative.
    """
    _, numbers = joined_codes((first.kinds, first.numbers), (second.kinds, second.numbers))
    same = numbers[: len(first)] == numbers[len(first) :]
    for _, (one, other) in _paired(first, second):
        close = np.isclose(one, other, rtol=tolerance, atol=tolerance)
        same &= close.reshape(len(first), -1).all(axis=1)
    return same


def _stamp(path) -> tuple[int, int] | None:
    """Size in bytes and time of the last change in ns of a file, if it is there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _coded(values) -> tuple[tuple[Any, ...], np.ndarray]:
    """The distinct values, and the number of each one among them."""
    numbers: dict[Any, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return tuple(numbers), np.array(codes, dtype=np.int64)


def joined_codes(*coded):
    """The values in use of several pairs of distinct values and codes, and all codes in their order."""
    numbers: dict[Any, int] = {}
    found = []
    for values, codes in coded:
        table = np.zeros(len(values), dtype=np.int64)
        for code in np.unique(codes).tolist():
            table[code] = numbers.setdefault(values[code], len(numbers))
        found.append(table[codes])
    return tuple(numbers), np.concatenate(found)


def _view_columns(views):
    """Arrays by name; those of the optics too."""
    columns = {name: getattr(views, name) for name in _VIEWS}
    if views.optics is not None:
        columns.update((name, np.asarray(getattr(views.optics, name))) for name in _OPTICS)
    return {name: np.asarray(values) for name, values in columns.items() if values is not None}


def _paired(first, second):
    """Names and pairs of the columns of two members' views."""
    others = _view_columns(second.views)
    return [(name, (values, others[name])) for name, values in _view_columns(first.views).items()]


def _views(columns):
    optics = {name: columns[name] for name in _OPTICS if name in columns}
    views = {name: values for name, values in columns.items() if name not in optics}
    return Views(**views, optics=ParticleOptics(**optics) if optics else None)
