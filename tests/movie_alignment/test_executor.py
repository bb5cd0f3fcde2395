"""Whole movies: accuracy against the truth, every parameter's effect, and refusals."""

import json

import numpy as np
import pytest

from tests.io.samples import eer_bytes, electron_events
from tests.shared_data import shared_path
from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import read_image, stack_shape, write_image, write_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters, MovieAlignmentResult
from xmipp_accel.simulate.movies import simulate_movie


class Movie:
    def __init__(self, folder, **options):
        self.folder = folder
        self.truth = simulate_movie(folder, **options)
        self.path = folder / self.truth.movie
        self.gain = folder / self.truth.gain
        self.runs = 0

    def align(self, device=CPU, gain="own", dark=None, defects=None, name=None, **parameters):
        gain = self.gain if gain == "own" else gain
        executor = MovieAlignmentExecutor(MovieAlignmentParameters(**parameters), device, gain, dark, defects)
        self.runs += 1
        self.out = self.folder / f"run{self.runs}"
        return executor.process(self.path, self.out, name)

    def image(self, result, key="unweighted"):
        return read_image(self.out / result.outputs[key])[0]

    def error(self, result):
        """Rms (px) of the field, a constant at each position being free."""
        n, ny, nx = self.truth.shape
        t, y, x = np.meshgrid(np.arange(n), np.linspace(0, ny - 1, 9), np.linspace(0, nx - 1, 9), indexing="ij")
        difference = result.field(y, x, t) - self.truth.field(y, x, t)
        return np.sqrt(((difference - difference.mean(axis=0)) ** 2).sum(axis=-1).mean())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return Movie(
        folder, size=(240, 288), frames=8, sampling_rate=1.5, dose_per_frame=2.0, local=4.0, drift=5.0, seed=2
    )


@pytest.fixture(scope="module")
def usual(small):
    result = small.align(dose_per_frame=2.0)
    return result, small.image(result), small.image(result, "dose_weighted")


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    return Movie(
        tmp_path_factory.mktemp("drift"), size=256, frames=8, sampling_rate=1.5, dose_per_frame=2.0, local=0.0
    )


def test_local_motion_is_found(small, device):
    result = small.align(device)
    assert result.status == "local"
    assert small.error(result) < 0.25
    assert small.error(small.align(device, local_alignment=False)) > 0.5


def test_translations_are_found_and_no_local_motion_is_invented(drifting, device):
    result = drifting.align(device)
    assert result.status == "global"
    assert "no local motion" in result.reason
    assert drifting.error(result) < 0.08
    assert 0.3 < np.median(result.shift_errors) / 0.035 < 3


def test_devices_agree(small, usual, device):
    result = small.align(device, dose_per_frame=2.0)
    n, ny, nx = small.truth.shape
    t, y, x = np.meshgrid(np.arange(n), np.linspace(0, ny, 5), np.linspace(0, nx, 5), indexing="ij")
    np.testing.assert_allclose(result.field(y, x, t), usual[0].field(y, x, t), atol=1e-3)
    for image, key in zip(usual[1:], ("unweighted", "dose_weighted")):
        np.testing.assert_allclose(small.image(result, key), image, atol=2e-3 * image.std())


def test_average_shows_the_scene_sharper_than_without_alignment(small, usual):
    with open_movie(small.path) as movie:
        blurred = movie.read().mean(axis=0)
    assert usual[1].mean() == pytest.approx(blurred[blurred > 0].mean(), rel=0.1)

    def strength(image):
        k = np.hypot(np.fft.fftfreq(240)[:, None], np.fft.rfftfreq(288))
        return (abs(np.fft.rfft2(image - image.mean())) ** 2)[(k > 0.1) & (k < 0.2)].mean()

    result = small.align(local_alignment=False)
    assert strength(usual[1]) > strength(small.image(result)) > 0


def test_bad_and_hot_pixels_are_repaired(small, usual):
    spots = np.concatenate([small.truth.bad_pixels, small.truth.hot_pixels])
    raw = small.align(repair_bad_pixels=False, local_alignment=False)
    assert raw.quality["bad_pixels"] == 0
    assert usual[0].quality["bad_pixels"] == pytest.approx(len(spots), abs=3)
    assert np.abs(usual[1] - usual[1].mean()).max() < 0.5 * np.abs(small.image(raw) - usual[1].mean()).max()


