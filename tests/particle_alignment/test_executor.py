import dataclasses

import numpy as np
import pytest
import threadpoolctl

from tests.particle_alignment import simulated
from tests.particle_alignment.conftest import POINTS
from xmipp_accel.backend import threads
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.publish import read_json
from xmipp_accel.numerics.rotations import euler_to_matrix, viewing_directions
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.gallery import open_references
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.particle_alignment.poses import apply_poses


def test_poses_are_found(device, data, align):
    result, found = align(device=device, angular_sampling=7.5)
    truth = data["plain"]
    assert (simulated.direction_errors(truth, found) < 6).all()
    assert (simulated.rotation_errors(truth, found) < 9).all()
    assert np.median(simulated.shift_errors(truth, found)) < 0.15
    assert result.n_aligned == len(truth) == result.n_rows and result.n_references == 642
    assert result.kind == "projection" and result.at_shift_limit < 0.3 and result.mean_cc > 0.7


def test_files(align, tmp_path):
    done = []
    result, found = align(keep_best=2)
    star = read_particles(result.particles_star)
    np.testing.assert_allclose(star.shift_x, found.shift_x, atol=1e-4)
    np.testing.assert_allclose(star.rot, found.rot, atol=1e-4)
    for label in ("maxCC", "weightSignificant", "margin", "entropy", "imageIndex"):
        assert label in found.extra, label
    assert read_json(tmp_path / "out" / "aligned.json")["n_rows"] == len(found) == 24
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "aligned.json",
        "aligned.star",
        "aligned.xmd",
    ]
    assert "24 rows" not in result.summary() and "12 of 12" in result.summary()
    assert not done


def test_progress(data, tmp_path):
    calls = []
    executor = AlignSignificantExecutor(AlignSignificantParameters(angular_sampling=30))
    executor.align(data["plain"], data["volume"], tmp_path, progress=lambda *values: calls.append(values))
    assert calls[-1] == (12, 12)


def test_the_number_of_cores_changes_no_digit(align, monkeypatch):
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(threads, "cpu_count", lambda cores=cores: cores)
        with threadpoolctl.threadpool_limits(cores, "blas"):
            found.append(align("ctf")[1])
    for other in found[1:]:
        for name in ("rot", "psi", "shift_x", "shift_y"):
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name))
        np.testing.assert_array_equal(other.extra["maxCC"], found[0].extra["maxCC"])


def test_keep_best_orders_rows_and_each_has_its_own_cc(align):
    one = align()[1]
    three = align(keep_best=3)[1]
    assert len(three) == 3 * len(one)
    cc = three.extra["maxCC"].reshape(-1, 3)
    assert (np.diff(cc, axis=1) <= 0).all() and (cc[:, 0] > cc[:, 2]).all()
    pairs = set(zip(three.extra["imageIndex"], three.class_id))
    assert len(pairs) == len(three)
    np.testing.assert_array_equal(three.class_id[::3], one.class_id)
    margin = three.extra["margin"].reshape(-1, 3)
    np.testing.assert_allclose(margin[:, 0], cc[:, 0] - cc[:, 1], atol=2e-6)
    np.testing.assert_allclose(margin[:, 1], cc[:, 1] - cc[:, 0], atol=2e-6)


def test_symmetry_reduces_the_directions(data, align):
    result, found = align(symmetry="d2")
    assert result.n_references == pytest.approx(162 / 4, rel=0.2)
    assert result.n_references == len(open_references(data["volume"], "d2", 15))
    del found


def test_angular_sampling(align):
    assert [align(angular_sampling=step)[0].n_references for step in (30, 15)] == [42, 162]


def test_tilt_limits(align):
    found = align(min_tilt=50, max_tilt=100)[1]
    assert found.tilt.min() >= 50 and found.tilt.max() <= 100


def test_angular_distance_changes_the_weights(align):
    near, far = (align("ctf", angular_distance=value)[1] for value in (1, 180))
    np.testing.assert_array_equal(near.class_id, far.class_id)
    assert np.abs(near.weight - far.weight).max() > 0.01
    # With one pool for all, weight follows the correlation; what it ranks is that of the first stage.
    agreement = [np.corrcoef(table.weight, table.extra["maxCC"])[0, 1] for table in (near, far)]
    assert agreement[1] > max(0.8, agreement[0])


