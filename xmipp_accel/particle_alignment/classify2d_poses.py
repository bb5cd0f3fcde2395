"""Which classes particles are like, in which poses, and to what part they belong there.

A pose is a shift of the particle, applied first, and a turn by ``theta``, both in the particle's frame; a mirrored
particle is mirrored after them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, to_host

_LEAST_WEIGHT = 1e-3


@dataclasses.dataclass(frozen=True)
class Poses:
    """The L best poses of each particle, best first; arrays of one module.

    Attributes
    ----------
    label : (m, L) int64 array
        Class, from 0; each one has a finite score once at most for a particle.
    mirrored : (m, L) bool array
    theta : (m, L) float32 array
        Radians.
    shift : (m, L, 2) float32 array
        (y, x), px.
    score : (m, L) float32 array
        Log-likelihood L.
    """

    label: Any
    mirrored: Any
    theta: Any
    shift: Any
    score: Any

    def each(self, function) -> Poses:
        """`function` of every array."""
        return Poses(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def best(self) -> Poses:
        """The first pose of each particle."""
        return self.each(lambda array: array[:, :1])

    def joined(self, other: Poses) -> Poses:
        """These poses and those of `other`."""
        return concatenate_poses((self, other), 1)

    def ranked(self) -> Poses:
        """Best first; of several poses in one class all but the best lose their score."""
        xp = array_module(self.score)
        order = xp.argsort(-self.score, axis=1)
        label, mirrored, theta, score = (
            xp.take_along_axis(array, order, 1) for array in (self.label, self.mirrored, self.theta, self.score)
        )
        again = xp.zeros(label.shape, dtype=bool)
        for i in range(1, label.shape[1]):
            again[:, i] = (label[:, :i] == label[:, i : i + 1]).any(axis=1)
        score[again] = -np.inf
        return Poses(label, mirrored, theta, xp.take_along_axis(self.shift, order[..., None], 1), score)

    def shares(self, temperature=1.0):
        """(m, L) part of each particle that belongs to each of its poses, by the likelihood at a temperature."""
        xp = array_module(self.score)
        weight = xp.exp((self.score - self.score[:, :1]) / np.float32(temperature))
        weight = weight / weight.sum(axis=1, keepdims=True)
        return xp.where(weight > _LEAST_WEIGHT, weight, np.float32(0))


def join_poses(parts) -> Poses:
    """Poses of several blocks of particles, on the host."""
    return concatenate_poses([part.each(to_host) for part in parts], 0)


def concatenate_poses(parts, axis) -> Poses:
    """Poses of further particles (axis 0) or further poses of each particle (axis 1), of one module."""
    xp = array_module(parts[0].score)
    names = [field.name for field in dataclasses.fields(Poses)]
    return Poses(*(xp.concatenate([getattr(part, name) for part in parts], axis=axis) for name in names))


@dataclasses.dataclass(frozen=True)
class Shares:
    """How much of each particle is in the sums that a model was made from.

    Attributes
    ----------
    label : (m, L) int64 host array
    weight : (m, L) float32 host array
    """

    label: np.ndarray
    weight: np.ndarray

    @classmethod
    def none(cls, count) -> Shares:
        """Of particles that no class was made from."""
        return cls(np.zeros((count, 1), np.int64), np.zeros((count, 1), np.float32))

    def rows(self, part) -> Shares:
        """Those of some particles."""
        return Shares(self.label[part], self.weight[part])

    def renumbered(self, numbers) -> Shares:
        """With other class numbers: `numbers` (C,) gives the new one of each class, -1 for one that is gone."""
        label = numbers[self.label]
        return Shares(np.maximum(label, 0), np.where(label < 0, np.float32(0), self.weight))

    def dense(self, count, xp):
        """(m, C) float32 array of a module."""
        table = np.zeros((len(self.label), count), np.float32)
        rows = np.arange(len(table))
        for label, weight in zip(self.label.T, self.weight.T):  # a class may be there twice, once without a weight
            table[rows, label] += weight
        return xp.asarray(table)
