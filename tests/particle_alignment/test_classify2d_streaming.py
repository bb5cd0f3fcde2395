"""The 2D classification in instalments, after interruptions, against fixed references, and on several devices."""

import json
import threading

import numpy as np
import pytest

from tests.particle_alignment.test_classify2d_executor import BOX, QUICK, purity
from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment import classify2d_batch, classify2d_run, classify2d_source, classify2d_state
from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.classify2d_state import load_state
from xmipp_accel.particle_alignment.classify2d_workers import Workers
from xmipp_accel.simulate.particles import simulate_particles

COUNT = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    truth = simulate_particles(folder, COUNT, BOX, 5.0, snr=0.5, max_shift=2.0, seed=2, views=4)
    return read_particles(folder / "particles.star"), truth


def classify(particles, folder, state=None, references=None, devices=(CPU,), progress=None, **choices):
    parameters = Classify2DParameters(**dict(QUICK, **choices))
    executor = Classify2DExecutor(parameters, *devices)
    result = executor.classify(particles, folder, references, progress, state)
    return result, read_particles(result.particles_xmd)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    return classify(data[0], tmp_path_factory.mktemp("classes"))


def in_instalments(particles, folder, count, **choices):
    """Results of the instalments, and of a last pass that assigns all particles."""
    state, results = None, []
    for number, rows in enumerate(np.array_split(np.arange(len(particles)), count)):
        result, _ = classify(particles.take(rows), folder / str(number), state, **choices)
        results.append(result)
        state = result.state
    return results, classify(particles, folder / "all", state, fixed_references=True, **choices)


def test_classes_of_a_growing_set_match_those_of_the_whole(data, done, tmp_path):
    whole = purity(done[1].class_id, data[1].views)
    results, (last, rows) = in_instalments(data[0], tmp_path, 5)
    assert purity(rows.class_id, data[1].views) >= whole - 0.03
    assert [result.n_averaged for result in results] == [24, 48, 72, 96, 120]
    assert [sum(result.counts) for result in results] == [24, 48, 72, 96, 120]
    # The averages of the last instalment are those of all particles as well.
    for before, after in zip(read_stack(results[-1].averages), read_stack(last.averages)):
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95


def test_further_particles_are_added_when_a_batch_has_been_seen(data, done, tmp_path):
    """The first two instalments make a batch and are sorted together; the others are learnt from once."""
    whole = purity(done[1].class_id, data[1].views)
    results, (_, rows) = in_instalments(data[0], tmp_path, 4, batch_size=60, iterations=6)
    assert [load_state(result.state).kept is None for result in results] == [False, True, True, True]
    assert purity(rows.class_id, data[1].views) >= whole - 0.05
    assert [sum(result.counts) for result in results] == [30, 60, 90, 120]
    assert load_state(results[-1].state).averages.counts.sum() == COUNT
    images = read_particles(results[-1].particles_xmd)
    assert len(images) == 30 and images.class_id.min() >= 1


def test_new_particles_suffice_when_earlier_images_are_gone(data, tmp_path, caplog):
    particles = data[0]
    first = particles.take(np.arange(80))
    write_stack(tmp_path / "first.mrcs", first.images(), 5.0)
    first.stack = [str(tmp_path / "first.mrcs")] * 80
    before, _ = classify(first, tmp_path / "first")
    (tmp_path / "first.mrcs").unlink()
    after, rows = classify(particles.take(np.arange(80, 120)), tmp_path / "second", before.state)
    assert "first.mrcs" in caplog.text
    assert sum(after.counts) == 120 and purity(rows.class_id, data[1].views[80:]) >= 0.95


class Stop(Exception):
    pass


