"""Saved sums that grow, shrink and change, against reconstructions of all particles at once."""

import dataclasses
import os

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, particles_on_disk
from tests.reconstruction.state_data import (
    COUNT,
    assert_near,
    changes,
    in_half_sets_of,
    read_maps,
    run,
    weighted_particles,
)
from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.state import held, load_state, save_state


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return weighted_particles(tmp_path_factory.mktemp("plain"))


def _moved(particles, rows):
    """Other angles and shifts for some particles."""
    changed = particles.take(np.arange(len(particles)))
    changed.rot[rows] += 25
    changed.shift_x[rows] -= 1
    return changed


CHOICES = {
    "plain": {},
    "groups": dict(error_groups=2),
    "weights": dict(use_weights=True, method="blob", symmetry="c3"),
    "curved": dict(ewald="standard", ctf="weight"),
    "xmipp": dict(method="xmipp_fast"),
    "refined": dict(refine_iterations=6),
}


@pytest.mark.parametrize("case", CHOICES)
def test_sums_that_grow_change_and_shrink_give_the_map_of_all_at_once(device, tmp_path, case):
    particles = weighted_particles(tmp_path, ctf=case == "curved")
    state, choices = tmp_path / "state", CHOICES[case]
    for first, last in ((0, 20), (20, 35), (35, 50)):
        result, *found = run(particles.take(np.arange(last)), tmp_path, state, device, **choices)
        assert changes(result) == (last - first, 0, first) and result.particles == last
    fresh = in_half_sets_of(state, particles.take(np.arange(50)))
    assert abs(np.bincount(fresh.half)[1:] - 25).max() <= 1
    result, *expected = run(fresh, tmp_path / "fresh", None, device, **choices)
    assert result.state == {}
    assert_near(found, expected)
    # Some go, some come, some move, all at once, in another order.
    wanted = _moved(particles, np.arange(10, 16)).take(np.arange(8, 60)[::-1])
    wanted.enabled[:2] = False
    result, *found = run(wanted, tmp_path, state, device, **choices)
    assert changes(result) == (8 + 6, 8 + 6, 36) and not result.state["anew"]
    assert (result.particles, result.skipped) == (50, 2)
    fresh = in_half_sets_of(state, wanted)
    assert_near(found, run(fresh, tmp_path / "fresh", None, device, **choices)[1:], 2e-5)


def test_the_first_call_gives_the_usual_map(plain, tmp_path):
    result, *found = run(plain, tmp_path, tmp_path / "state")
    usual, *expected = run(plain, tmp_path / "usual")
    np.testing.assert_array_equal(found, expected)
    assert result.state == dict(added=COUNT, removed=0, kept=0, anew=True) and usual.state == {}
    assert "60 particles added, 0 removed, 0 kept" in result.summary() and "anew" not in result.summary()


def test_known_particles_are_not_read_again(plain, tmp_path, monkeypatch):
    _, *expected = run(plain, tmp_path, tmp_path / "state")
    read = []
    reading = Particles.reading
    monkeypatch.setattr(
        Particles, "reading", lambda self, rows, *more: read.extend(rows) or reading(self, rows, *more)
    )
    result, *found = run(plain, tmp_path, tmp_path / "state")
    assert read == [] and changes(result) == (0, 0, COUNT)
    np.testing.assert_array_equal(found, expected)
    run(plain.take(np.arange(57)), tmp_path, tmp_path / "state")
    assert len(read) == 3


def test_parameters_of_the_map_alone_may_change(plain, tmp_path):
    run(plain, tmp_path, tmp_path / "state")
    run(plain, tmp_path, tmp_path / "refined", refine_iterations=4)
    for state, change in (
        ("state", dict(regularisation="fsc", mask_diameter=50.0, batch_size=7)),
        ("refined", dict(refine_iterations=5, refine_support=True)),
    ):
        result, *found = run(plain, tmp_path, tmp_path / state, **change)
        assert changes(result) == (0, 0, COUNT)
        assert_near(found, run(plain, tmp_path / "fresh", **change)[1:])


