import json

import numpy as np
import pytest
import threadpoolctl

from tests.initial_volume.agreement import share_within
from tests.particle_alignment.simulated import (
    BOX,
    SAMPLING,
    centres,
    make_particles,
    make_volume,
    rotation_errors,
)
from xmipp_accel.backend import threads
from xmipp_accel.errors import ParameterError
from xmipp_accel.initial_volume.executor import ReconstructSignificantExecutor
from xmipp_accel.initial_volume.parameters import ReconstructSignificantParameters
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.numerics.symmetry import symmetry_matrices

POINTS = centres(np.random.default_rng(8))
QUICK = dict(starts=1, iterations=2, max_resolution=16.0, angular_sampling=12.0)


def reconstruct(particles, folder, reference=None, **values):
    executor = ReconstructSignificantExecutor(ReconstructSignificantParameters(**values))
    result = executor.reconstruct(particles, folder, reference)
    return result, read_particles(result.particles_xmd), read_volume(result.volume)[0]


def matrices(particles):
    return euler_to_matrix(particles.rot, particles.tilt, particles.psi)


@pytest.mark.parametrize("symmetry", ["c1", "d3"])
def test_poses_and_map_are_found_from_random_angles(tmp_path, symmetry):
    points = POINTS
    if symmetry != "c1":
        points = np.concatenate([POINTS[:8] @ matrix.T for matrix in symmetry_matrices(symmetry)])
    particles = make_particles(tmp_path, points, n=100, snr=2.0, shift=1.0, seed=3)
    few = dict(starts=4, iterations=24, max_resolution=16.0, angular_sampling=10.0)
    result, rows, volume = reconstruct(particles, tmp_path / "out", symmetry=symmetry, **few)
    # A wrong solution agrees by a tenth to a half; the true volume aligns them all.
    assert share_within(matrices(rows), matrices(particles), 15.0, symmetry) > 0.9
    scores = [start["score"] for start in result.starts]
    assert len(scores) == 4 and result.best_start == int(np.argmax(scores))
    first, last = result.starts[result.best_start]["iterations"][0], result.iterations[-1]
    assert last["perplexity"] < 0.2 * first["perplexity"] and last["change"] < 0.1
    assert volume.shape == (BOX,) * 3


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    return make_particles(tmp_path_factory.mktemp("images"), POINTS, n=24, snr=2.0, shift=2.0, ctf=True, seed=6)


@pytest.fixture(scope="module")
def quick(particles, tmp_path_factory):
    return reconstruct(particles, tmp_path_factory.mktemp("quick"), **QUICK)


def test_the_number_of_cores_changes_no_digit(quick, particles, tmp_path, monkeypatch):
    for cores in (1, 2, 3):
        monkeypatch.setattr(threads, "cpu_count", lambda cores=cores: cores)
        with threadpoolctl.threadpool_limits(cores, "blas"):
            _, rows, volume = reconstruct(particles, tmp_path / str(cores), **QUICK)
        np.testing.assert_array_equal(volume, quick[2])
        np.testing.assert_array_equal(matrices(rows), matrices(quick[1]))


