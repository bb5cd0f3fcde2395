"""The 2D classification on files."""

import json
from pathlib import Path

import numpy as np
import pytest

from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.particles import Particles, read_particles
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.poses import apply_poses
from xmipp_accel.simulate.particles import simulate_particles

VIEWS, COUNT, BOX = 4, 120, 32
QUICK = dict(number_of_classes=4, iterations=3, split_merge_rounds=2, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    truth = simulate_particles(folder, COUNT, BOX, 5.0, snr=0.5, max_shift=2.0, seed=2, views=VIEWS)
    return read_particles(folder / "particles.star"), truth


def classify(particles, folder, device=CPU, references=None, progress=None, **choices):
    parameters = Classify2DParameters(**dict(QUICK, **choices))
    result = Classify2DExecutor(parameters, device).classify(particles, folder, references, progress)
    return result, read_particles(result.particles_xmd)


def purity(labels, truth):
    return sum(np.bincount(truth[labels == label]).max() for label in np.unique(labels)) / len(truth)


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    return classify(data[0], tmp_path_factory.mktemp("classes"))


def test_views_are_told_apart(data, tmp_path, device):
    result, rows = classify(data[0], tmp_path, device)
    assert purity(rows.class_id, data[1].views) >= 0.95
    assert result.counts == np.bincount(rows.class_id, minlength=5)[1:].tolist()
    assert result.device == str(device)


def test_device_and_cpu_agree(data, done, tmp_path, device):
    result, rows = classify(data[0], tmp_path, device)
    assert purity(rows.class_id, done[1].class_id) >= 0.95
    assert result.objective[-1] == pytest.approx(done[0].objective[-1], rel=0.01)


def test_files_and_summary_agree(data, done):
    result, rows = done
    star = read_particles(result.particles_star)
    for name in ("class_id", "psi", "shift_x", "shift_y", "item_id", "defocus_u"):
        np.testing.assert_allclose(getattr(rows, name), getattr(star, name), atol=1e-3)
    assert len(rows) == COUNT and rows.enabled.all() and rows.has_pose and not rows.flip.any()
    assert ((rows.extra["pmax"] > 0.3) & (rows.extra["pmax"] <= 1.0)).all() and (rows.extra["margin"] >= 0).all()
    stored = json.loads(Path(result.averages).with_suffix(".json").read_text())
    assert stored == json.loads(json.dumps(result.to_json())) and stored["parameters"]["seed"] == 1
    assert read_stack(result.averages).shape == (4, BOX, BOX) and f"{COUNT} of {COUNT}" in result.summary()
    assert all(10 <= r < 60 for r in result.resolutions)


def test_written_poses_bring_particles_onto_their_averages(data, done):
    result, rows = done
    averages = read_stack(result.averages)
    images = apply_poses(rows.images(), rows.psi, rows.shift_x, rows.shift_y, rows.flip)
    axis = np.arange(BOX) - BOX // 2
    inside = np.hypot(axis[:, None], axis[None]) < 0.4 * BOX
    both = np.corrcoef(images[:, inside], averages[:, inside])[:COUNT, COUNT:]
    own = rows.class_id[:, None] == np.arange(1, 5)
    assert both[own].mean() > 0.4 and both[~own].mean() < 0.3


def test_averages_look_like_the_views(data, done):
    result, rows = done
    truth = data[1]
    averages = read_stack(result.averages)
    for view in range(VIEWS):
        members = truth.views == view
        label = np.bincount(rows.class_id[members]).argmax()
        rot, tilt = truth.eulers[members][0, :2]
        turned = [truth.phantom.project(euler_to_matrix(rot, tilt, p), BOX, 5.0)[0] for p in range(0, 360, 5)]
        assert max(np.corrcoef(t.ravel(), averages[label - 1].ravel())[0, 1] for t in turned) > 0.85


def test_same_seed_same_result_and_other_seed_another(data, done, tmp_path):
    again = classify(data[0], tmp_path / "again")[1]
    np.testing.assert_array_equal(again.class_id, done[1].class_id)
    np.testing.assert_allclose(again.psi, done[1].psi)
    other = classify(data[0], tmp_path / "other", seed=2)[1]
    assert (other.class_id != done[1].class_id).any()


@pytest.mark.parametrize(
    "choice",
    [
        dict(max_shift=2.0),
        dict(max_resolution=40.0),
        dict(mask_radius=9.0),
        dict(mirrors=True),
        dict(ctf="none"),
        dict(initial_temperature=100.0),
        dict(batch_size=60),
    ],
    ids=str,
)
def test_each_choice_changes_the_result(data, done, tmp_path, choice):
    result, rows = classify(data[0], tmp_path, **choice)
    assert abs(rows.extra["score"] - done[1].extra["score"]).max() > 1e-3
    if "max_shift" in choice:
        limit = 0.02 * BOX + 1e-3
        assert (
            np.hypot(rows.shift_x, rows.shift_y).max() <= limit < np.hypot(done[1].shift_x, done[1].shift_y).max()
        )
    if "max_resolution" in choice:
        assert result.resolution == 40.0 and result.n_rings < done[0].n_rings
    if "mask_radius" in choice:
        assert result.mask_radius == 9.0


def test_number_of_classes_iterations_and_rounds_count(data, tmp_path):
    result, rows = classify(data[0], tmp_path / "one", number_of_classes=2, split_merge_rounds=0, iterations=1)
    assert len(result.counts) == 2 and rows.class_id.max() == 2 and len(result.objective) == 1
    longer, _ = classify(data[0], tmp_path / "more", number_of_classes=2, split_merge_rounds=1, iterations=1)
    assert len(longer.objective) == 2
    assert purity(rows.class_id, data[1].views) < 0.7


def test_more_classes_than_views(data, tmp_path):
    _, rows = classify(data[0], tmp_path, number_of_classes=7)
    assert purity(rows.class_id, data[1].views) >= 0.95


def test_more_classes_than_particles_are_refused(data, tmp_path):
    with pytest.raises(ParameterError, match=r"number_of_classes: expected at most 3.*found 5"):
        classify(data[0].take(np.arange(3)), tmp_path, number_of_classes=5)


def test_mirrored_particles_join_one_class(data, tmp_path):
    particles, truth = data
    chosen = np.flatnonzero(truth.views < 2)
    images = particles.images(chosen)
    mirrored = np.arange(len(chosen)) % 2 == 1
    centre = BOX // 2
    columns = (2 * centre - np.arange(BOX)) % BOX
    images[mirrored] = images[mirrored][:, :, columns]
    write_stack(tmp_path / "mirrored.mrcs", images, 5.0)
    rows = particles.take(chosen)
    rows.stack, rows.index = [str(tmp_path / "mirrored.mrcs")] * len(chosen), np.arange(len(chosen))
    rows.defocus_angle = np.where(mirrored, 180 - rows.defocus_angle, rows.defocus_angle)
    result, found = classify(rows, tmp_path / "classes", number_of_classes=2, mirrors=True)
    assert purity(found.class_id, truth.views[chosen]) >= 0.95
    for label in (1, 2):
        same = found.flip[found.class_id == label] == mirrored[found.class_id == label]
        assert same.all() or not same.any()
    averages = read_stack(result.averages)
    aligned = apply_poses(found.images(), found.psi, found.shift_x, found.shift_y, found.flip)
    own = [np.corrcoef(a.ravel(), averages[c - 1].ravel())[0, 1] for a, c in zip(aligned, found.class_id)]
    assert np.min(own) > 0.15


def test_online_learning_reads_batches(data, tmp_path):
    seen = []
    result, rows = classify(
        data[0], tmp_path, batch_size=50, iterations=6, progress=lambda done, total: seen.append((done, total))
    )
    assert purity(rows.class_id, data[1].views) >= 0.9 and len(rows) == COUNT
    assert seen[-1] == (8, 8) and sorted(seen) == seen
    assert len(result.objective) >= 6


def test_initial_references_keep_their_order(data, done, tmp_path):
    averages = read_stack(done[0].averages)[::-1]
    result, rows = classify(data[0], tmp_path, references=averages, number_of_classes=9)
    assert len(result.counts) == 4
    np.testing.assert_array_equal(result.counts, done[0].counts[::-1])
    assert (5 - rows.class_id == done[1].class_id).mean() > 0.97


def test_unusable_images_are_set_aside(data, tmp_path):
    particles = data[0].take(np.arange(40))
    images = particles.images()
    images[3], images[7] = 1.0, np.nan
    write_stack(tmp_path / "bad.mrcs", images, 5.0)
    particles.stack, particles.index = [str(tmp_path / "bad.mrcs")] * 40, np.arange(40)
    result, rows = classify(particles, tmp_path / "classes")
    assert np.flatnonzero(~rows.enabled).tolist() == [3, 7] and (rows.class_id == 0).sum() == 2
    assert result.n_used == 38 == sum(result.counts) and np.isfinite(read_stack(result.averages)).all()
    images[:] = 0
    write_stack(tmp_path / "bad.mrcs", images, 5.0)
    with pytest.raises(ProcessingError, match="every image"):
        classify(particles, tmp_path / "classes")


def test_refusals(data, tmp_path):
    with pytest.raises(ParameterError, match=r"mask_radius.*16"):
        classify(data[0], tmp_path, mask_radius=17.0)
    with pytest.raises(ParameterError, match=r"max_resolution.*40.0 A"):
        classify(data[0], tmp_path, max_resolution=200.0)
    with pytest.raises(ParameterError, match=r"initial references.*32 x 32"):
        classify(data[0], tmp_path, references=np.zeros((2, 16, 16)))
    with pytest.raises(ParameterError, match="at least one"):
        classify(Particles(stack=[]), tmp_path)
    gone = data[0].take([0])
    gone.stack = [str(tmp_path / "gone.mrcs")]
    with pytest.raises(InputFileError):
        classify(gone, tmp_path, number_of_classes=1)
    assert not (tmp_path / "classes.json").exists()


def test_particles_without_ctf_or_sampling_rate(data, tmp_path):
    particles = data[0].take(np.arange(60))
    particles.has_ctf, particles.sampling_rate = False, 0.0
    result, rows = classify(particles, tmp_path)
    assert result.resolution == 0 and len(rows) == 60
    with pytest.raises(ParameterError, match="sampling rate"):
        classify(particles, tmp_path, max_resolution=20.0)


@pytest.mark.parametrize("box", [11, 24])
def test_small_and_odd_boxes(box, tmp_path):
    simulate_particles(tmp_path, 20, box, 8.0, snr=1.0, max_shift=1.0, views=2)
    result, rows = classify(read_particles(tmp_path / "particles.star"), tmp_path / "out", number_of_classes=2)
    assert sum(result.counts) == 20 and np.isfinite(rows.extra["score"]).all()
    assert Classify2DExecutor(Classify2DParameters()).devices == (CPU,)