def test_symmetric_neighbours_change_the_weights(align):
    with_group, without = (
        align("ctf", symmetry="c4", angular_distance=30, symmetric_neighbours=value)[1] for value in (True, False)
    )
    assert np.abs(with_group.weight - without.weight).max() > 1e-3


def test_use_weight_ranks_by_weight(align):
    by_weight = align("ctf", use_weight=True, keep_best=3)[1]
    by_score = align("ctf", keep_best=3)[1]
    weights = by_weight.weight.reshape(-1, 3)
    assert (np.diff(weights, axis=1) <= 1e-7).all()
    assert (np.diff(by_score.weight.reshape(-1, 3), axis=1) > 1e-7).any()


def test_max_shift(align):
    wide, narrow = align(max_shift=10)[1], align(max_shift=2)[1]
    assert np.hypot(wide.shift_x, wide.shift_y).max() > 1.5
    assert np.hypot(narrow.shift_x, narrow.shift_y).max() <= 0.64 + 1e-5
    assert align(max_shift=2)[0].at_shift_limit > 0.5


def test_max_resolution(align):
    coarse, fine = align(max_resolution=16)[0], align(max_resolution=9)[0]
    assert coarse.n_rings == 8 and fine.n_rings == 14
    assert coarse.resolution == 16 and coarse.mean_cc > fine.mean_cc
    with pytest.raises(ParameterError, match="at least 8 A"):
        align(max_resolution=7)


def test_mask_radius(align):
    small, large = align(mask_radius=7)[0], align(mask_radius=14)[0]
    assert small.mask_radius == 7 and large.n_harmonics > small.n_harmonics
    with pytest.raises(ParameterError, match="half the box"):
        align(mask_radius=17)


def test_whitening(align):
    assert not np.allclose(align(whiten=True)[1].extra["maxCC"], align()[1].extra["maxCC"], atol=1e-3)


def test_refinement_improves_shifts_and_scores(data, align):
    coarse, fine = align(refine=False)[1], align(refine=True)[1]
    assert (fine.extra["maxCC"] > coarse.extra["maxCC"]).all()
    truth = data["plain"]
    assert np.median(simulated.shift_errors(truth, fine)) < 0.6 * np.median(simulated.shift_errors(truth, coarse))


def test_ctf_modes(data, align):
    errors = {mode: simulated.direction_errors(data["ctf"], align("ctf", ctf=mode)[1]) for mode in ("ctf", "none")}
    flipped = simulated.direction_errors(data["ctf"], align("ctf", ctf="phase_flip")[1])
    assert np.mean(errors["ctf"] < 15) >= 0.9
    assert np.mean(flipped < 15) >= 0.9
    assert errors["none"].mean() > 1.5 * errors["ctf"].mean()
    ccs = [align("ctf", ctf=mode)[0].mean_cc for mode in ("ctf", "phase_flip")]
    assert ccs[0] > ccs[1]


def test_phase_flipped_particles(data, align, tmp_path):
    particles = data["ctf"]
    from xmipp_accel.numerics.ctf import ctf_image

    names = ("defocus_u", "defocus_v", "defocus_angle")
    ctf = ctf_image(simulated.BOX, simulated.SAMPLING, *(getattr(particles, name) for name in names))
    spectrum = np.fft.rfft2(particles.images()) * np.sign(ctf)
    images = np.fft.irfft2(spectrum, s=(simulated.BOX, simulated.BOX)).astype(np.float32)
    write_stack(tmp_path / "flipped.mrcs", images, simulated.SAMPLING)
    flipped = dataclasses.replace(particles, stack=[str(tmp_path / "flipped.mrcs")] * len(particles))
    for mode in ("ctf", "phase_flip"):
        expected = align("ctf", ctf=mode)[1]
        found = align(flipped, ctf=mode, phase_flipped=True)[1]
        assert np.mean(found.class_id == expected.class_id) > 0.9, mode
        wrong = align(flipped, ctf=mode, phase_flipped=False)[1]
        assert np.mean(wrong.class_id == expected.class_id) < 0.9, mode