@pytest.mark.parametrize("choices", [{}, dict(batch_size=60, iterations=4)], ids=["at once", "online"])
@pytest.mark.parametrize("moment", [1, 3])
def test_an_interrupted_run_ends_as_one_that_was_not(data, tmp_path, monkeypatch, choices, moment):
    whole, rows = classify(data[0], tmp_path / "whole", **choices)
    monkeypatch.setattr(classify2d_state, "SAVE_SECONDS", 0.0)
    reports = []

    def stop(done, total):
        reports.append(done)
        if len(reports) == moment:
            raise Stop

    with pytest.raises(Stop):
        classify(data[0], tmp_path / "again", progress=stop, **choices)
    assert not (tmp_path / "again" / "classes.json").exists()
    state = tmp_path / "again" / "classes_state.npz"
    with pytest.raises(ParameterError, match="found others; finish it first"):
        classify(data[0].take(np.arange(50)), tmp_path / "again", state, **choices)
    again, found = classify(data[0], tmp_path / "again", state, **choices)
    np.testing.assert_array_equal(found.class_id, rows.class_id)
    np.testing.assert_array_equal(found.extra["score"], rows.extra["score"])
    np.testing.assert_array_equal(read_stack(again.averages), read_stack(whole.averages))
    assert again.objective == whole.objective


