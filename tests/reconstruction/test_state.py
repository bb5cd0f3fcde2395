"""Saved sums that grow, shrink, change and merge, against reconstructions of all particles at once."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, particles_on_disk
from xmipp_accel import cli
from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.publish import read_json
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.reconstruction import state as states
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor, merge_states
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.state import held, load_state, save_state

COUNT = 60


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return particles_on_disk(folder, count=COUNT, noise=0.5, weight=1 + np.arange(COUNT) % 3 / 2)


def _run(particles, folder, state=None, device=CPU, **choices):
    """(result, full map, half 1, half 2)."""
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(**choices), device)
    return _maps(executor.reconstruct(particles, folder, state=state), folder)


def _maps(result, folder):
    files = (result.volume, result.half1, result.half2)
    return (result, *(read_volume(folder / file)[0] if file else None for file in files))


def _changes(result):
    return tuple(result.state[name] for name in ("added", "removed", "kept"))


def _in_half_sets_of(state, particles):
    """The particles in the half sets that the state has given them."""
    members = load_state(state).members
    halves = {members.name(row): int(half) for row, half in enumerate(members.views.halves)}
    names = [f"{index + 1:06d}@{stack}" for index, stack in zip(particles.index, particles.stack)]
    return dataclasses.replace(particles, half=[halves.get(name, 0) for name in names])


def _moved(particles, rows):
    """Other angles and shifts for some particles."""
    changed = particles.take(np.arange(len(particles)))
    changed.rot[rows] += 25
    changed.shift_x[rows] -= 1
    return changed


def _near(found, expected, tolerance=1e-5):
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


CHOICES = {
    "plain": {},
    "groups": dict(error_groups=2),
    "weights": dict(use_weights=True, method="blob", symmetry="c3"),
    "curved": dict(ewald="standard", ctf="weight"),
    "xmipp": dict(method="xmipp_fast"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_sums_that_grow_change_and_shrink_give_the_map_of_all_at_once(device, tmp_path, case):
    columns = dict(weight=1 + np.arange(COUNT) % 3 / 2)
    particles = particles_on_disk(tmp_path, count=COUNT, ctf=case == "curved", noise=0.5, **columns)
    state, choices = tmp_path / "state", CHOICES[case]
    for first, last in ((0, 20), (20, 35), (35, 50)):
        result, *found = _run(particles.take(np.arange(last)), tmp_path, state, device, **choices)
        assert _changes(result) == (last - first, 0, first) and result.particles == last
    fresh = _in_half_sets_of(state, particles.take(np.arange(50)))
    assert abs(np.bincount(fresh.half)[1:] - 25).max() <= 1
    result, *expected = _run(fresh, tmp_path / "fresh", None, device, **choices)
    assert result.state == {}
    _near(found, expected)
    # Some go, some come, some move, all at once, in another order.
    wanted = _moved(particles, np.arange(10, 16)).take(np.arange(8, 60)[::-1])
    wanted.enabled[:2] = False
    result, *found = _run(wanted, tmp_path, state, device, **choices)
    assert _changes(result) == (8 + 6, 8 + 6, 36) and not result.state["anew"]
    assert (result.particles, result.skipped) == (50, 2)
    fresh = _in_half_sets_of(state, wanted)
    _near(found, _run(fresh, tmp_path / "fresh", None, device, **choices)[1:], 2e-5)


def test_the_first_call_gives_the_usual_map(plain, tmp_path):
    result, *found = _run(plain, tmp_path, tmp_path / "state")
    usual, *expected = _run(plain, tmp_path / "usual")
    np.testing.assert_array_equal(found, expected)
    assert result.state == dict(added=COUNT, removed=0, kept=0, anew=True) and usual.state == {}
    assert "60 particles added, 0 removed, 0 kept" in result.summary() and "anew" not in result.summary()


def test_known_particles_are_not_read_again(plain, tmp_path, monkeypatch):
    _, *expected = _run(plain, tmp_path, tmp_path / "state")
    read = []
    images = Particles.images
    monkeypatch.setattr(Particles, "images", lambda self, rows: read.extend(rows) or images(self, rows))
    result, *found = _run(plain, tmp_path, tmp_path / "state")
    assert read == [] and _changes(result) == (0, 0, COUNT)
    np.testing.assert_array_equal(found, expected)
    _run(plain.take(np.arange(57)), tmp_path, tmp_path / "state")
    assert len(read) == 3


def test_parameters_of_the_map_alone_may_change(plain, tmp_path):
    _run(plain, tmp_path, tmp_path / "state")
    change = dict(regularisation="fsc", mask_diameter=50.0, batch_size=7)
    result, *found = _run(plain, tmp_path, tmp_path / "state", **change)
    assert _changes(result) == (0, 0, COUNT)
    _near(found, _run(plain, tmp_path / "fresh", **change)[1:])


def test_values_that_change_are_those_that_count(plain, tmp_path):
    """Weights that are not used, other columns, and digits beyond float32 change nothing."""
    _run(plain, tmp_path, tmp_path / "state")
    changed = dataclasses.replace(plain, weight=2 * plain.weight, class_id=3, tilt=plain.tilt + 1e-9)
    assert _changes(_run(changed, tmp_path, tmp_path / "state")[0]) == (0, 0, COUNT)


def test_weights_and_given_half_sets_are_followed(plain, tmp_path):
    state, choices = tmp_path / "state", dict(use_weights=True)
    before = _run(plain, tmp_path, state, **choices)[0]
    weight = plain.weight.copy()
    weight[:3] = 0, 5, 0.25
    halves = _in_half_sets_of(state, plain).half
    wanted = dataclasses.replace(plain, weight=weight, half=np.r_[halves[:50], 3 - halves[50:55], halves[55:]])
    result, *found = _run(wanted, tmp_path, state, **choices)
    assert _changes(result) == (7, 8, 52) and (before.particles, result.particles) == (60, 59)
    _near(found, _run(wanted, tmp_path / "fresh", **choices)[1:], 2e-5)


def test_a_changed_optics_group_takes_its_particles_along(tmp_path):
    groups = {1: OpticsGroup("one", SAMPLING), 2: OpticsGroup("two", SAMPLING, beam_tilt=(1.0, 0.0))}
    numbers = 1 + np.arange(40) % 4 // 3
    particles = particles_on_disk(tmp_path, count=40, ctf=True, groups=groups, optics_group=numbers)
    _run(particles, tmp_path, tmp_path / "state")
    groups[2] = dataclasses.replace(groups[2], beam_tilt=(-3.0, 2.0))
    tilted = dataclasses.replace(particles, groups=groups)
    result, *found = _run(tilted, tmp_path, tmp_path / "state")
    assert _changes(result) == (10, 10, 30)
    fresh = _in_half_sets_of(tmp_path / "state", tilted)
    _near(found, _run(fresh, tmp_path / "fresh")[1:], 2e-5)


def test_sums_are_made_anew_when_more_than_half_was_taken_out(plain, tmp_path):
    state = tmp_path / "state"
    _run(plain, tmp_path, state)
    result, *_ = _run(plain.take(np.arange(30)), tmp_path, state)
    assert _changes(result) == (0, 30, 30) and not result.state["anew"]
    assert (load_state(state).inserted, load_state(state).taken_out) == (60, 30)
    wanted = plain.take(np.r_[1:30, 45:48])
    result, *found = _run(wanted, tmp_path, state)
    assert _changes(result) == (3, 1, 29) and result.state["anew"] and "all inserted anew" in result.summary()
    assert (load_state(state).inserted, load_state(state).taken_out) == (32, 0)
    _near(found, _run(_in_half_sets_of(state, wanted), tmp_path / "fresh")[1:], 1e-6)


def test_repeated_removal_leaves_little(plain, tmp_path):
    """Five rounds in and out; without the limit, which would make the sums anew after two."""
    state, known = tmp_path / "state", plain.take(np.arange(40))
    _run(known, tmp_path, state)
    _, *expected = _run(_in_half_sets_of(state, known), tmp_path / "fresh")
    for _ in range(5):
        _run(plain, tmp_path, state)
        _, *found = _run(known, tmp_path, state)
        with held(state):
            save_state(state, dataclasses.replace(load_state(state), inserted=1000, taken_out=0))
    _near(found, expected, 5e-5)


def test_bands_and_several_devices_save_the_same_state(plain, tmp_path, caplog):
    first, wanted = plain.take(np.arange(40)), plain.take(np.arange(10, 60))
    _run(first, tmp_path, tmp_path / "usual")
    _, *expected = _run(wanted, tmp_path, tmp_path / "usual")
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(max_memory=0.001), CPU, CPU)
    for particles in (first, wanted):
        result = executor.reconstruct(particles, tmp_path, state=tmp_path / "banded")
    assert "reading the images 4 times" in caplog.text and _changes(result) == (20, 10, 30)
    _near(_maps(result, tmp_path)[1:], expected, 2e-5)
    assert load_state(tmp_path / "banded").counts == load_state(tmp_path / "usual").counts


def test_the_noise_and_the_scale_of_scores_stay_those_of_the_start(tmp_path):
    rng = np.random.default_rng(0)
    scores = {"maxCC": rng.uniform(0.1, 0.3, COUNT)}
    particles = particles_on_disk(tmp_path, count=COUNT, noise=2.0, extra=scores)
    choices = dict(noise_weights=True, score_b_factor=200.0)
    first, state = particles.take(np.arange(30)), tmp_path / "state"
    _, *expected = _run(first, tmp_path, state, **choices)
    begun = load_state(state)
    particles.extra["maxCC"][40:] += 0.05
    grown, other, *_ = _run(particles, tmp_path, state, **choices)
    shrunk, *found = _run(first, tmp_path, state, **choices)
    assert (_changes(grown), _changes(shrunk)) == ((30, 0, 30), (0, 30, 30))
    _near(found, expected, 5e-5)
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
        result, *_ = _run(particles, tmp_path, tmp_path / "state")
        assert _changes(result) == expected and (result.particles, result.unusable) == (29, 1)


def test_images_have_to_be_there_and_the_same_to_be_taken_out(tmp_path):
    (tmp_path / "other").mkdir()
    first, other = particles_on_disk(tmp_path, 30), particles_on_disk(tmp_path / "other", 30, seed=3)
    both = dataclasses.replace(first.take(np.r_[0:30, 0:30]), stack=first.stack + other.stack)
    state, stack = tmp_path / "state", other.stack[0]
    _, *expected = _run(both, tmp_path, state)
    images = read_stack(stack)
    write_stack(stack, images + 1, SAMPLING)
    with pytest.raises(
        InputFileError, match=r"image \d+ as it was when it was added, found another image; with an"
    ):
        _run(first, tmp_path, state)
    write_stack(stack, images[:25], SAMPLING)
    with pytest.raises(
        InputFileError, match=r"image 30, which has to be taken out .* found 25 images; with an empty"
    ):
        _run(first, tmp_path, state)
    os.remove(stack)
    with pytest.raises(
        InputFileError, match=r"other/particles\.mrcs: expected image 30, .*, found No such file.*anew"
    ):
        _run(first, tmp_path, state)
    write_stack(stack, images, SAMPLING)
    result, *found = _run(both, tmp_path, state)
    assert _changes(result) == (0, 0, 60)
    np.testing.assert_array_equal(found, expected)


def test_stacks_that_were_written_again_must_hold_the_same_images(plain, tmp_path):
    particles = particles_on_disk(tmp_path, count=20)
    state = tmp_path / "state"
    _run(particles.take(np.arange(12)), tmp_path, state)
    images = read_stack(particles.stack[0])
    longer = np.concatenate([images, images[:3]])
    write_stack(particles.stack[0], longer, SAMPLING)
    assert _changes(_run(particles, tmp_path, state)[0]) == (8, 0, 12)
    longer[5] += 1
    write_stack(particles.stack[0], longer, SAMPLING)
    with pytest.raises(InputFileError, match=r"particles\.mrcs: expected image 6 as it was when it was added"):
        _run(particles, tmp_path, state)


OTHERS = {
    "symmetry": "c2",
    "max_resolution": 10.0,
    "method": "blob",
    "halves": False,
    "use_weights": True,
    "padding_images": 1.5,
    "padding_volume": 1.5,
    "blob_radius": 1.5,
    "blob_order": 2,
    "blob_alpha": 8.0,
    "seed": 1,
    "noise_weights": True,
    "score_b_factor": 1.0,
    "refine_iterations": 6,
    "score_label": "maxCC",
    "error_groups": 2,
}
WITH_CTF = {"ctf": "phase_flipped", "ewald": "reversed"}
ELSEWHERE = {"mask_diameter", "subtract"}


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory):
    state = tmp_path_factory.mktemp("saved")
    _run(plain, state / "out", state)
    return state


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_parameters_is_refused(plain, saved, tmp_path, name):
    usual = getattr(ReconstructFourierParameters(), name)
    shown = f"expected sums with {name} {OTHERS[name]}, found {'none' if usual == '' else usual}"
    with pytest.raises(InputFileError, match=rf"state\.json: {shown}"):
        _run(plain, tmp_path, saved, **{name: OTHERS[name]})
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_ctf_box_rate_or_volume_is_refused(plain, saved, tmp_path):
    optical = particles_on_disk(tmp_path, ctf=True)
    write_volume(tmp_path / "map.mrc", np.ones((24, 24, 24), np.float32), SAMPLING)
    (tmp_path / "large").mkdir()
    for particles, choices, shown in (
        (optical, {}, "ctf weight, found none"),
        (optical, dict(ctf="none"), "has_ctf True, found False"),
        (particles_on_disk(tmp_path / "large", box=26), {}, "box 26, found 24"),
        (dataclasses.replace(plain, sampling_rate=3.01), {}, "sampling_rate 3.01, found 3.0"),
        (plain, dict(subtract=str(tmp_path / "map.mrc")), "subtract CRC [0-9a-f]{8}, found none"),
    ):
        with pytest.raises(InputFileError, match=f"expected sums with {shown}"):
            _run(particles, tmp_path / "out", saved, **choices)
    _run(optical, tmp_path, tmp_path / "state", ctf="weight", ewald="standard")
    for name, value in {**WITH_CTF, "mask_diameter": 40.0}.items():
        choices = {"ctf": "weight", "ewald": "standard", name: value}
        with pytest.raises(InputFileError, match=f"expected sums with {name} {value}"):
            _run(optical, tmp_path / "out", tmp_path / "state", **choices)
    assert not (tmp_path / "out").exists()


def test_every_parameter_is_either_of_the_sums_or_of_the_map():
    """One that comes to be must be put to one side; unless it is named as the map's, a change is refused."""
    names = {field.name for field in dataclasses.fields(ReconstructFourierParameters)}
    assert names == {*OTHERS, *WITH_CTF, *ELSEWHERE, *states.MAPS_ONLY}


