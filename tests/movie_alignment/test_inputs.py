"""What goes into an alignment: groups of frames, formats, gains, bad pixels, and movies with little in them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.io.samples import eer_bytes, mrc_bytes, pack_4bit
from tests.movie_alignment.test_executor import Movie
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import read_image, write_image, write_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.io.tiff import write_tiff
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters, MovieAlignmentResult
from xmipp_accel.movie_alignment.correct import MotionCorrector, corrected_averages
from xmipp_accel.movie_alignment.dose import critical_exposure
from xmipp_accel.movie_alignment.prepare import PreparedMovie

tifffile = pytest.importorskip("tifffile")


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    return Movie(
        tmp_path_factory.mktemp("drift"), size=256, frames=8, sampling_rate=1.5, dose_per_frame=2.0, local=0.0
    )


def align(path, gain=None, frame_groups=None, **parameters):
    parameters = dict(dict(sampling_rate=1.5, local_alignment=False), **parameters)
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(**parameters), gain=gain, frame_groups=frame_groups)
    return executor.process(path, path.parent / "out")


def output(path, result, key="unweighted"):
    return read_image(path.parent / "out" / result.outputs[key])[0]


# --- groups of frames


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Twelve frames of a scene that does not move, and a file that sums them unequally."""
    folder = tmp_path_factory.mktemp("still")
    movie = Movie(folder, size=128, frames=12, sampling_rate=1.5, dose_per_frame=1.0, local=0.0, drift=0.0)
    (folder / "groups.txt").write_text("2 1 0.5\n6 3 1.5\n4 2 1.0\n")
    return movie


def test_frames_are_summed_by_the_rows_of_a_file(still):
    groups = still.folder / "groups.txt"
    result = align(still.path, frame_groups=groups, repair_bad_pixels=False, save_initial_average=True)
    assert (result.n_frames, result.group_sizes) == (6, (1, 1, 3, 3, 2, 2))
    np.testing.assert_allclose(result.exposures, [0.5, 0.5, 4.5, 4.5, 2, 2])
    with open_movie(still.path) as movie:
        total = movie.read().sum(axis=0)
    # Before alignment: borders that are mirrored would count.
    np.testing.assert_allclose(output(still.path, result, "initial"), total / 6, rtol=1e-5)
    assert output(still.path, result, "initial").mean() == pytest.approx(total.mean() / 6, rel=1e-4)
    again = MovieAlignmentResult.from_json(still.path.parent / "out" / "movie.json")
    assert again.to_json() == result.to_json() and again.group_sizes == result.group_sizes


def test_exposures_of_groups_weight_the_frames():
    """Against the plain formula: sums decay by what the specimen has received at their middle."""
    exposures = np.array([0.5, 0.5, 4.5, 4.5, 2, 2])
    frames = np.random.default_rng(0).poisson(10 * exposures[:, None, None], (6, 32, 40)).astype(np.float32)
    corrector = MotionCorrector(np.zeros((6, 2)), np.zeros((0, 0, 0, 2)), (32, 40))
    used = [1, 2, 4, 5]
    parameters = MovieAlignmentParameters()
    averages, _ = corrected_averages(PreparedMovie(frames), used, corrector, parameters, 1.5, exposures)
    frequency = np.hypot(np.fft.fftfreq(32, 1.5)[:, None], np.fft.rfftfreq(40, 1.5))
    received = np.array([0.75, 3.25, 11.0, 13.0])[:, None, None]
    weights = np.exp(-received / (2 * critical_exposure(frequency)))
    own = exposures[used][:, None, None]
    noise = np.sqrt((weights**2 * own).sum(axis=0) / own.sum())
    expected = np.fft.irfft2((weights * np.fft.rfft2(frames[used])).sum(axis=0) / noise / 4, (32, 40))
    np.testing.assert_allclose(averages["dose_weighted"], expected, atol=1e-4 * np.abs(expected).max())