def test_an_interrupted_assignment_goes_on_behind_its_last_block(data, done, tmp_path, monkeypatch):
    monkeypatch.setattr(classify2d_state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(classify2d_source, "_BLOCK", 20)
    options = dict(fixed_references=True, references=done[0].averages)
    whole, rows = classify(data[0], tmp_path / "whole", **options)
    read, calls = classify2d_source.ParticleSource.read, []

    def stop(source, wanted):
        calls.append(wanted[0])
        if len(calls) == 16:
            raise Stop
        return read(source, wanted)

    monkeypatch.setattr(classify2d_source.ParticleSource, "read", stop)
    with pytest.raises(Stop):
        classify(data[0], tmp_path / "again", **options)
    state = load_state(tmp_path / "again" / "classes_state.npz")
    assert state.stage == "assign" and 0 < state.blocks < 6
    monkeypatch.setattr(classify2d_source.ParticleSource, "read", read)
    again, found = classify(
        data[0], tmp_path / "again", tmp_path / "again" / "classes_state.npz", fixed_references=True
    )
    np.testing.assert_array_equal(found.class_id, rows.class_id)
    np.testing.assert_array_equal(read_stack(again.averages), read_stack(whole.averages))


def true_views(truth, scale):
    """Projections of the views, one of each."""
    first = [np.flatnonzero(truth.views == view)[0] for view in range(4)]
    eulers = [(*truth.eulers[row, :2], 0.0) for row in first]
    return np.stack([scale * truth.phantom.project(euler_to_matrix(*e), BOX, 5.0)[0] for e in eulers])


def test_fixed_references_keep_their_order_and_do_not_drift(data, tmp_path):
    particles, truth = data
    references = true_views(truth, 7.0).astype(np.float32)
    write_stack(tmp_path / "views.mrcs", references, 5.0)
    few = particles.take(np.flatnonzero(truth.views != 2))
    result, rows = classify(few, tmp_path / "few", references=tmp_path / "views.mrcs", fixed_references=True)
    assert (rows.class_id - 1 == truth.views[truth.views != 2]).mean() > 0.97
    assert result.counts[2] <= 3  # with references that move, a free one takes a part of another's particles
    model = load_state(result.state).model
    more, found = classify(
        particles.take(np.flatnonzero(truth.views == 2)), tmp_path / "more", result.state, fixed_references=True
    )
    assert (found.class_id == 3).mean() > 0.97
    assert sum(more.counts) == COUNT  # both runs had fixed references, so the averages add up
    np.testing.assert_array_equal(load_state(more.state).model.averages, model.averages)


def test_a_state_refuses_what_it_was_not_made_for(data, done, tmp_path):
    state = done[0].state
    with pytest.raises(ParameterError, match=r"expected max_resolution 0.0, as before, found 40.0"):
        classify(data[0], tmp_path, state, max_resolution=40.0)
    with pytest.raises(ParameterError, match="number_of_classes 4, as before, found 5"):
        classify(data[0], tmp_path, state, number_of_classes=5)
    other = data[0].take(np.arange(60))
    other.sampling_rate = 6.0
    with pytest.raises(ParameterError, match="sampling_rate 5, found 6"):
        classify(other, tmp_path, state)
    other.sampling_rate, other.has_ctf = 5.0, False
    with pytest.raises(ParameterError, match="with a CTF, found them without"):
        classify(other, tmp_path, state)
    small = simulate_particles(tmp_path / "small", 8, 24, 5.0, views=2)
    assert len(small.views) == 8
    with pytest.raises(ParameterError, match="box 32, found 24"):
        classify(read_particles(tmp_path / "small" / "particles.star"), tmp_path, state)
    with pytest.raises(ParameterError, match="initial references: expected none"):
        classify(data[0], tmp_path, state, references=done[0].averages)
    with pytest.raises(ParameterError, match="fixed_references: expected"):
        classify(data[0], tmp_path, fixed_references=True)
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    for name in ("broken.npz", "absent.npz"):
        with pytest.raises(InputFileError, match=name):
            classify(data[0], tmp_path, tmp_path / name)
    with np.load(state) as file:
        content = dict(file)
    plain = json.loads(str(content["plain"]))
    content["plain"] = np.array(json.dumps(dict(plain, version=99)))
    np.savez(tmp_path / "future.npz", **content)
    with pytest.raises(InputFileError, match="version 1, found version 99"):
        classify(data[0], tmp_path, tmp_path / "future.npz")


def test_references_of_another_size_or_sampling_are_refused_by_name(data, tmp_path):
    write_stack(tmp_path / "coarse.mrcs", np.ones((2, BOX, BOX), np.float32), 6.0)
    write_stack(tmp_path / "small.mrcs", np.ones((2, 16, 16), np.float32), 5.0)
    with pytest.raises(InputFileError, match=r"coarse.mrcs.*5 A/px, found 6 A/px"):
        classify(data[0], tmp_path, references=tmp_path / "coarse.mrcs")
    with pytest.raises(InputFileError, match=r"small.mrcs.*32 x 32 px.*16 x 16"):
        classify(data[0], tmp_path, references=tmp_path / "small.mrcs")


def test_soft_assignment_shares_particles(data, done, tmp_path):
    result, rows = classify(data[0], tmp_path, assignment="soft", number_of_classes=7)
    hard, _ = classify(data[0], tmp_path / "hard", number_of_classes=7)
    shares = read_blocks(tmp_path / "shares.star")["shares"]
    total = np.bincount(shares["particle"], shares["share"], minlength=COUNT + 1)[1:]
    np.testing.assert_allclose(total, 1.0, atol=0.01)
    best = np.zeros((COUNT + 1, 8))
    best[shares["particle"], shares["rlnClassNumber"]] = shares["share"]
    np.testing.assert_array_equal(best[1:].argmax(axis=1), rows.class_id)
    state = load_state(result.state)
    np.testing.assert_allclose(state.averages.counts.sum(axis=0), best.sum(axis=0)[1:], atol=0.01)
    assert (shares["share"] < 0.99).any() and not (tmp_path / "hard" / "shares.star").exists()
    assert abs(read_stack(result.averages) - read_stack(hard.averages)).max() > 1e-4


@pytest.mark.parametrize("choices", [{}, dict(batch_size=60, iterations=3)], ids=["at once", "online"])
def test_several_devices_give_what_one_gives(data, tmp_path, monkeypatch, choices):
    monkeypatch.setattr(classify2d_source, "_BLOCK", 10)
    one, rows = classify(data[0], tmp_path / "one", **choices)
    two, found = classify(data[0], tmp_path / "two", devices=(CPU, CPU), **choices)
    assert two.device == "cpu, cpu"
    np.testing.assert_array_equal(found.class_id, rows.class_id)
    np.testing.assert_array_equal(found.extra["score"], rows.extra["score"])
    np.testing.assert_array_equal(read_stack(two.averages), read_stack(one.averages))


@pytest.mark.parametrize("devices", [2, 4])
def test_a_batch_keeps_all_devices_busy_alike(data, monkeypatch, devices):
    monkeypatch.setattr(classify2d_source, "_BLOCK", 40)
    monkeypatch.setattr(classify2d_source, "_LEAST_BLOCK", 5)
    with Workers([CPU] * devices) as workers:
        source = classify2d_source.ParticleSource(data[0], Classify2DParameters(**QUICK), workers)
        batch, rows = source.batch(np.arange(100))
        particles = np.zeros(devices, int)
        for number, count in enumerate(batch.map(lambda _worker, _prepared, block, _rows: len(block))):
            particles[number % devices] += count
    assert particles.max() == 100 // devices and len(rows) == 100


def test_the_next_batch_is_read_while_one_is_used(data):
    choices, begun = [np.arange(50), np.arange(50, 100), np.arange(20, 40)], threading.Event()
    with Workers([CPU]) as workers:
        source = classify2d_source.ParticleSource(data[0], Classify2DParameters(**QUICK), workers)
        expected = [source.batch(rows) for rows in choices]
        read = source.read
        source.read = lambda rows: (begun.set() if rows[0] == 50 else None, read(rows))[1]
        found = source.batches(choices)
        batches = [next(found)]
        assert begun.wait(timeout=10)
        batches += found
        for (batch, rows), (other, used) in zip(batches, expected):
            np.testing.assert_array_equal(rows, used)
            np.testing.assert_array_equal(*(np.concatenate(each.map(_samples)) for each in (batch, other)))
    assert len(batches) == 3


def _samples(_worker, _prepared, block, _rows):
    return block.samples


def test_each_device_has_a_reader_beside_those_ahead():
    """All blocks that may be read at once are: with fewer readers more devices would wait for them."""
    together = threading.Barrier(6)

    def read(block):
        together.wait(timeout=10)
        return block

    with Workers([CPU] * 4) as workers:
        found = list(workers.stream(read, lambda _worker, number, block: (number, block), list("abcdef")))
    assert found == list(enumerate("abcdef"))


def test_smaller_pieces_when_memory_runs_out(data, done, tmp_path, monkeypatch, caplog):
    search, failures = classify2d_batch.PoseSearch.poses, []

    def short(self, *arguments, budget=None):
        if len(failures) < most:
            failures.append(arguments[-1] if budget is None else budget)
            raise MemoryError("out of memory allocating 1 byte")
        return search(self, *arguments) if budget is None else search(self, *arguments, budget=budget)

    monkeypatch.setattr(classify2d_batch.PoseSearch, "poses", short)
    most = 1
    _, rows = classify(data[0], tmp_path)
    assert "cpu is short of memory" in caplog.text and len(failures) == 1
    assert purity(rows.class_id, done[1].class_id) >= 0.97
    most = 100
    with pytest.raises(ProcessingError, match=r"cpu has too little memory.*1 byte.*batch_size"):
        classify(data[0], tmp_path)
    assert failures[1] > failures[-1]


@pytest.mark.parametrize("number_of_classes", [2, 9])
def test_the_number_of_references_decides_on_the_batches(data, done, tmp_path, monkeypatch, number_of_classes):
    monkeypatch.setattr(classify2d_run, "batch_size", lambda _, count: 15 * count)
    references = read_stack(done[0].averages)
    result, rows = classify(data[0], tmp_path, references=references, number_of_classes=number_of_classes)
    assert purity(rows.class_id, data[1].views) >= 0.95 and len(result.objective) == QUICK["iterations"]
    assert load_state(result.state).batch == 60


def test_unusable_images_do_not_change_what_an_interrupted_run_ends_with(data, tmp_path, monkeypatch):
    particles = data[0].take(np.arange(COUNT))
    images = particles.images()
    images[5:60:2] = 0.0
    write_stack(tmp_path / "some.mrcs", images, 5.0)
    particles.stack = [str(tmp_path / "some.mrcs")] * COUNT
    monkeypatch.setattr(classify2d_source, "_BLOCK", 10)
    whole, rows = classify(particles, tmp_path / "whole")
    monkeypatch.setattr(classify2d_state, "SAVE_SECONDS", 0.0)

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        classify(particles, tmp_path / "again", progress=stop)
    again, found = classify(particles, tmp_path / "again", tmp_path / "again" / "classes_state.npz")
    np.testing.assert_array_equal(found.extra["score"], rows.extra["score"])
    np.testing.assert_array_equal(read_stack(again.averages), read_stack(whole.averages))
    assert whole.n_used == COUNT - 28 == sum(whole.counts)
