"""What has to be done to sums of some particles so that they become those of others."""

import dataclasses

import numpy as np
import pytest

from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction.changes import find_changes, find_earlier, settle_sets
from xmipp_accel.reconstruction.members import Members
from xmipp_accel.reconstruction.optics import ParticleOptics
from xmipp_accel.reconstruction.views import Views


def _members(names, halves=None, groups=None, seed=0):
    """Members such as "a3": image 3 of stack a."""
    count, rng = len(names), np.random.default_rng(seed)
    stacks = sorted({name[0] for name in names})
    values = rng.uniform(1, 2, size=(7, count))
    optics = ParticleOptics(*values)
    views = Views(
        random_matrices(count, rng), rng.normal(size=(count, 2)), optics=optics, halves=halves, groups=groups
    )
    return Members(
        stacks=tuple(stacks),
        places=np.array([stacks.index(name[0]) for name in names], dtype=np.int64),
        index=np.array([int(name[1:]) for name in names], dtype=np.int64),
        views=views,
        kinds=(OpticsGroup("one", 2.0, 32), OpticsGroup("two", 3.0, 32)),
        numbers=np.zeros(count, np.int64),
        stamps=np.zeros((count, 2), np.int64),
        fingerprints=np.arange(count, dtype=np.uint32),
    )


def _changed(members, row, **changes):
    """A copy in which `row` has other values."""
    views = members.views
    for name, value in changes.items():
        owner = views.optics if name.startswith("defocus") else views
        column = np.array(getattr(owner, name))
        column[row] += value
        replaced = dataclasses.replace(owner, **{name: column})
        views = dataclasses.replace(views, optics=replaced) if owner is views.optics else replaced
    return dataclasses.replace(members, views=views)


def test_particles_are_known_by_their_images_in_any_order():
    old = _members(["b1", "a1", "a2", "b2"])
    assert find_earlier(old, _members(["a2", "c1", "a1", "b3", "b1"])).tolist() == [2, -1, 1, -1, 0]
    assert find_earlier(old, old.take(slice(0))).tolist() == []
    assert find_earlier(old.take(slice(0)), old).tolist() == [-1] * 4


def test_the_occurrences_of_an_image_are_taken_one_by_one():
    old, new = _members(["a1", "a2", "a1", "a1"]), _members(["a1", "a1", "a2", "a1", "a1"])
    assert find_earlier(old, new).tolist() == [0, 2, 1, 3, -1]


def test_differences_are_what_comes_goes_and_changes():
    old = _members(["a1", "a2", "a3", "b1"])
    new = old.take([3, 1, 0]).join(_members(["c7"]))
    changes = find_changes(old, _changed(new, 1, shifts=0.5))
    assert sorted(changes.kept.tolist()) == [0, 3]
    assert changes.removed.tolist() == [1, 2] and changes.added.tolist() == [1, 3]
    nothing = find_changes(old, old.take([2, 0, 1, 3]))
    assert sorted(nothing.kept.tolist()) == [0, 1, 2, 3] and not len(nothing.removed) and not len(nothing.added)


@pytest.mark.parametrize("name", ["matrices", "shifts", "weights", "decays", "defocus_u", "halves", "groups"])
def test_every_value_counts_beyond_rounding(name):
    old = _members(["a1", "a2", "a3"], halves=np.array([1, 2, 1]), groups=np.array([0, 1, 2]))
    least = 1 if name in ("halves", "groups") else 1e-5
    assert find_changes(old, _changed(old, 1, **{name: least})).added.tolist() == [1]
    assert find_changes(old, _changed(old, 1, **{name: 0 if least == 1 else 1e-9})).added.tolist() == []


def test_optics_groups_count_by_their_values():
    old = _members(["a1", "a2"])
    swapped = dataclasses.replace(old, kinds=old.kinds[::-1])
    assert find_changes(old, swapped).added.tolist() == [0, 1]
    assert find_changes(old, dataclasses.replace(swapped, numbers=np.ones(2, np.int64))).added.tolist() == []
    joined = old.join(dataclasses.replace(swapped, numbers=np.ones(2, np.int64)))
    assert joined.kinds == (old.kinds[0],) and joined.numbers.tolist() == [0] * 4


def _settled(old, new, given=None, groups=0, seed=0):
    given = np.zeros(len(new), int) if given is None else given
    return settle_sets(old, new, given, groups, seed).views


def test_known_particles_stay_in_their_sets_and_new_ones_even_them_out():
    names = [f"a{number}" for number in range(40)]
    halves = np.array([1] * 14 + [2] * 6)
    groups = np.r_[[0] * 10, [1] * 4, [0] * 3, [1] * 3]
    old = _members(names[:20], halves, groups)
    new = _members(names[::-1], np.ones(40, int), np.zeros(40, int))
    views = _settled(old, new, groups=2)
    np.testing.assert_array_equal(views.halves[::-1][:20], halves)
    np.testing.assert_array_equal(views.groups[::-1][:20], groups)
    assert np.bincount(views.halves).tolist() == [0, 20, 20]
    for half in (1, 2):
        assert np.bincount(views.groups[views.halves == half]).tolist() == [10, 10]
    again, other = _settled(old, new, groups=2), _settled(old, new, groups=2, seed=1)
    np.testing.assert_array_equal(views.halves, again.halves)
    assert (views.halves != other.halves).any()


def test_sets_that_cannot_be_evened_out_get_all_new_particles():
    halves = np.array([1] * 9 + [2])
    old, new = (_members([f"a{number}" for number in range(count)], np.ones(count, int)) for count in (10, 14))
    old = dataclasses.replace(old, views=dataclasses.replace(old.views, halves=halves))
    assert _settled(old, new).halves.tolist() == [*halves, 2, 2, 2, 2]


def test_one_particle_at_a_time_goes_to_either_half():
    members = _members(["a0"], np.array([1]))
    for number in range(1, 6):
        new = _members([f"a{i}" for i in range(number + 1)], np.ones(number + 1, int))
        members = dataclasses.replace(new, views=_settled(members, new))
    assert sorted(members.views.halves.tolist()) == [1, 1, 1, 2, 2, 2]


def test_half_sets_that_are_given_are_taken():
    old = _members(["a0", "a1"], np.array([1, 2]))
    new = _members(["a0", "a1", "a2", "a3"], np.ones(4, int))
    assert _settled(old, new, [2, 0, 2, 0]).halves.tolist() == [2, 2, 2, 1]


def test_without_half_sets_groups_are_evened_out_over_all():
    old = _members(["a0", "a1", "a2"], groups=np.array([0, 0, 2]))
    new = _members([f"a{number}" for number in range(6)], groups=np.zeros(6, int))
    views = _settled(old, new, groups=3)
    assert views.halves is None and views.groups[:3].tolist() == [0, 0, 2]
    assert np.bincount(views.groups).tolist() == [2, 2, 2]


def test_columns_make_the_same_members_again():
    members = _members(["a1", "b2"], np.array([1, 2]), np.array([0, 1]))
    again = Members.from_columns(members.stacks, members.kinds, members.columns())
    assert find_changes(members, again).added.tolist() == []
    columns = members.columns()
    del columns["shifts"]
    with pytest.raises(ValueError, match="no column shifts"):
        Members.from_columns(members.stacks, members.kinds, columns)
    with pytest.raises(ValueError, match="columns of 1 and 2 particles"):
        Members.from_columns(members.stacks, members.kinds, dict(members.columns(), index=np.zeros(1, int)))