def test_doses_of_the_file_turn_dose_weighting_on_and_go_to_relion(still):
    groups = still.folder / "groups.txt"
    assert "dose_weighted" not in align(still.path).outputs
    result = align(still.path, frame_groups=groups)
    assert "dose_weighted" in result.outputs
    blocks = read_blocks(still.path.parent / "out" / "movie.star")
    assert blocks["general"]["rlnImageSizeZ"][0] == 12 == len(blocks["global_shift"]["rlnMicrographFrameNumber"])
    assert blocks["general"]["rlnMicrographDoseRate"][0] == pytest.approx((2 * 0.5 + 6 * 1.5 + 4 * 1.0) / 12)
    (still.folder / "no_dose.txt").write_text("12 3\n")
    result = align(still.path, frame_groups=still.folder / "no_dose.txt", dose_per_frame=0.7)
    np.testing.assert_allclose(result.exposures, np.full(4, 2.1))


def test_shifts_of_groups_are_those_of_their_middles(drifting):
    (drifting.folder / "groups.txt").write_text("2 1\n6 2\n")
    result = align(drifting.path, drifting.gain, drifting.folder / "groups.txt")
    assert result.n_frames == 5
    truth = drifting.truth.shifts
    expected = np.concatenate([truth[:2], truth[2:].reshape(3, 2, 2).mean(axis=1)])
    difference = result.shifts - expected
    assert np.sqrt(((difference - difference.mean(axis=0)) ** 2).sum(axis=1).mean()) < 0.12


def test_an_unreadable_file_of_groups_is_refused_at_once(tmp_path):
    (tmp_path / "groups.txt").write_text("4 x\n")
    with pytest.raises(InputFileError, match="line 1"):
        MovieAlignmentExecutor(MovieAlignmentParameters(), frame_groups=tmp_path / "groups.txt")


# --- gains


@pytest.fixture(scope="module")
def electrons(tmp_path_factory):
    """An EER movie of a still detector pattern: its response differs from pixel to pixel."""
    folder = tmp_path_factory.mktemp("electrons")
    rng = np.random.default_rng(3)
    shape = (48, 64)
    response = rng.uniform(0.5, 1.0, shape)
    frames = []
    for _ in range(400):
        y, x = np.nonzero(rng.random(shape) < 0.5 * response)
        frames.append(np.stack([y, x, rng.integers(0, 4, len(y)), rng.integers(0, 4, len(y))], axis=1))
    (folder / "movie.eer").write_bytes(eer_bytes(frames, shape))
    return folder, response


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(("name", "kind"), [("g.gain", "factor"), ("g.mrc", "response"), ("g.mrc", "factor")])
def test_gains_of_eer_movies(electrons, upsampling, scale, name, kind):
    """Of both kinds and of the detector's size or twice it, also where the detector's pixels are divided."""
    folder, response = electrons
    image = response if kind == "response" else 1 / response
    image = np.kron(image, np.ones((scale, scale))).astype(np.float32)
    path = folder / f"{kind}{scale}_{name}"
    if name.endswith("gain"):
        write_tiff(path, image[None], 1.0)
    else:
        write_image(path, image, 1.0)
    mode = "multiply" if (name, kind) == ("g.mrc", "factor") else "auto"
    parameters = dict(eer_frames=4, eer_upsampling=upsampling, repair_bad_pixels=False, gain_mode=mode)
    result = align(folder / "movie.eer", gain=path, **parameters)
    assert result.shape == (48 * upsampling, 64 * upsampling)
    average = output(folder / "movie.eer", result).reshape(48, upsampling, 64, upsampling).sum(axis=(1, 3))
    expected = 100 * 0.5 * (response.mean() if kind == "response" else 1.0)
    noise = np.sqrt(400 * 0.5 * 0.5) / 4
    assert average.mean() == pytest.approx(expected, rel=0.01)
    assert average.std() < 1.6 * noise
    plain = output(folder / "movie.eer", align(folder / "movie.eer", **parameters))
    assert plain.reshape(48, upsampling, 64, upsampling).sum(axis=(1, 3)).std() > 1.6 * noise


