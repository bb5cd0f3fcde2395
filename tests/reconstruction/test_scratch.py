"""Reconstructions whose stacks are copied to a fast disk first."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from tests.io.samples import negate_unseen
from tests.reconstruction.particle_data import SAMPLING, particles_on_disk
from tests.reconstruction.state_data import assert_near, changes, run
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.reconstruction.state import load_state

COUNT, STACKS = 60, 3


@pytest.fixture
def particles(tmp_path):
    """Particles of three stacks."""
    particles = particles_on_disk(tmp_path, count=COUNT, noise=0.5)
    images = read_stack(particles.stack[0]).reshape(STACKS, -1, *2 * (particles.box,))
    names = [str(tmp_path / f"{number}.mrcs") for number in range(STACKS)]
    for name, some in zip(names, images):
        write_stack(name, some, SAMPLING)
    stack = [name for name in names for _ in range(COUNT // STACKS)]
    return dataclasses.replace(particles, stack=stack, index=np.tile(np.arange(COUNT // STACKS), STACKS))


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def number_of_copies(disk):
    return len(list(disk.glob("xmipp_accel_*/*.mrcs")))


@pytest.mark.parametrize("choices", [{}, dict(max_memory=0.001), dict(noise_weights=True)])
def test_the_map_is_that_of_the_copies(particles, disk, tmp_path, choices, device):
    choices = dict(choices, deterministic=True)
    _, *expected = run(particles, tmp_path, None, device, **choices)
    _, *found = run(particles, tmp_path, None, device, scratch=str(disk), **choices)
    np.testing.assert_array_equal(found, expected)
    for name in set(particles.stack):
        negate_unseen(name, SAMPLING)
    _, *found = run(particles, tmp_path, None, device, scratch=str(disk), **choices)
    np.testing.assert_array_equal(found, expected)
    _, *found = run(particles, tmp_path, None, device, **choices)
    assert_near(found, [-one for one in expected])


def test_only_stacks_with_particles_that_count_are_copied(particles, disk, tmp_path):
    particles.enabled[: 2 * COUNT // STACKS] = False
    run(particles, tmp_path, scratch=str(disk))
    assert number_of_copies(disk) == 1


def test_sums_go_on_with_any_folder_and_know_the_originals(particles, disk, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state, more = tmp_path / "state", tmp_path / "more"
    more.mkdir()
    first = particles.take(np.arange(COUNT // STACKS))
    run(first, tmp_path, state, scratch=str(disk))
    assert number_of_copies(disk) == 1
    plain = tmp_path / "plain"
    run(first, tmp_path, plain)
    members, expected = load_state(state).members, load_state(plain).members
    assert members.stacks == expected.stacks == (particles.stack[0],)
    np.testing.assert_array_equal(members.stamps, expected.stamps)
    assert str(disk) not in json.dumps(dict(json.loads((state / "state.json").read_text()), parameters={}))
    result, *found = run(particles, tmp_path, state, scratch=str(more))
    assert changes(result) == (40, 0, 20) and number_of_copies(more) == 2
    _, *usual = run(particles, tmp_path, plain)
    np.testing.assert_array_equal(found, usual)
    result, *_ = run(particles.take(np.arange(10, COUNT)), tmp_path, state)
    assert changes(result) == (0, 10, 50)


def test_sums_of_a_version_without_the_parameter_go_on(particles, disk, tmp_path):
    state = tmp_path / "state"
    run(particles, tmp_path, state)
    content = json.loads((state / "state.json").read_text())
    del content["parameters"]["scratch"]
    (state / "state.json").write_text(json.dumps(content))
    assert changes(run(particles, tmp_path, state, scratch=str(disk))[0]) == (0, 0, COUNT)