def test_files(small, usual):
    result = small.align(dose_per_frame=2.0, save_even_odd=True, save_aligned_movie=True, save_power_spectrum=True)
    assert set(result.outputs) == {
        "unweighted", "dose_weighted", "even", "odd", "dose_weighted_even", "dose_weighted_odd", "aligned_movie",
        "power_spectrum", "power_spectrum_initial", "xmd", "star",
    }  # fmt: skip
    assert {p.name for p in small.out.iterdir()} == {*result.outputs.values(), "movie.json"}
    assert result.outputs["odd"] == "movie_ODD.mrc"
    even, odd = small.image(result, "even"), small.image(result, "odd")
    np.testing.assert_allclose((even + odd) / 2, small.image(result), atol=1e-4)
    stack = stack_shape(small.out / result.outputs["aligned_movie"])
    assert stack == (8, 240, 288)
    again = MovieAlignmentResult.from_json(small.out / "movie.json")
    assert again.to_json() == result.to_json()
    assert again.output_path("xmd", small.out).exists()
    assert read_image(small.out / result.outputs["unweighted"])[1] == pytest.approx(1.5)


def test_outputs_can_be_left_out(small):
    result = small.align(dose_per_frame=2.0, save_unweighted=False, local_alignment=False)
    assert "unweighted" not in result.outputs
    result = small.align(dose_per_frame=2.0, save_dose_weighted=False, local_alignment=False)
    assert "dose_weighted" not in result.outputs
    assert "dose_weighted" not in small.align(local_alignment=False).outputs