def test_values_that_change_are_those_that_count(plain, tmp_path):
    """Weights that are not used, other columns, and digits beyond float32 change nothing."""
    run(plain, tmp_path, tmp_path / "state")
    changed = dataclasses.replace(plain, weight=2 * plain.weight, class_id=3, tilt=plain.tilt + 1e-9)
    assert changes(run(changed, tmp_path, tmp_path / "state")[0]) == (0, 0, COUNT)


def test_weights_and_given_half_sets_are_followed(plain, tmp_path):
    state, choices = tmp_path / "state", dict(use_weights=True)
    before = run(plain, tmp_path, state, **choices)[0]
    weight = plain.weight.copy()
    weight[:3] = 0, 5, 0.25
    halves = in_half_sets_of(state, plain).half
    wanted = dataclasses.replace(plain, weight=weight, half=np.r_[halves[:50], 3 - halves[50:55], halves[55:]])
    result, *found = run(wanted, tmp_path, state, **choices)
    assert changes(result) == (7, 8, 52) and (before.particles, result.particles) == (60, 59)
    assert_near(found, run(wanted, tmp_path / "fresh", **choices)[1:], 2e-5)


def test_a_changed_optics_group_takes_its_particles_along(tmp_path):
    groups = {1: OpticsGroup("one", SAMPLING), 2: OpticsGroup("two", SAMPLING, beam_tilt=(1.0, 0.0))}
    numbers = 1 + np.arange(40) % 4 // 3
    particles = particles_on_disk(tmp_path, count=40, ctf=True, groups=groups, optics_group=numbers)
    run(particles, tmp_path, tmp_path / "state")
    groups[2] = dataclasses.replace(groups[2], beam_tilt=(-3.0, 2.0))
    tilted = dataclasses.replace(particles, groups=groups)
    result, *found = run(tilted, tmp_path, tmp_path / "state")
    assert changes(result) == (10, 10, 30)
    fresh = in_half_sets_of(tmp_path / "state", tilted)
    assert_near(found, run(fresh, tmp_path / "fresh")[1:], 2e-5)


def test_sums_are_made_anew_when_more_than_half_was_taken_out(plain, tmp_path):
    state = tmp_path / "state"
    run(plain, tmp_path, state)
    result, *_ = run(plain.take(np.arange(30)), tmp_path, state)
    assert changes(result) == (0, 30, 30) and not result.state["anew"]
    assert (load_state(state).inserted, load_state(state).taken_out) == (60, 30)
    wanted = plain.take(np.r_[1:30, 45:48])
    result, *found = run(wanted, tmp_path, state)
    assert changes(result) == (3, 1, 29) and result.state["anew"] and "all inserted anew" in result.summary()
    assert (load_state(state).inserted, load_state(state).taken_out) == (32, 0)
    assert_near(found, run(in_half_sets_of(state, wanted), tmp_path / "fresh")[1:], 1e-6)


def test_repeated_removal_leaves_little(plain, tmp_path):
    """Five rounds in and out; without the limit, which would make the sums anew after two."""
    state, known = tmp_path / "state", plain.take(np.arange(40))
    run(known, tmp_path, state)
    _, *expected = run(in_half_sets_of(state, known), tmp_path / "fresh")
    for _ in range(5):
        run(plain, tmp_path, state)
        _, *found = run(known, tmp_path, state)
        with held(state):
            save_state(state, dataclasses.replace(load_state(state), inserted=1000, taken_out=0))
    assert_near(found, expected, 5e-5)


def test_bands_and_several_devices_save_the_same_state(plain, tmp_path, caplog):
    first, wanted = plain.take(np.arange(40)), plain.take(np.arange(10, 60))
    run(first, tmp_path, tmp_path / "usual")
    _, *expected = run(wanted, tmp_path, tmp_path / "usual")
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(max_memory=0.001), CPU, CPU)
    for particles in (first, wanted):
        result = executor.reconstruct(particles, tmp_path, state=tmp_path / "banded")
    assert "reading the images 4 times" in caplog.text and changes(result) == (20, 10, 30)
    assert_near(read_maps(result, tmp_path)[1:], expected, 2e-5)
    assert load_state(tmp_path / "banded").counts == load_state(tmp_path / "usual").counts


