"""The check of the gain: every wrong configuration is told, and nothing else."""

import itertools

import numpy as np
import pytest

from tests.movie_alignment.test_executor import Movie
from xmipp_accel.io.gains import FLIPS, ROTATIONS, orient
from xmipp_accel.io.images import read_image, write_image, write_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters, gain_check
from xmipp_accel.movie_alignment.gain_check import ORIENTATIONS, check_gain
from xmipp_accel.movie_alignment.prepare import PreparedMovie

CONFIGURATIONS = list(itertools.product(ORIENTATIONS, (False, True)))


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    folder = tmp_path_factory.mktemp("square")
    return Movie(folder, size=192, frames=6, sampling_rate=1.5, dose_per_frame=1.5, drift=3.0, dead_pixels=20)


def raw_and_gain(movie):
    with open_movie(movie.path) as reader:
        return reader.read(), read_image(movie.gain)[0]


def inverted(gain):
    return np.divide(1, gain, out=np.zeros_like(gain), where=gain > 0)


def check(raw, gain, rotation=0, flip="none", dark=None, device=None):
    if device is not None:
        raw, gain = device.asarray(raw), device.asarray(gain)
    return check_gain(PreparedMovie(raw, gain, dark), range(len(raw)), rotation, flip)


def undo(gain, rotation, flip):
    """The image that has to be oriented so to get `gain`."""
    return orient(orient(gain, 0, flip), -rotation % 360)


def test_the_orientations_are_all_different():
    image = np.arange(9).reshape(3, 3)
    everything = {orient(image, r, f).tobytes() for r in ROTATIONS for f in FLIPS}
    assert len(everything) == 8 == len({orient(image, *o).tobytes() for o in ORIENTATIONS})


@pytest.mark.parametrize(("right", "inverse"), CONFIGURATIONS)
def test_every_wrong_configuration_is_told_and_the_right_one_named(square, right, inverse):
    raw, gain = raw_and_gain(square)
    stored = undo(inverted(gain) if inverse else gain, *right)
    for used in itertools.product(ROTATIONS, FLIPS):
        found = check(raw, orient(stored, *used), *used)
        assert (found.rotation, found.flip, found.inverse) == (*right, inverse)
        is_right = np.array_equal(orient(stored, *used), gain)
        assert found.better == (not is_right) and found.certain
        assert found.best_score > 0.1
        assert (found.score == found.best_score) == is_right


def test_devices_agree(square, device):
    raw, gain = raw_and_gain(square)
    gain = np.ascontiguousarray(gain[::-1].T)
    expected, found = check(raw, gain, 90), check(raw, gain, 90, device=device)
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    assert found.best_score == pytest.approx(expected.best_score, abs=1e-5)
    assert (found.rotation, found.flip, found.better) == (expected.rotation, expected.flip, True)


def test_the_score_is_the_correlation_of_details():
    """Against the plain formula, away from the borders."""
    rng = np.random.default_rng(0)
    gain = 1 / rng.uniform(0.9, 1.1, (80, 80)).astype(np.float32)
    raw = rng.poisson(30 / gain, (4, 80, 80)).astype(np.float32)

    def detail(image):
        padded = np.pad(image, 2)
        count = np.pad(np.ones_like(image), 2)
        windows = [np.lib.stride_tricks.sliding_window_view(p, (5, 5)).sum(axis=(2, 3)) for p in (padded, count)]
        local = windows[0] / windows[1]
        return image - local, local

    first, local = detail(raw.mean(axis=0).astype(np.float64))
    first, second = first / local, detail(-np.log(gain.astype(np.float64)))[0]
    expected = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    assert check(raw, gain).score == pytest.approx(expected, abs=2e-3)


def test_frames_that_are_not_square_leave_four_orientations():
    rng = np.random.default_rng(1)
    gain = (1 / rng.normal(1, 0.04, (120, 160))).astype(np.float32)
    raw = rng.poisson(20 / gain, (3, 120, 160)).astype(np.uint8)
    for rotation, flip in itertools.product(ROTATIONS, FLIPS):
        found = check(raw, gain[::-1], rotation, flip)
        assert found.better and (found.rotation - rotation) % 180 == 0
        stored = undo(gain[::-1], rotation, flip)
        np.testing.assert_array_equal(orient(stored, found.rotation, found.flip), gain)


def noise_movie(response=1.0, dose=20, shape=(192, 192), seed=0):
    rng = np.random.default_rng(seed)
    illumination = 1 + 0.3 * np.sin(np.arange(shape[1]) / 40)
    return rng.poisson(dose * illumination * response, (4, *shape)).astype(np.float32)