def test_progress_and_name(small):
    seen = []
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(local_alignment=False))
    result = executor.process(
        small.path, small.folder / "named", "other", lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (small.folder / "named" / "other.json").exists()
    assert result.outputs["unweighted"] == "other.mrc"


# --- every parameter changes the result


@pytest.mark.parametrize(
    "change", [dict(voltage=200.0), dict(dose_per_frame=4.0)], ids=lambda change: next(iter(change))
)
def test_dose_parameters_filter_more(small, usual, change):
    result = small.align(**dict(dict(dose_per_frame=2.0), **change))
    np.testing.assert_allclose(small.image(result), usual[1], atol=1e-5)
    changed = small.image(result, "dose_weighted")
    k = np.hypot(np.fft.fftfreq(240)[:, None], np.fft.rfftfreq(288))

    def signal(image):  # at these frequencies noise keeps its power, so less signal means less power
        return (abs(np.fft.rfft2(image)) ** 2)[(k > 0.2) & (k < 0.3)].sum()

    assert signal(changed) < signal(usual[2])
    assert np.abs(changed - usual[2]).max() > 1e-3


def test_pre_exposure_is_for_polishing(small, usual):
    """In the average it cancels: all weights share its factor, and the noise keeps its power."""
    result = small.align(dose_per_frame=2.0, pre_exposure=20.0)
    np.testing.assert_allclose(small.image(result, "dose_weighted"), usual[2], atol=1e-4)
    assert read_blocks(small.out / result.outputs["star"])["general"]["rlnMicrographPreExposure"][0] == 20.0


def test_sampling_rate_overrides_the_header(small):
    result = small.align(sampling_rate=3.0, local_alignment=False)
    assert result.sampling_rate == result.output_sampling_rate == 3.0
    assert result.quality["total_motion"] == pytest.approx(
        2 * small.align(local_alignment=False).quality["total_motion"], rel=0.2
    )


def test_frame_ranges(small):
    result = small.align(first_frame=2, last_frame=7, local_alignment=False)
    assert (result.first_frame, result.n_aligned, result.n_frames) == (1, 6, 8)
    everything = small.image(result)
    part = small.align(first_frame=2, last_frame=7, sum_first_frame=3, sum_last_frame=5, local_alignment=False)
    np.testing.assert_array_equal(part.shifts, result.shifts)
    assert small.image(part).std() > 1.2 * everything.std()
    for wrong in (dict(first_frame=9), dict(last_frame=5, sum_last_frame=6)):
        with pytest.raises(ParameterError, match="frames"):
            small.align(**wrong)


@pytest.mark.parametrize(("factor", "shape"), [(2.0, (120, 144)), (1.5, (160, 192))])
def test_binning(small, usual, factor, shape):
    result = small.align(bin_factor=factor, dose_per_frame=2.0)
    image = small.image(result)
    assert image.shape == shape == small.image(result, "dose_weighted").shape
    assert result.output_sampling_rate == pytest.approx(1.5 * factor)
    assert image.mean() == pytest.approx(usual[1].mean(), rel=1e-4)
    full = np.fft.rfft2(usual[1]) / usual[1].size
    half = np.fft.rfft2(image) / image.size
    np.testing.assert_allclose(half[:20, :20], full[:20, :20], atol=1e-5)


def test_low_pass_costs_accuracy(drifting):
    assert drifting.error(drifting.align(max_resolution=40.0)) > 1.5 * drifting.error(drifting.align())


def test_max_shift_limits_the_search(drifting):
    result = drifting.align(max_shift=3.0)
    assert result.status == "not aligned"
    assert "max_shift" in result.reason
    assert not result.shifts.any()


def test_patches_and_control_points(small, usual):
    assert usual[0].quality["patches_x"] == 4
    assert usual[0].control_points.shape == (5, 5, 5, 2)
    result = small.align(patches_x=6, patches_y=5, control_points_x=6, control_points_y=4, control_points_t=7)
    assert result.control_points.shape == (7, 4, 6, 2)
    assert (result.quality["patches_x"], result.quality["patches_y"]) == (6, 5)
    result = small.align(min_local_resolution=120.0)
    assert result.quality["patches_x"] > 4
    assert small.error(result) < 0.3


def test_groups_of_frames_change_the_local_model_only(small, usual):
    result = small.align(group_frames=2)
    assert result.status == "local"
    assert small.error(result) < 0.3
    assert np.abs(result.control_points - usual[0].control_points).max() > 1e-4


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (dict(gain_rotation=180), lambda gain: gain[::-1, ::-1]),
        (dict(gain_flip="up_down"), lambda gain: gain[::-1]),
        (dict(gain_flip="left_right"), lambda gain: gain[:, ::-1]),
        (dict(gain_mode="divide"), lambda gain: np.divide(1, gain, out=np.zeros_like(gain), where=gain > 0)),
    ],
    ids=["rotation", "up_down", "left_right", "divide"],
)
def test_gain_orientation(small, change, undo):
    gain, _ = read_image(small.gain)
    path = small.folder / "turned_gain.mrc"
    write_image(path, undo(gain), 1.5)
    right = small.align(gain=path, local_alignment=False, **change)
    image = small.image(right)
    expected = small.image(small.align(local_alignment=False))
    np.testing.assert_allclose(image, expected, atol=2e-2 * expected.std())
    wrong = small.image(small.align(gain=path, local_alignment=False))
    assert np.abs(wrong - expected).max() > 0.1 * expected.std()


def test_dark_and_defects(small):
    plain = small.align(local_alignment=False)
    average = small.image(plain)
    dark = small.folder / "dark.mrc"
    write_image(dark, np.full((240, 288), 1.0, np.float32), 1.5)
    assert small.image(small.align(dark=dark, local_alignment=False)).mean() == pytest.approx(
        average.mean() - 1, abs=0.01
    )
    defects = small.folder / "defects.txt"
    defects.write_text("10 20 5 4\n")
    assert (
        small.align(defects=defects, local_alignment=False).quality["bad_pixels"]
        >= plain.quality["bad_pixels"] + 19
    )


def test_hot_pixel_threshold(small):
    none = small.align(hot_pixel_sigma=0.0, local_alignment=False)
    assert none.quality["bad_pixels"] == len(small.truth.bad_pixels)
    assert small.align(hot_pixel_sigma=3.5, local_alignment=False).quality["bad_pixels"] > 60


def test_float16(small, usual):
    result = small.align(float16=True)
    image = small.image(result)
    np.testing.assert_allclose(image, usual[1], rtol=1e-3)
    assert (small.out / result.outputs["unweighted"]).stat().st_size < 0.6 * image.size * 4