def test_the_same_seed_gives_the_same_volume_and_another_seed_another(quick, particles, tmp_path):
    _, rows, volume = quick
    again = reconstruct(particles, tmp_path / "again", **QUICK)
    # Sums of single precision: where arrays lie in memory may decide about their last digits.
    np.testing.assert_allclose(again[2], volume, atol=1e-3 * volume.std())
    np.testing.assert_allclose(
        euler_to_matrix(again[1].rot, again[1].tilt, again[1].psi), matrices(rows), atol=1e-2
    )
    other = reconstruct(particles, tmp_path / "other", **QUICK, seed=1)
    assert np.corrcoef(other[2].ravel(), volume.ravel())[0, 1] < 0.99


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (dict(starts=2), lambda r: len(r.starts) == 2),
        (dict(iterations=5), lambda r: (len(r.starts[0]["iterations"]), len(r.iterations)) == (2, 3)),
        (dict(alpha_start=70.0), lambda r: r.starts[0]["iterations"][0]["share"] == pytest.approx(0.3)),
        (dict(alpha_end=90.0), lambda r: r.iterations[-1]["share"] == pytest.approx(0.1)),
        (dict(max_resolution=32.0), lambda r: r.iterations[-1]["resolution"] == pytest.approx(32.0)),
        (dict(start_resolution=32.0), lambda r: r.starts[0]["iterations"][0]["resolution"] == pytest.approx(32.0)),
        (dict(angular_sampling=25.0), lambda r: r.iterations[-1]["directions"] < 120),
        (dict(images_per_iteration=9), lambda r: r.starts[0]["iterations"][0]["images"] == 9),
        (dict(images_per_iteration=0), lambda r: r.starts[0]["iterations"][0]["images"] == 24),
        (dict(mask_radius=9.0), lambda r: r.mask_radius == 9.0),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_parameter_shows_in_the_report(quick, particles, tmp_path, values, seen):
    result, _, volume = reconstruct(particles, tmp_path, **{**QUICK, **values})
    assert seen(result)
    if values != dict(images_per_iteration=0):  # the 24 images are fewer than the default
        assert not seen(quick[0])
        assert not np.array_equal(volume, quick[2])
    written = json.loads((tmp_path / "initial_volume.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))


def test_the_volume_has_the_symmetry(quick, particles, tmp_path):
    def asymmetry(volume):
        inner = volume[1:, 1:, 1:]  # a turn about z by 180 degrees keeps the odd cube about the origin
        return 1 - np.corrcoef(inner.ravel(), inner[:, ::-1, ::-1].ravel())[0, 1]

    assert asymmetry(reconstruct(particles, tmp_path, **QUICK, symmetry="c2")[2]) < 1e-3
    assert asymmetry(quick[2]) > 0.05


def test_views_keep_within_the_tilt_limits(quick, particles, tmp_path):
    rows = reconstruct(particles, tmp_path, **QUICK, min_tilt=60.0, max_tilt=120.0)[1]
    assert rows.tilt.min() >= 60 and rows.tilt.max() <= 120
    assert quick[1].tilt.min() < 60 and quick[1].tilt.max() > 120


def test_shifts_keep_within_the_limit(particles, tmp_path):
    lengths = {}
    for limit in (0.0, 10.0):
        rows = reconstruct(particles, tmp_path / f"{limit:g}", **QUICK, max_shift=limit)[1]
        lengths[limit] = np.hypot(rows.shift_x, rows.shift_y).max()
    assert lengths[0.0] == 0 and 1 < lengths[10.0] <= 0.1 * BOX + 1e-3


def test_the_ctf_is_corrected_as_asked(particles, tmp_path):
    """Started from the truth: the map agrees with it only if the CTF is taken for what it is."""
    truth = make_volume(POINTS)
    write_volume(tmp_path / "truth.mrc", truth, SAMPLING)
    agreement = {}
    for name, values in dict(right={}, none=dict(ctf="none"), flipped=dict(phase_flipped=True)).items():
        options = {**QUICK, "max_resolution": 10.0}
        volume = reconstruct(particles, tmp_path / name, tmp_path / "truth.mrc", **options, **values)[2]
        agreement[name] = np.corrcoef(volume.ravel(), truth.ravel())[0, 1]
    assert agreement["right"] > 1.1 * max(agreement["none"], agreement["flipped"])


def test_intermediate_volumes_are_written_on_request(quick, particles, tmp_path):
    result, _, _ = quick
    assert not (tmp_path.parent / "quick0" / "volumes").exists()
    reconstruct(particles, tmp_path, **QUICK, keep_intermediate=True)
    names = sorted(path.name for path in (tmp_path / "volumes").iterdir())
    assert names == ["refined_iteration001.mrc", "start01_iteration001.mrc"]
    assert read_volume(tmp_path / "volumes" / names[0])[0].std() > 0
    assert result.volume.endswith("volume.mrc")


def test_a_given_volume_sets_orientation_and_hand(tmp_path):
    particles = make_particles(tmp_path, POINTS, n=40, snr=2.0, shift=1.0, seed=1)
    result, rows, volume = reconstruct(
        particles, tmp_path / "out", tmp_path / "volume.mrc", **{**QUICK, "starts": 3}
    )
    assert len(result.starts) == 1
    assert np.median(rotation_errors(particles, rows)) < 8
    assert np.corrcoef(volume.ravel(), make_volume(POINTS).ravel())[0, 1] > 0.85


def test_useless_images_are_counted_and_have_no_row(tmp_path):
    particles = make_particles(tmp_path, POINTS, n=12)
    images = particles.images()
    images[2], images[5, 1, 1] = 3.0, np.inf
    write_stack(tmp_path / "particles.mrcs", images, SAMPLING)
    particles.enabled[7] = False
    result, rows, _ = reconstruct(particles, tmp_path / "out", **QUICK)
    assert (result.n_images, result.n_set_aside) == (11, 2)
    np.testing.assert_array_equal(rows.item_id, [1, 2, 4, 5, 7, 9, 10, 11, 12])


def test_unfit_input_is_refused_by_name(tmp_path):
    particles = make_particles(tmp_path, POINTS, n=4)
    write_volume(tmp_path / "small.mrc", np.ones((16, 16, 16)), SAMPLING)
    with pytest.raises(ParameterError, match=r"small\.mrc: expected a cube of 128 A"):
        reconstruct(particles, tmp_path / "out", tmp_path / "small.mrc", **QUICK)
    with pytest.raises(ParameterError, match="mask_radius: expected at most half the box"):
        reconstruct(particles, tmp_path / "out", **QUICK, mask_radius=17.0)
    with pytest.raises(ParameterError, match="at least 3 usable images, found 2"):
        reconstruct(particles.take([0, 1]), tmp_path / "out", **QUICK)
    with pytest.raises(ParameterError, match="at least one that is enabled"):
        reconstruct(particles.take([]), tmp_path / "out", **QUICK)
    particles.sampling_rate = 0.0
    with pytest.raises(ParameterError, match="sampling rate is unknown"):
        reconstruct(particles, tmp_path / "out", **QUICK)
    with pytest.raises(ParameterError, match="alpha_start: expected at most alpha_end"):
        ReconstructSignificantParameters(alpha_start=99.0, alpha_end=90.0)
