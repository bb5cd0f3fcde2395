"""2D classifications whose stacks are copied to a fast disk first."""

import numpy as np
import pytest

from tests.io.samples import negate_unseen
from tests.particle_alignment.test_classify2d_streaming import Stop, classify
from xmipp_accel.io.images import read_stack
from xmipp_accel.io.particles import read_particles
from xmipp_accel.particle_alignment import classify2d_state
from xmipp_accel.particle_alignment.classify2d_state import load_state
from xmipp_accel.simulate.particles import simulate_particles

COUNT, RATE = 80, 5.0
ONLINE = dict(batch_size=40, iterations=3)


@pytest.fixture
def particles(tmp_path):
    simulate_particles(tmp_path / "views", COUNT, 32, RATE, snr=0.5, max_shift=2.0, seed=2, views=4)
    return read_particles(tmp_path / "views" / "particles.star")


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.mark.parametrize("choices", [{}, ONLINE], ids=["at once", "online"])
def test_classes_are_those_of_the_copies_and_tables_name_the_originals(particles, disk, tmp_path, choices):
    expected, rows = classify(particles, tmp_path / "plain", **choices)
    for folder in ("copied", "again"):
        result, found = classify(particles, tmp_path / folder, scratch=str(disk), **choices)
        np.testing.assert_array_equal(read_stack(result.averages), read_stack(expected.averages))
        np.testing.assert_array_equal(found.extra["score"], rows.extra["score"])
        assert found.stack == rows.stack == particles.stack
        kept = load_state(result.state).kept
        assert kept is None or kept.stack == particles.take(np.flatnonzero(found.enabled)).stack
        if folder == "copied":
            negate_unseen(particles.stack[0], RATE)
    other, _ = classify(particles, tmp_path / "other", **choices)
    assert np.corrcoef(read_stack(other.averages).ravel(), read_stack(expected.averages).ravel())[0, 1] < 0.9


@pytest.mark.parametrize("old", [False, True], ids=["saved without", "saved before there was the parameter"])
def test_an_interrupted_run_is_finished_with_another_folder(particles, disk, tmp_path, monkeypatch, old):
    whole, rows = classify(particles, tmp_path / "whole", **ONLINE)
    monkeypatch.setattr(classify2d_state, "SAVE_SECONDS", 0.0)

    def stop(done, _):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        classify(particles, tmp_path / "again", progress=stop, **ONLINE)
    path = tmp_path / "again" / "classes_state.npz"
    if old:
        state = load_state(path)
        del state.settings["parameters"]["scratch"]
        classify2d_state.save_state(path, state)
    again, found = classify(particles, tmp_path / "again", path, scratch=str(disk), **ONLINE)
    assert len(list(disk.glob("xmipp_accel_*/*.mrcs"))) == 1
    np.testing.assert_array_equal(found.class_id, rows.class_id)
    np.testing.assert_array_equal(read_stack(again.averages), read_stack(whole.averages))