def test_a_state_of_another_volume_to_subtract_is_refused(plain, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        write_volume(tmp_path / "map.mrc", rng.normal(size=(24, 24, 24)).astype(np.float32), SAMPLING)
        if number == 0:
            _run(plain.take(np.arange(30)), tmp_path, tmp_path / "state", subtract=str(tmp_path / "map.mrc"))
            _, *found = _run(plain, tmp_path, tmp_path / "state", subtract=str(tmp_path / "map.mrc"))
            fresh = _in_half_sets_of(tmp_path / "state", plain)
            _near(found, _run(fresh, tmp_path / "fresh", subtract=str(tmp_path / "map.mrc"))[1:])
    with pytest.raises(InputFileError, match=r"expected sums with subtract CRC .*, found CRC"):
        _run(plain, tmp_path, tmp_path / "state", subtract=str(tmp_path / "map.mrc"))


def _edited(change):
    def damage(folder):
        content = read_json(folder / "state.json")
        change(content)
        (folder / "state.json").write_text(json.dumps(content))

    return damage


def _array(folder, name):
    return next(folder.glob(f"sums_*/{name}"))


def _cut(folder):
    path = _array(folder, "1.npy")
    path.write_bytes(path.read_bytes()[:-100])


def _without_column(folder):
    path = _array(folder, "members.npz")
    columns = dict(np.load(path))
    del columns["index"]
    np.savez(path, **columns)


DAMAGES = {
    "version": (
        _edited(lambda c: c.update(version=0)),
        "state.json: expected a state of version 1, found version 0",
    ),
    "json": (lambda f: (f / "state.json").write_text("{"), "state.json: expected JSON"),
    "key": (_edited(lambda c: c.pop("counts")), "state.json: expected a state of version 1, found KeyError"),
    "parameter": (_edited(lambda c: c["parameters"].update(new=1)), "state.json: expected a state .* 'new'"),
    "missing": (lambda f: _array(f, "0.npy").unlink(), r"0.npy: expected sums of shape .*, found .*No such file"),
    "cut": (_cut, "1.npy: expected sums of shape"),
    "text": (lambda f: _array(f, "0.npy").write_text("no array"), "0.npy: expected sums of shape"),
    "type": (
        lambda f: np.save(_array(f, "0.npy"), np.zeros((51, 51, 26, 4))),
        "0.npy: expected float32 sums .*float64",
    ),
    "shape": (
        lambda f: np.save(_array(f, "0.npy"), np.zeros(3, "f4")),
        r"float32 sums of shape .* of shape \(3,\)",
    ),
    "table": (
        lambda f: _array(f, "members.npz").write_bytes(b"PK"),
        "members.npz: expected the table of the particl",
    ),
    "column": (_without_column, "members.npz: expected the table .*no column index"),
    "number": (_edited(lambda c: c.update(counts=[30, 31])), "members.npz: expected 61 particles, found 60"),
    "stacks": (
        _edited(lambda c: c.update(stacks=[])),
        "members.npz: expected particles of 0 stacks, found number 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_states_are_refused_by_file(plain, tmp_path, damage):
    _run(plain, tmp_path / "out", tmp_path / "state")
    change, message = DAMAGES[damage]
    change(tmp_path / "state")
    with pytest.raises(InputFileError, match=message):
        _run(plain, tmp_path / "out", tmp_path / "state")


@pytest.mark.parametrize("failing", ["np.save", "write_json"])
def test_the_old_state_is_valid_until_the_new_one_is_complete(plain, tmp_path, monkeypatch, failing):
    state, part = tmp_path / "state", plain.take(np.arange(30))
    _, *expected = _run(part, tmp_path, state)

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(states.np if failing == "np.save" else states, failing.split(".")[-1], broken)
        with pytest.raises(OSError, match="No space"):
            _run(plain, tmp_path, state)
    assert len(list(state.glob("sums_*"))) == (1 if failing == "np.save" else 2)
    result, *found = _run(part, tmp_path, state)
    assert _changes(result) == (0, 0, 30)
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.name[:5] for path in state.iterdir()) == ["lock", "state", "sums_"]


def test_a_state_in_use_is_refused(plain, tmp_path):
    state = tmp_path / "state"
    _run(plain, tmp_path, state)
    with held(state), pytest.raises(ProcessingError, match="state: expected a state that no other run uses"):
        _run(plain, tmp_path, state)
    with open(state / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFileError, match="file: expected a folder for the state, found"):
        _run(plain, tmp_path, tmp_path / "file")


def test_states_of_disjoint_particles_become_one(plain, tmp_path):
    shards = [tmp_path / name for name in "abc"]
    for number, shard in enumerate(shards):
        _run(plain.take(np.arange(number, COUNT, 3)), tmp_path / "out", shard, use_weights=True)
    joint = tmp_path / "joint"
    result, *found = _maps(merge_states(shards, joint, tmp_path / "map"), tmp_path / "map")
    assert _changes(result) == (0, 0, COUNT) and (result.particles, result.particles_half1) == (60, 30)
    fresh = _in_half_sets_of(joint, plain)
    _, *expected = _run(fresh, tmp_path / "fresh", use_weights=True)
    _near(found, expected)
    assert load_state(joint).inserted == COUNT and load_state(shards[0]).inserted == 20
    result, *found = _run(plain.take(np.arange(55)), tmp_path, joint, use_weights=True)
    assert _changes(result) == (0, 5, 55)
    _near(found, _run(fresh.take(np.arange(55)), tmp_path / "fresh", use_weights=True)[1:], 2e-5)


def test_states_that_do_not_fit_are_not_merged(plain, tmp_path):
    choices = {"a": {}, "b": {}, "other": dict(symmetry="c2"), "noisy": dict(noise_weights=True)}
    rows = {"a": np.arange(20), "b": np.arange(19, 40), "other": np.arange(40, 60), "noisy": np.arange(30)}
    for name, values in choices.items():
        _run(plain.take(rows[name]), tmp_path / "out", tmp_path / name, **values)
    _run(plain.take(np.arange(30, 60)), tmp_path / "out", tmp_path / "loud", noise_weights=True)
    name = "000020@" + plain.stack[0]
    for first, second, message in (
        ("a", "b", rf"b/state\.json: expected particles that are not in the states before it, found {name}"),
        ("a", "other", r"other/state\.json: expected sums with symmetry c1, found c2"),
        ("noisy", "loud", r"loud/state\.json: expected the noise of the optics group opticsGroup1 as in"),
        ("a", "absent", r"absent/state\.json: expected a readable file, found No such file"),
    ):
        with pytest.raises(InputFileError, match=message):
            merge_states([tmp_path / first, tmp_path / second], tmp_path / "joint", tmp_path / "map")
    with pytest.raises(InputFileError, match="b: expected a folder without a state"):
        merge_states([tmp_path / "a"], tmp_path / "b", tmp_path / "map")
    assert not (tmp_path / "map").exists()


def test_the_command_line_grows_and_merges_states(plain, tmp_path, capsys):
    parts = [plain.take(np.arange(30)), plain.take(np.arange(30, 60)), plain]
    for name, part in zip("abc", parts):
        write_particles(tmp_path / f"{name}.star", part)
    out = str(tmp_path / "out")
    for table, state in (("a", "a"), ("b", "b"), ("c", "a")):
        arguments = [str(tmp_path / f"{table}.star"), "--state", str(tmp_path / state), "--output", out]
        assert cli.main(["reconstruct", *arguments, "--device", "cpu"]) == 0
    assert "30 particles added, 0 removed, 30 kept" in capsys.readouterr().out
    _run(parts[0], tmp_path, tmp_path / "d")
    merge = ["merge-states", str(tmp_path / "b"), str(tmp_path / "d"), "--state", str(tmp_path / "joint")]
    assert cli.main([*merge, "--output", out, "--name", "all", "--device", "cpu"]) == 0
    assert "all.mrc: 24 px" in capsys.readouterr().out and (Path(out) / "all_half2.mrc").exists()
    merge[1:3] = [str(tmp_path / "a"), str(tmp_path / "b")]
    merge[-1] = str(tmp_path / "overlap")
    assert cli.main([*merge, "--output", out]) == 1
    assert "found 000031@" in capsys.readouterr().err


def test_unusable_values_leave_the_state_as_it_is(plain, tmp_path):
    _run(plain, tmp_path, tmp_path / "state")
    before = (tmp_path / "state" / "state.json").read_bytes()
    broken = plain.take(np.arange(COUNT))
    broken.rot[3] = np.nan
    with pytest.raises(ParameterError, match="rot: expected finite numbers"):
        _run(broken, tmp_path, tmp_path / "state")
    assert (tmp_path / "state" / "state.json").read_bytes() == before