# --- bad pixels that nothing marks


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A movie without bad pixels, with 18 electrons a pixel in all."""
    folder = tmp_path_factory.mktemp("clean")
    options = dict(size=288, frames=8, sampling_rate=1.5, dose_per_frame=1.0, local=0.0)
    movie = Movie(folder, dead_pixels=0, hot_pixels=0, **options)
    return movie, align(movie.path, movie.gain)


@pytest.mark.parametrize(("fraction", "limit"), [(0.005, 0.02), (0.03, 0.06)])
def test_dead_and_hot_pixels_do_not_change_the_shifts(clean, fraction, limit):
    """Half of them count nothing, half far too much; the limit is what the loss of so many pixels costs."""
    movie, expected = clean
    with open_movie(movie.path) as reader:
        frames = reader.read().astype(np.uint16)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(frames[0].size)[: int(fraction * frames[0].size)]
    dead, hot = np.array_split(chosen, 2)
    flat = frames.reshape(8, -1)
    flat[:, dead] = 0
    flat[:, hot] += rng.poisson(20, (8, len(hot))).astype(np.uint16)
    path = movie.folder / "bad.mrc"
    write_stack(path, frames, 1.5, np.uint16)
    result = align(path, movie.gain)
    assert result.quality["bad_pixels"] == pytest.approx(len(chosen), rel=0.05)
    difference = result.shifts - expected.shifts
    difference -= difference.mean(axis=0)
    assert np.linalg.norm(difference, axis=1).max() < limit
    unrepaired = align(path, movie.gain, hot_pixel_sigma=0.0)
    assert unrepaired.quality["fixed_pattern"] > 6
    difference = unrepaired.shifts - expected.shifts
    assert np.abs(difference - difference.mean(axis=0)).max() > limit


# --- movies with little in them


@pytest.mark.parametrize("frames", [1, 4], ids=["one frame", "one with contrast"])
def test_a_single_frame_is_averaged_but_not_aligned(tmp_path, frames):
    image = np.random.default_rng(0).poisson(9, (64, 96)).astype(np.float32)
    stack = np.full((frames, 64, 96), 3.0, np.float32)
    stack[-1] = image
    path = tmp_path / "movie.mrc"
    write_stack(path, stack, 1.5)
    wanted = dict(save_even_odd=True, save_power_spectrum=True, save_aligned_movie=True, local_alignment=True)
    result = align(path, hot_pixel_sigma=0.0, dose_per_frame=1.0, **wanted)
    assert result.status == "not aligned" and f"1 of {frames} frames" in result.reason
    assert not result.shifts.any() and result.n_aligned == frames
    np.testing.assert_allclose(output(path, result), image, atol=1e-4)
    np.testing.assert_allclose(output(path, result, "dose_weighted"), image, atol=1e-3)
    assert not {"even", "odd"} & set(result.outputs), "no frame but one"
    assert all((path.parent / "out" / file).exists() for file in result.outputs.values())
    again = MovieAlignmentResult.from_json(path.parent / "out" / "movie.json")
    assert again.to_json() == result.to_json()
    blocks = read_blocks(path.parent / "out" / "movie.star")
    assert len(blocks["global_shift"]["rlnMicrographFrameNumber"]) == frames


def test_movies_of_different_lengths(drifting, tmp_path):
    """One executor, the same parameters: a shorter movie uses what it has, and says so."""
    with open_movie(drifting.path) as reader:
        frames = reader.read()
    short = tmp_path / "short.mrc"
    write_stack(short, frames[:6], 1.5, frames.dtype)
    parameters = MovieAlignmentParameters(local_alignment=False, last_frame=8, sum_last_frame=7)
    executor = MovieAlignmentExecutor(parameters, gain=drifting.gain)
    results = [executor.process(path, tmp_path / "out") for path in (drifting.path, short, drifting.path)]
    assert [result.n_aligned for result in results] == [8, 6, 8]
    assert [result.reason for result in results] == ["", "the movie has 6 frames, not 8", ""]
    for result in results:
        difference = result.shifts - drifting.truth.shifts[: result.n_aligned]
        assert np.linalg.norm(difference - difference.mean(axis=0), axis=1).max() < 0.15
    with pytest.raises(ParameterError, match=r"short\.mrc: expected a range within frames 1 to 6, found frames 7"):
        MovieAlignmentExecutor(MovieAlignmentParameters(first_frame=7)).process(short, tmp_path / "out")


# --- formats


DRIFT = np.stack([np.arange(6) * 0.8, np.arange(6) * -0.5], axis=1)  # (y, x), px that the sample moves


@pytest.fixture(scope="module")
def counts():
    """Up to seven electrons a pixel of a pattern that drifts, which every format can hold."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.fft2(gaussian_filter(rng.normal(size=(96, 128)), 1.5, mode="wrap"))
    fy, fx = np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(128), indexing="ij")
    moved = [np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (fy * y + fx * x))).real for y, x in DRIFT]
    return rng.poisson(np.clip(2 + 6 * np.array(moved), 0.1, None)).clip(0, 7)


