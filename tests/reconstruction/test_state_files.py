"""States that are refused, interrupted, in use and merged."""

import dataclasses
import fcntl
import json
from pathlib import Path

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
from xmipp_accel import cli
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.particles import write_particles
from xmipp_accel.io.publish import read_json
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.reconstruction import state as states
from xmipp_accel.reconstruction.executor import merge_states
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.state import held, load_state


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return weighted_particles(tmp_path_factory.mktemp("plain"))


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
    "score_label": "maxCC",
    "error_groups": 2,
}
WITH_CTF = {"ctf": "phase_flipped", "ewald": "reversed"}
ELSEWHERE = {"mask_diameter", "subtract", "refine_iterations"}


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory):
    state = tmp_path_factory.mktemp("saved")
    run(plain, state / "out", state)
    return state


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_parameters_is_refused(plain, saved, tmp_path, name):
    usual = getattr(ReconstructFourierParameters(), name)
    shown = f"expected sums with {name} {OTHERS[name]}, found {'none' if usual == '' else usual}"
    with pytest.raises(InputFileError, match=rf"state\.json: {shown}"):
        run(plain, tmp_path, saved, **{name: OTHERS[name]})
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
        (plain, dict(refine_iterations=6), "for_least_squares True, found False"),
        (plain, dict(subtract=str(tmp_path / "map.mrc")), "subtract CRC [0-9a-f]{8}, found none"),
    ):
        with pytest.raises(InputFileError, match=f"expected sums with {shown}"):
            run(particles, tmp_path / "out", saved, **choices)
    run(optical, tmp_path, tmp_path / "state", ctf="weight", ewald="standard")
    for name, value in {**WITH_CTF, "mask_diameter": 40.0}.items():
        choices = {"ctf": "weight", "ewald": "standard", name: value}
        with pytest.raises(InputFileError, match=f"expected sums with {name} {value}"):
            run(optical, tmp_path / "out", tmp_path / "state", **choices)
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
            run(plain.take(np.arange(30)), tmp_path, tmp_path / "state", subtract=str(tmp_path / "map.mrc"))
            _, *found = run(plain, tmp_path, tmp_path / "state", subtract=str(tmp_path / "map.mrc"))
            fresh = in_half_sets_of(tmp_path / "state", plain)
            assert_near(found, run(fresh, tmp_path / "fresh", subtract=str(tmp_path / "map.mrc"))[1:])
    with pytest.raises(InputFileError, match=r"expected sums with subtract CRC .*, found CRC"):
        run(plain, tmp_path, tmp_path / "state", subtract=str(tmp_path / "map.mrc"))


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
    run(plain, tmp_path / "out", tmp_path / "state")
    change, message = DAMAGES[damage]
    change(tmp_path / "state")
    with pytest.raises(InputFileError, match=message):
        run(plain, tmp_path / "out", tmp_path / "state")


@pytest.mark.parametrize("failing", ["np.save", "write_json"])
def test_the_old_state_is_valid_until_the_new_one_is_complete(plain, tmp_path, monkeypatch, failing):
    state, part = tmp_path / "state", plain.take(np.arange(30))
    _, *expected = run(part, tmp_path, state)

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(states.np if failing == "np.save" else states, failing.split(".")[-1], broken)
        with pytest.raises(OSError, match="No space"):
            run(plain, tmp_path, state)
    assert len(list(state.glob("sums_*"))) == (1 if failing == "np.save" else 2)
    result, *found = run(part, tmp_path, state)
    assert changes(result) == (0, 0, 30)
    np.testing.assert_array_equal(found, expected)
    assert sorted(path.name[:5] for path in state.iterdir()) == ["lock", "state", "sums_"]


def test_a_state_in_use_is_refused(plain, tmp_path):
    state = tmp_path / "state"
    run(plain, tmp_path, state)
    with held(state), pytest.raises(ProcessingError, match="state: expected a state that no other run uses"):
        run(plain, tmp_path, state)
    with open(state / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFileError, match="file: expected a folder for the state, found"):
        run(plain, tmp_path, tmp_path / "file")


def test_states_of_disjoint_particles_become_one(plain, tmp_path):
    shards = [tmp_path / name for name in "abc"]
    for number, shard in enumerate(shards):
        run(plain.take(np.arange(number, COUNT, 3)), tmp_path / "out", shard, use_weights=True)
    joint = tmp_path / "joint"
    result, *found = read_maps(merge_states(shards, joint, tmp_path / "map"), tmp_path / "map")
    assert changes(result) == (0, 0, COUNT) and (result.particles, result.particles_half1) == (60, 30)
    fresh = in_half_sets_of(joint, plain)
    _, *expected = run(fresh, tmp_path / "fresh", use_weights=True)
    assert_near(found, expected)
    assert load_state(joint).inserted == COUNT and load_state(shards[0]).inserted == 20
    result, *found = run(plain.take(np.arange(55)), tmp_path, joint, use_weights=True)
    assert changes(result) == (0, 5, 55)
    assert_near(found, run(fresh.take(np.arange(55)), tmp_path / "fresh", use_weights=True)[1:], 2e-5)


def test_states_that_do_not_fit_are_not_merged(plain, tmp_path):
    choices = {"a": {}, "b": {}, "other": dict(symmetry="c2"), "noisy": dict(noise_weights=True)}
    rows = {"a": np.arange(20), "b": np.arange(19, 40), "other": np.arange(40, 60), "noisy": np.arange(30)}
    for name, values in choices.items():
        run(plain.take(rows[name]), tmp_path / "out", tmp_path / name, **values)
    run(plain.take(np.arange(30, 60)), tmp_path / "out", tmp_path / "loud", noise_weights=True)
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
    run(parts[0], tmp_path, tmp_path / "d")
    merge = ["merge-states", str(tmp_path / "b"), str(tmp_path / "d"), "--state", str(tmp_path / "joint")]
    assert cli.main([*merge, "--output", out, "--name", "all", "--device", "cpu"]) == 0
    assert "all.mrc: 24 px" in capsys.readouterr().out and (Path(out) / "all_half2.mrc").exists()
    merge[1:3] = [str(tmp_path / "a"), str(tmp_path / "b")]
    merge[-1] = str(tmp_path / "overlap")
    assert cli.main([*merge, "--output", out]) == 1
    assert "found 000031@" in capsys.readouterr().err


def test_unusable_values_leave_the_state_as_it_is(plain, tmp_path):
    run(plain, tmp_path, tmp_path / "state")
    before = (tmp_path / "state" / "state.json").read_bytes()
    broken = plain.take(np.arange(COUNT))
    broken.rot[3] = np.nan
    with pytest.raises(ParameterError, match="rot: expected finite numbers"):
        run(broken, tmp_path, tmp_path / "state")
    assert (tmp_path / "state" / "state.json").read_bytes() == before