def test_the_noise_and_the_scale_of_scores_stay_those_of_the_start(tmp_path):
    rng = np.random.default_rng(0)
    scores = {"maxCC": rng.uniform(0.1, 0.3, COUNT)}
    particles = particles_on_disk(tmp_path, count=COUNT, noise=2.0, extra=scores)
    choices = dict(noise_weights=True, score_b_factor=200.0)
    first, state = particles.take(np.arange(30)), tmp_path / "state"
    _, *expected = run(first, tmp_path, state, **choices)
    begun = load_state(state)
    particles.extra["maxCC"][40:] += 0.05
    grown, other, *_ = run(particles, tmp_path, state, **choices)
    shrunk, *found = run(first, tmp_path, state, **choices)
    assert (changes(grown), changes(shrunk)) == ((30, 0, 30), (0, 30, 30))
    assert_near(found, expected, 1e-4)
    ended = load_state(state)
    assert ended.scores == begun.scores == (first.extra["maxCC"].max(), first.extra["maxCC"].std())
    (noise,), (same,) = begun.noise.values(), ended.noise.values()
    np.testing.assert_array_equal(noise, same)
    assert np.abs(other - expected[0]).max() > 0.05 * expected[0].max()


def test_images_that_are_not_finite_do_not_become_members(tmp_path):
    particles = particles_on_disk(tmp_path, count=30)
    images = read_stack(particles.stack[0])
    images[4, 3, 3] = np.nan
    write_stack(particles.stack[0], images, SAMPLING)
    for expected in ((29, 0, 0), (0, 0, 29)):
        result, *_ = run(particles, tmp_path, tmp_path / "state")
        assert changes(result) == expected and (result.particles, result.unusable) == (29, 1)


def test_images_have_to_be_there_and_the_same_to_be_taken_out(tmp_path):
    (tmp_path / "other").mkdir()
    first, other = particles_on_disk(tmp_path, 30), particles_on_disk(tmp_path / "other", 30, seed=3)
    both = dataclasses.replace(first.take(np.r_[0:30, 0:30]), stack=first.stack + other.stack)
    state, stack = tmp_path / "state", other.stack[0]
    _, *expected = run(both, tmp_path, state)
    images = read_stack(stack)
    write_stack(stack, images + 1, SAMPLING)
    with pytest.raises(
        InputFileError, match=r"image \d+ as it was when it was added, found another image; with an"
    ):
        run(first, tmp_path, state)
    write_stack(stack, images[:25], SAMPLING)
    with pytest.raises(
        InputFileError, match=r"image 30, which has to be taken out .* found 25 images; with an empty"
    ):
        run(first, tmp_path, state)
    os.remove(stack)
    with pytest.raises(
        InputFileError, match=r"other/particles\.mrcs: expected image 30, .*, found No such file.*anew"
    ):
        run(first, tmp_path, state)
    write_stack(stack, images, SAMPLING)
    result, *found = run(both, tmp_path, state)
    assert changes(result) == (0, 0, 60)
    np.testing.assert_array_equal(found, expected)


def test_stacks_that_were_written_again_must_hold_the_same_images(plain, tmp_path):
    particles = particles_on_disk(tmp_path, count=20)
    state = tmp_path / "state"
    run(particles.take(np.arange(12)), tmp_path, state)
    images = read_stack(particles.stack[0])
    longer = np.concatenate([images, images[:3]])
    write_stack(particles.stack[0], longer, SAMPLING)
    assert changes(run(particles, tmp_path, state)[0]) == (8, 0, 12)
    longer[5] += 1
    write_stack(particles.stack[0], longer, SAMPLING)
    with pytest.raises(InputFileError, match=r"particles\.mrcs: expected image 6 as it was when it was added"):
        run(particles, tmp_path, state)
