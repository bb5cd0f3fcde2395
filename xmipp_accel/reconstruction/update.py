"""What brings saved sums from the particles that they hold to those that are wanted.

A particle is taken out by inserting it with its old values and a negative weight. The sums are float32, each
operation rounds a voxel by up to 6e-8 of what it holds, and so what is added and taken out leaves a residue: 1e-6
of the full map and 1e-5 of the half maps (rms) where as many particles were taken out as stay, and in proportion
more where that is repeated, 2e-4 and 2e-3 after a hundred times. Sums are therefore made anew once more than half
of all insertions have been undone.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.images import read_stack, stack_shape
from xmipp_accel.reconstruction.changes import find_changes, find_earlier, settle_sets
from xmipp_accel.reconstruction.halves import given_halves
from xmipp_accel.reconstruction.members import Members
from xmipp_accel.reconstruction.selection import select
from xmipp_accel.reconstruction.state import (
    FILE,
    State,
    check_settings,
    has_state,
    load_state,
    save_state,
    sum_settings,
)

CHUNK = 256  # images that are read at a time to see whether they are the same
WAY_OUT = "with an empty folder for the state everything is made anew"


@dataclasses.dataclass(frozen=True)
class Update:
    """The work on a state.

    Attributes
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`.
    settings : dict
        Of :func:`~.state.sum_settings`.
    scores : (float, float), optional
        See :class:`~.selection.Selection`.
    number : int
        Of all particles that are wanted.
    kept, removed, added : Members
        Those that are in the sums and stay, those that leave, and those that come, where a particle whose values
        have changed leaves and comes.
    state : State, optional
        What the sums begin with; nothing at first, and where they are made anew.
    noise : dict of OpticsGroup to array
        Power of the noise where it is known.
    """

    parameters: Any
    settings: dict[str, Any]
    scores: tuple[float, float] | None
    number: int
    kept: Members
    removed: Members
    added: Members
    state: State | None
    noise: dict

    def run(self, folder, insertion):
        """Do the work, publish the state in `folder`, and return the sums.

        Parameters
        ----------
        folder : path
        insertion : callable
            Makes an :class:`~.run.Insertion` of the keywords that it is given here.

        Returns
        -------
        Insertion
        FourierAccumulator
        dict
            How many particles were ``added``, ``removed`` and ``kept``; whether the sums were made ``anew``.
        """
        work = (self.removed.to_take_out() if self.state else self.kept).join(self.added)
        particles, selection = work.to_insert()
        earlier = [(self.state.sums, self.state.counts)] if self.state else []
        job = insertion(
            particles=particles, selection=selection, inspect=Inspection(work), earlier=earlier, noise=self.noise
        )
        accumulator = job.run(self.settings["box"], self.settings["sampling_rate"])
        usable = np.ones(len(work), dtype=bool)
        usable[selection.rows] = job.usable
        inserted = work.take(usable & (work.views.weights > 0))
        save_state(folder, self._after(inserted, accumulator, job.noise))
        members = len(inserted) + (len(self.kept) if self.state else 0)
        changes = dict(added=members - len(self.kept), removed=len(self.removed), kept=len(self.kept))
        return job, accumulator, dict(changes, anew=self.state is None)

    def _after(self, inserted, accumulator, noise):
        """The state with what was inserted."""
        members, before, taken_out = inserted, 0, 0
        if self.state:
            members, before = self.kept.join(inserted), self.state.inserted
            taken_out = self.state.taken_out + len(self.removed)
            # Files that are still mapped cannot be deleted everywhere.
            self.state.sums.clear()
        sums, counts = accumulator.export()
        numbers = dict(counts=counts, inserted=before + len(inserted), taken_out=taken_out)
        return State(self.parameters, self.settings, members, sums, **numbers, noise=noise, scores=self.scores)


class Inspection:
    """Takes the fingerprints of images that are read, and refuses to take out one that is not as it was.

    Parameters
    ----------
    work : Members
        Gets the fingerprints; of those with negative weights it has them.
    """

    def __init__(self, work: Members):
        self._work = work

    def __call__(self, rows, images):
        """Look at the images (n, box, box) of the members at `rows`."""
        for row, image in zip(rows.tolist(), images):
            found = zlib.crc32(image)
            if self._work.views.weights[row] < 0:
                _require_same(self._work, row, found)
            self._work.fingerprints[row] = found


def plan_update(folder, parameters, particles, reference=None) -> Update:
    """Compare the state in a folder, if there is one, with the particles that are wanted.

    Parameters
    ----------
    folder : path
    parameters : ReconstructFourierParameters
        With a definite `ctf`.
    particles : Particles
    reference : (box, box, box) array, optional
        Whose projections are subtracted.

    Raises
    ------
    InputFileError
        The state is damaged or has other settings, or images that are in its sums are gone or have changed.
    ParameterError, ProcessingError
        See :func:`~.selection.select`.
    """
    settings = sum_settings(parameters, particles, reference)
    state = load_state(folder) if has_state(folder) else None
    if state is not None:
        check_settings(Path(folder) / FILE, settings, state.settings)
    selection = select(parameters, particles, state and state.scores)
    known = parameters, settings, selection.scores, len(selection.rows)
    wanted = Members.from_selection(particles, selection)
    if state is None:
        nobody = wanted.take(slice(0))
        return Update(*known, kept=nobody, removed=nobody, added=wanted, state=None, noise={})
    given = given_halves(particles.half[selection.rows])
    seed = parameters.seed, 2, state.inserted
    wanted = settle_sets(state.members, wanted, given, parameters.error_groups, seed)
    changes = find_changes(state.members, wanted)
    kept, removed = state.members.take(changes.kept), state.members.take(changes.removed)
    anew = state.taken_out + len(removed) > 0.5 * state.inserted
    if not anew:
        kept = _verified(kept)
        _require_readable(removed)
    return Update(
        *known,
        kept=kept,
        removed=removed,
        added=wanted.take(changes.added),
        state=None if anew else state,
        noise=state.noise,
    )


def join_states(paths: Sequence, states: Sequence[State]) -> State:
    """The state of all particles of several states, as yet without sums.

    Parameters
    ----------
    paths : sequence of path
        Their folders.
    states : sequence of State

    Raises
    ------
    InputFileError
        A state has other settings than the first one, or a particle that is in one before it.
    """
    first, *others = states
    members, noise = first.members, dict(first.noise)
    for path, other in zip(paths[1:], others):
        path = Path(path) / FILE
        check_settings(path, first.settings, other.settings)
        for group, power in other.noise.items():
            if not np.array_equal(noise.setdefault(group, power), power):
                raise InputFileError(
                    path, f"the noise of the optics group {group.name} as in {paths[0]}", "another"
                )
        if first.scores != other.scores:
            raise InputFileError(path, f"scores measured by {first.scores}", str(other.scores))
        earlier = find_earlier(members, other.members)
        if (earlier >= 0).any():
            shared = other.members.name(int(np.argmax(earlier >= 0)))
            raise InputFileError(path, "particles that are not in the states before it", shared)
        members = members.join(other.members)
    return dataclasses.replace(
        first,
        members=members,
        sums=[],
        counts=[sum(counts) for counts in zip(*(state.counts for state in states))],
        inserted=sum(state.inserted for state in states),
        taken_out=sum(state.taken_out for state in states),
        noise=noise,
    )


def _verified(kept):
    """Members with the stamps of today; those of stacks that were written to since must have the same pixels."""
    today = kept.stamped()
    suspects = np.flatnonzero((today.stamps != kept.stamps).any(axis=1))
    for stack, rows in kept.by_stack(suspects):
        for first in range(0, len(rows), CHUNK):
            part = rows[first : first + CHUNK]
            for row, image in zip(part.tolist(), read_stack(stack, kept.index[part])):
                _require_same(kept, row, zlib.crc32(image))
    return today


def _require_same(members, row, fingerprint):
    if members.fingerprints[row] != fingerprint:
        stack, number = members.stacks[members.places[row]], members.index[row] + 1
        raise InputFileError(stack, f"image {number} as it was when it was added", f"another image; {WAY_OUT}")


def _require_readable(removed):
    for stack, rows in removed.by_stack(np.arange(len(removed))):
        number = int(removed.index[rows].max()) + 1
        expected = f"image {number}, which has to be taken out of the sums"
        try:
            count = stack_shape(stack)[0]
        except InputFileError as error:
            raise InputFileError(stack, expected, f"{error.found}; {WAY_OUT}") from error
        if count < number:
            raise InputFileError(stack, expected, f"{count} images; {WAY_OUT}")