def test_mirrors_find_the_missing_hemisphere(data, align):
    """With the upper views only, the lower ones are mirror images of them."""
    truth = data["plain"]
    half = align(max_tilt=90, angular_sampling=7.5)[1]
    both = align(max_tilt=90, angular_sampling=7.5, mirrors=True)[1]
    below = truth.tilt > 100
    assert below.any() and not both.flip.any()
    assert (simulated.direction_errors(truth, half)[below] > 6).any()
    assert (simulated.direction_errors(truth, both) < 6).all()
    assert (simulated.rotation_errors(truth, both) < 9).all()


def test_updated_references(data, align):
    result, found = align(update_references=True, angular_sampling=30)
    table = read_particles(result.references_xmd)
    assert len(table) == 42 and align()[0].references_xmd == ""
    counts = np.bincount(found.class_id - 1, minlength=42)
    np.testing.assert_array_equal(table.extra["classCount"], counts)
    images = table.images()
    assert not images[counts == 0].any()
    expected = simulated.project(POINTS, euler_to_matrix(table.rot, table.tilt, table.psi))
    for place in np.flatnonzero(table.weight > 0.5):
        assert np.corrcoef(images[place].ravel(), expected[place].ravel())[0, 1] > 0.6


def test_updated_references_are_weighted_means(data, align):
    """Each reference has its own normaliser, whatever came before it, and an empty one is disabled."""
    result, found = align("ctf", update_references=True, angular_sampling=30, keep_best=2)
    updated = read_particles(result.references_xmd)
    images = data["ctf"].images(found.extra["imageIndex"].astype(int) - 1)
    moved = apply_poses(images.astype(np.float64), found.psi, found.shift_x, found.shift_y)
    for place, average in enumerate(updated.images()):
        rows = found.class_id == place + 1
        assert updated.enabled[place] == rows.any()
        expected = (
            np.average(moved[rows], axis=0, weights=found.weight[rows]) if rows.any() else np.zeros((32, 32))
        )
        np.testing.assert_allclose(average, expected, atol=1e-4 * np.abs(images).max())
    again = open_references(result.references_xmd)
    assert len(again) == len(np.unique(found.class_id)) < 42


def test_gallery_with_in_plane_angles_and_shifts(data, align, tmp_path):
    rng = np.random.default_rng(8)
    references = open_references(data["volume"], angular_sampling=7.5)
    n = len(references)
    psi, (shift_x, shift_y) = rng.uniform(-180, 180, n), rng.uniform(-1.5, 1.5, (2, n))
    images = simulated.project(POINTS, euler_to_matrix(references.rot, references.tilt, psi), shift_x, shift_y)
    write_stack(tmp_path / "gallery.mrcs", images, simulated.SAMPLING)
    gallery = dataclasses.replace(
        data["plain"].take(np.zeros(n, int)),
        stack=[str(tmp_path / "gallery.mrcs")] * n,
        index=np.arange(n),
        rot=references.rot,
        tilt=references.tilt,
        psi=psi,
        shift_x=shift_x,
        shift_y=shift_y,
        class_id=np.arange(n) + 100,
    )
    for mirrors in (False, True):
        found = align(references=gallery, mirrors=mirrors)[1]
        assert found.class_id.min() >= 100
        assert (simulated.rotation_errors(data["plain"], found) < 9).all()
        assert np.median(simulated.shift_errors(data["plain"], found)) < 0.15


def test_averages_give_2d_poses(data, tmp_path, align):
    """Two averages and mirrored, turned, shifted copies of them."""
    averages = simulated.project(POINTS, euler_to_matrix([0, 70], [20, 100], 0))
    write_stack(tmp_path / "averages.mrcs", averages, simulated.SAMPLING)
    which = np.arange(12) % 2
    mirrored = np.arange(12) % 3 == 0
    particles = simulated.make_particles(
        tmp_path / "2d", POINTS, n=12, snr=5, angles=(np.array([0.0, 70])[which], np.array([20.0, 100])[which])
    )
    images = particles.images()
    images[mirrored, :, 1:] = images[mirrored, :, :0:-1]  # about the column of the origin
    write_stack(particles.stack[0], images, simulated.SAMPLING)
    result, found = align(particles, tmp_path / "averages.mrcs", mirrors=True)
    assert result.kind == "2d"
    np.testing.assert_array_equal(found.class_id - 1, which)
    np.testing.assert_array_equal(found.flip, mirrored)
    assert np.abs((found.psi - particles.psi + 180) % 360 - 180).max() < 5
    assert simulated.shift_errors(particles, found).max() < 0.5
    plain = align(particles, tmp_path / "averages.mrcs")[1]
    assert not plain.flip.any() and not plain.rot.any()