def mrc(mode, dtype):
    return "movie.mrc", lambda path, counts: path.write_bytes(mrc_bytes(counts.astype(dtype), mode))


def packed(path, counts):
    path.write_bytes(mrc_bytes(pack_4bit(counts), 101, packed_width=counts.shape[2]))


def tiff(compression, dtype, big=False):
    def write(path, counts):
        options = dict(compression=compression, photometric="minisblack", metadata=None, bigtiff=big)
        tifffile.imwrite(path, counts[:, ::-1].astype(dtype), **options)

    return "movie.tif", write


def eer(compression):
    """The electrons of each frame in seven frames of the camera, at random places within their pixels."""

    def write(path, counts):
        rng = np.random.default_rng(1)
        events = []
        for frame in counts:
            for k in range(7):
                y, x = np.nonzero(frame > k)
                events.append(np.stack([y, x, *rng.integers(0, 4, (2, len(y)))], axis=1))
        widths = (8, 2, 2) if compression == 65000 else (7, 2, 2)
        path.write_bytes(eer_bytes(events, counts.shape[1:], compression, widths))

    return "movie.eer", write


FORMATS = {
    "mode 0": mrc(0, np.int8),
    "mode 1": mrc(1, np.int16),
    "mode 2": mrc(2, np.float32),
    "mode 6": mrc(6, np.uint16),
    "mode 12": mrc(12, np.float16),
    "mode 101": ("movie.mrc", packed),
    "lzw": tiff("lzw", np.uint8),
    "deflate": tiff("zlib", np.uint16),
    "zstd": tiff("zstd", np.uint8),
    "bigtiff": tiff("lzw", np.uint8, big=True),
    "eer 7 bit": eer(65001),
    "eer 8 bit": eer(65000),
}


@pytest.fixture(scope="module")
def expected_shifts(tmp_path_factory, counts):
    path = tmp_path_factory.mktemp("formats") / "movie.mrc"
    write_stack(path, counts, 1.5, np.int16)
    shifts = align(path).shifts
    difference = shifts + DRIFT
    assert np.abs(difference - difference.mean(axis=0)).max() < 0.15
    return shifts


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_shifts(tmp_path, counts, expected_shifts, kind):
    name, write = FORMATS[kind]
    write(tmp_path / name, counts)
    result = align(tmp_path / name, eer_frames=6)
    assert result.n_frames == 6 and result.shape == (96, 128)
    np.testing.assert_array_equal(result.shifts, expected_shifts)


@pytest.mark.parametrize("kind", ["eer 7 bit", "eer 8 bit"])
def test_divided_eer_pixels_double_the_shifts(tmp_path, counts, expected_shifts, kind):
    name, write = FORMATS[kind]
    write(tmp_path / name, counts)
    result = align(tmp_path / name, eer_frames=6, eer_upsampling=2, sampling_rate=0.75)
    assert result.shape == (192, 256)
    difference = result.shifts / 2 - expected_shifts
    assert np.abs(difference - difference.mean(axis=0)).max() < 0.1