def test_eer_movies(tmp_path):
    path = tmp_path / "movie.eer"
    path.write_bytes(eer_bytes(electron_events((13, 64, 96), 0.2), (64, 96)))
    for frames, upsampling, group in ((6, 1, 2), (4, 2, 3)):
        result = process(path, eer_frames=frames, eer_upsampling=upsampling, sampling_rate=1.0)
        assert result.n_frames == frames
        assert result.shape == (64 * upsampling, 96 * upsampling)
        general = read_blocks(tmp_path / "out" / "movie.star")["general"]
        assert (general["rlnEERGrouping"][0], general["rlnEERUpsampling"][0]) == (group, upsampling)


# --- what cannot be aligned


def write_movie(folder, frames):
    path = folder / "movie.mrc"
    write_stack(path, np.asarray(frames, dtype=np.float32), 1.0)
    return path


def process(path, **parameters):
    return MovieAlignmentExecutor(MovieAlignmentParameters(**parameters)).process(path, path.parent / "out")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (np.ones((4, 64, 64)), "none of its 4 frames has any contrast"),
        (np.full((4, 64, 64), np.nan), "100 % of the pixels are bad"),
    ],
    ids=["constant", "nan"],
)
def test_hopeless_movies_are_refused(tmp_path, frames, reason):
    path = write_movie(tmp_path, frames)
    with pytest.raises(ProcessingError, match=reason) as caught:
        process(path)
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "out").glob("*.json"))


def test_noise_is_not_aligned(tmp_path):
    frames = np.random.default_rng(0).normal(10, 1, (6, 128, 128)).astype(np.float32)
    result = process(write_movie(tmp_path, frames))
    assert result.status == "not aligned"
    assert "share no signal" in result.reason
    assert not result.shifts.any()
    np.testing.assert_allclose(read_image(tmp_path / "out" / "movie.mrc")[0], frames.mean(axis=0), atol=1e-4)


def test_blank_frames_and_nan_pixels_are_left_out(drifting, tmp_path):
    gain, _ = read_image(drifting.gain)
    with open_movie(drifting.path) as movie:
        frames = movie.read() * gain
    frames[3] = 7.0
    frames[5, 10, 11] = np.nan
    path = write_movie(tmp_path, frames)
    result = process(path, sampling_rate=1.5)
    assert "left out: 4" in result.reason
    assert drifting.error(result) < 0.3
    assert np.isfinite(read_image(tmp_path / "out" / "movie.mrc")[0]).all()
    with pytest.raises(InputFileError, match="finite"):
        process(path, repair_bad_pixels=False)


def test_unknown_pixel_size(tmp_path):
    path = tmp_path / "movie.mrc"
    write_stack(path, np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32), 0.0)
    with pytest.raises(ParameterError, match="sampling_rate"):
        process(path)


@pytest.mark.parametrize(
    "wrong",
    [dict(first_frame=5, last_frame=3), dict(patches_x=2), dict(control_points_t=3), dict(gain_rotation=45)],
)
def test_parameters_are_checked(wrong):
    with pytest.raises(ParameterError):
        MovieAlignmentParameters(**wrong)


# --- the reference movies


@pytest.mark.slow
@pytest.mark.parametrize(("name", "local", "seed", "limit"), [("dome", 4, 3, 0.12), ("drift", 0, 4, 0.05)])
def test_reference_movies(tmp_path, name, local, seed, limit):
    import subprocess
    import sys

    options = (
        "--size 1024 --frames 20 --apix 1.5 --dose 1 --drift 8 --motion dome --format mrcs --dtype uint8".split()
    )
    command = [sys.executable, str(shared_path("tools/make_truth.py")), "movie", "--out", str(tmp_path), *options]
    command += [
        "--map",
        str(shared_path("data/maps/groel_1mnf_2.5A_96.mrc")),
        "--local",
        str(local),
        "--seed",
        str(seed),
    ]
    subprocess.run(command, check=True, capture_output=True)
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(), gain=tmp_path / "gain.mrc")
    result = executor.process(tmp_path / "movie.mrcs", tmp_path / "out")
    truth = np.load(tmp_path / "truth.npz", allow_pickle=True)
    field = result.field(truth["field_y"][:, None], truth["field_x"], np.arange(20)[:, None, None])
    difference = -field - truth["field"]
    difference -= difference.mean(axis=0)
    assert np.sqrt((difference**2).sum(axis=-1).mean()) < limit
    assert json.loads((tmp_path / "out" / "movie.json").read_text())["status"] == ("local" if local else "global")