def test_candidate_mask(data, align):
    every = align()[1]
    n = align()[0].n_references
    mask = np.ones((12, n), bool)
    mask[np.arange(12), every.class_id - 1] = False
    mask[3] = False
    result, found = align(mask=mask)
    assert result.n_aligned == 11 and 4 not in found.item_id
    assert not (found.class_id == np.delete(every.class_id, 3)).any()
    with pytest.raises(ParameterError, match="candidate_mask"):
        align(mask=mask[:, :5])


def test_memory_limit_changes_the_batches_and_not_the_result(align, monkeypatch):
    from xmipp_accel.kernels.cpu import polar_search

    sizes = []
    kernel = polar_search.polar_search
    monkeypatch.setattr(polar_search, "polar_search", lambda *a: (sizes.append(len(a[1])), kernel(*a))[1])
    small, large = align(memory_limit=0.001)[1], align(memory_limit=1.0)[1]
    assert sizes[-1] == 12 and sizes[0] < 12
    np.testing.assert_array_equal(small.class_id, large.class_id)


def test_the_original_algorithm(data, align):
    result, found = align(algorithm="xmipp", angular_sampling=30, max_shift=25)
    assert result.n_rings == 0
    assert np.mean(simulated.direction_errors(data["plain"], found) < 25) > 0.7
    # Its shifts are whole pixels before the turn.
    assert np.median(simulated.shift_errors(data["plain"], found)) < 1.5


def test_bad_input(data, align):
    with pytest.raises(ParameterError, match="at least one"):
        align(data["plain"].take([]))
    with pytest.raises(ParameterError, match="min_tilt"):
        AlignSignificantParameters(min_tilt=90, max_tilt=30)
    with pytest.raises(ParameterError, match="symmetry"):
        AlignSignificantParameters(symmetry="q3")
    unknown = dataclasses.replace(data["ctf"], sampling_rate=0.0)
    with pytest.raises(ParameterError, match="sampling rate"):
        align(unknown)


@pytest.mark.parametrize("algorithm", ["polar", "xmipp"])
def test_unusable_images_are_left_out(data, align, tmp_path, algorithm):
    expected = align(algorithm=algorithm, angular_sampling=30)[1]
    images = read_stack(data["plain"].stack[0])
    images[4] = 7
    images[9, 2, 2] = np.nan
    write_stack(tmp_path / "bad.mrcs", images, simulated.SAMPLING)
    bad = dataclasses.replace(data["plain"], stack=[str(tmp_path / "bad.mrcs")] * 12)
    result, found = align(bad, algorithm=algorithm, angular_sampling=30)
    assert result.n_aligned == 10 and result.n_unusable == 2 and "2 unusable" in result.summary()
    kept = np.isin(expected.item_id, found.item_id)
    np.testing.assert_array_equal(expected.item_id[~kept], [5, 10])
    np.testing.assert_allclose(found.psi, expected.psi[kept], atol=1e-4)


def test_equivalent_directions_by_symmetry(tmp_path):
    """A C2 molecule is found in the asymmetric unit."""
    points = np.concatenate([POINTS, POINTS * [-1, -1, 1]])
    truth = simulated.make_particles(tmp_path / "c2", points, n=8, snr=20, seed=3)
    parameters = AlignSignificantParameters(symmetry="c2", angular_sampling=7.5)
    result = AlignSignificantExecutor(parameters).align(truth, tmp_path / "c2" / "volume.mrc", tmp_path / "out")
    found = read_particles(result.particles_xmd)
    group = symmetry_matrices("c2")
    assert (simulated.direction_errors(truth, found, group) < 6).all()
    assert viewing_directions(found.rot, found.tilt).shape == (8, 3)


def test_without_any_match_empty_tables_are_written(data, align):
    nothing = np.zeros((12, align()[0].n_references), bool)
    result = AlignSignificantExecutor(AlignSignificantParameters(angular_sampling=15)).align(
        data["plain"], data["volume"], data["volume"].parent / "empty", candidate_mask=nothing
    )
    assert result.n_rows == result.n_aligned == 0 and result.mean_cc == 0
    assert (data["volume"].parent / "empty" / "aligned.json").is_file()