def test_nothing_is_told_where_nothing_is_to_be_seen():
    rng = np.random.default_rng(2)
    rough = rng.normal(1, 0.04, (192, 192)).astype(np.float32)
    flat, smooth = np.ones_like(rough), 1 + 0.1 * np.linspace(-1, 1, 192, dtype=np.float32) * np.ones_like(rough)
    for gain in (flat, smooth):
        for seed in range(5):
            assert not check(noise_movie(seed=seed), gain).better
    assert check(noise_movie(), flat).certain
    # A movie that has been corrected, by this gain or by the camera.
    for seed in range(5):
        raw = noise_movie(1 / rough, seed=seed) * rough
        found = check(raw, rough)
        assert not found.better and found.certain
        assert abs(found.best_score) < 0.05
    assert not check(noise_movie(), rough).better


def test_too_few_electrons_are_not_certain():
    rng = np.random.default_rng(3)
    gain = rng.normal(1, 0.01, (64, 64)).astype(np.float32)
    for seed in range(5):
        found = check(noise_movie(1 / gain, 0.3, (64, 64), seed), gain)
        assert not found.better and not found.certain


def test_columns_that_look_the_same_upside_down_are_not_told_apart():
    rng = np.random.default_rng(4)
    gain = np.broadcast_to(rng.normal(1, 0.05, 192), (192, 192)).astype(np.float32)
    found = check(noise_movie(1 / gain), gain[::-1])
    assert not found.better
    assert check(noise_movie(1 / gain), gain[:, ::-1]).better


def test_dark_and_hot_pixels_do_not_mislead():
    rng = np.random.default_rng(5)
    gain = rng.normal(1, 0.04, (192, 192)).astype(np.float32)
    dark = rng.uniform(0, 30, gain.shape).astype(np.float32)
    raw = noise_movie(1 / gain) + dark
    raw[:, rng.random(gain.shape) < 0.002] = 5000
    found = check(raw, gain[::-1].copy(), dark=dark)
    assert found.better and (found.rotation, found.flip) == (0, "up_down")
    assert not check(raw, gain, dark=dark).better


def test_the_middle_is_enough(monkeypatch, square):
    raw, gain = raw_and_gain(square)
    whole = check(raw, gain)
    monkeypatch.setattr(gain_check, "EDGE", 101)
    found = check(raw, np.rot90(gain), 0)
    assert found.better and found.rotation == 270
    assert found.best_score == pytest.approx(whole.best_score, abs=0.03)


# --- in the executor


def align(movie, folder="out", paths=(), **options):
    parameters = MovieAlignmentParameters(local_alignment=False, **options)
    executor = MovieAlignmentExecutor(parameters, gain=movie.folder / "gain.mrc")
    return [executor.process(path, movie.folder / folder) for path in (movie.path, *paths)]


def test_the_result_and_the_log_warn(square, caplog):
    _, gain = raw_and_gain(square)
    write_image(square.folder / "gain.mrc", inverted(gain)[::-1], 1.5)
    first, second = align(square, paths=[square.path], gain_rotation=180)
    for result in (first, second):
        assert "gain_rotation 0, gain_flip up_down and gain_mode divide" in result.reason
        assert result.quality["gain_best_rotation"] == 0 and result.quality["gain_best_flip"] == 1
        assert result.quality["gain_best_inverse"] == 1
        assert result.quality["gain_best_score"] > 0.1 > abs(result.quality["gain_score"])
    assert len([r for r in caplog.records if "gain_flip" in r.message]) == 1
    (result,) = align(square, gain_rotation=180, check_gain=False)
    assert result.reason == "" or "gain" not in result.reason
    assert "gain_score" not in result.quality
    (result,) = align(square, gain_flip="up_down", gain_mode="divide")
    assert "gain_flip" not in result.reason
    assert result.quality["gain_score"] == result.quality["gain_best_score"] > 0.1


def test_one_movie_is_enough_unless_it_is_not_certain(square, monkeypatch):
    from xmipp_accel.movie_alignment import executor as module

    raw, gain = raw_and_gain(square)
    write_image(square.folder / "gain.mrc", gain, 1.5)
    calls = []

    def counted(movie, *rest):
        calls.append(check_gain(movie, *rest))
        return calls[-1]

    monkeypatch.setattr(module, "check_gain", counted)
    align(square, paths=[square.path])
    assert len(calls) == 1
    dim = square.folder / "dim.mrc"
    write_stack(dim, np.random.default_rng(6).poisson(0.05, raw.shape).astype(np.float32), 1.5)
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(), gain=square.folder / "gain.mrc")
    for path in (dim, square.path, square.path):
        executor.process(path, square.folder / "out")
    assert [call.certain for call in calls[1:]] == [False, True]
