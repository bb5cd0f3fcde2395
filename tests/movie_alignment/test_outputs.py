"""What is written besides the averages of aligned frames."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from tests.movie_alignment.test_averages import grant_average
from tests.movie_alignment.test_correct import stretched_positions
from tests.movie_alignment.test_executor import Movie
from xmipp_accel.backend import to_host
from xmipp_accel.io.images import read_image, read_stack, write_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters, quality
from xmipp_accel.movie_alignment.averages import Halves


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return Movie(
        folder, size=(240, 288), frames=8, sampling_rate=1.5, dose_per_frame=2.0, local=4.0, drift=5.0, seed=2,
        dead_pixels=0, hot_pixels=0,
    )  # fmt: skip


def prepared(small):
    with open_movie(small.path) as movie:
        return movie.read().astype(np.float64) * read_image(small.gain)[0]


def test_initial_average_is_the_mean_of_the_prepared_frames(small):
    result = small.align(save_initial_average=True, sum_first_frame=3, local_alignment=False)
    assert result.outputs["initial"] == "movie_initial.mrc"
    np.testing.assert_allclose(small.image(result, "initial"), prepared(small)[2:].mean(axis=0), atol=1e-4)
    assert "initial" not in small.align(local_alignment=False).outputs
    half = small.align(save_initial_average=True, bin_factor=2.0, local_alignment=False)
    assert small.image(half, "initial").shape == (120, 144)
    assert small.image(half, "initial").mean() == pytest.approx(prepared(small).mean(), rel=1e-4)


@pytest.mark.parametrize("local", [True, False])
def test_dose_weighted_halves_make_up_the_whole(small, local):
    """Each half is restored for itself; their weighted sums add up to that of all frames."""
    wanted = dict(save_even_odd=True, dose_per_frame=2.0, local_alignment=local)
    result = small.align(**wanted)
    assert result.outputs["dose_weighted_even"] == "movie_DW_EVN.mrc"
    assert result.outputs["dose_weighted_odd"] == "movie_DW_ODD.mrc"
    k = np.hypot(np.fft.fftfreq(240, 1.5)[:, None], np.fft.rfftfreq(288, 1.5))
    with np.errstate(divide="ignore"):
        critical = 0.24499 * k**-1.6649 + 2.8141
    square = np.exp(-2.0 * np.arange(8)[:, None, None] / critical)
    parts = dict(even=np.sqrt(4 * square[1::2].sum(axis=0)), odd=np.sqrt(4 * square[::2].sum(axis=0)))
    total = sum(np.fft.rfft2(small.image(result, f"dose_weighted_{half}")) * w for half, w in parts.items())
    whole = np.fft.irfft2(total / np.sqrt(8 * square.sum(axis=0)), (240, 288))
    np.testing.assert_allclose(small.image(result, "dose_weighted"), whole, atol=1e-4)
    unweighted = small.align(save_even_odd=True, local_alignment=False)
    assert not {"dose_weighted_even", "dose_weighted_odd"} & set(unweighted.outputs)


@pytest.mark.parametrize(("local", "factor"), [(True, 1.0), (False, 2.0)])
def test_aligned_movie_adds_up_to_the_average(small, local, factor):
    result = small.align(save_aligned_movie=True, bin_factor=factor, local_alignment=local, float16=False)
    stack = read_stack(small.out / "movie_aligned.mrcs")
    assert len(stack) == 8
    np.testing.assert_allclose(stack.mean(axis=0), small.image(result), atol=1e-4)
    assert stack.std(axis=0).min() > 0


def test_aligned_movie_in_half_precision(small):
    result = small.align(save_aligned_movie=True, float16=True, local_alignment=False)
    assert (small.out / result.outputs["aligned_movie"]).stat().st_size == 1024 + 2 * 8 * 240 * 288


def test_power_spectra_before_and_after(small):
    """Motion removes power at high frequencies, which the alignment brings back."""
    result = small.align(save_power_spectrum=True, save_initial_average=True)
    after, before = (small.image(result, f"power_spectrum{which}") for which in ("", "_initial"))
    assert result.outputs["power_spectrum_initial"] == "movie_psd_initial.mrc"
    for spectrum, average in ((after, "unweighted"), (before, "initial")):
        np.testing.assert_allclose(
            spectrum, spectrum_oracle(small.image(result, average), 240), rtol=1e-4, atol=1e-3
        )
    radius = np.hypot(*np.meshgrid(*(np.fft.fftshift(np.fft.fftfreq(240)),) * 2))
    ring = (radius > 0.1) & (radius < 0.2)
    assert after[ring].mean() > 1.05 * before[ring].mean()


def spectrum_oracle(image, size):
    """Root of the mean of |F|^2 over half-overlapping tiles under a sine window, in float64."""
    line = np.sin(np.pi * (np.arange(size) + 0.5) / size)
    powers = []
    for y in range(0, image.shape[0] - size + 1, size // 2):
        for x in range(0, image.shape[1] - size + 1, size // 2):
            tile = image[y : y + size, x : x + size].astype(np.float64)
            powers.append(abs(np.fft.fft2((tile - tile.mean()) * line[:, None] * line)) ** 2)
    powers = np.fft.fftshift(np.sqrt(np.mean(powers, axis=0)))
    powers[size // 2, size // 2] = 0
    return powers


@pytest.mark.parametrize(("shape", "size"), [((40, 65), 16), ((33, 20), 11), ((12, 30), 512)])
def test_power_spectrum(device, shape, size):
    image = np.random.default_rng(0).normal(3, 1, shape).astype(np.float32)
    found = to_host(quality.power_spectrum(device.asarray(image), size))
    np.testing.assert_allclose(found, spectrum_oracle(image, min(size, *shape)), rtol=1e-3, atol=1e-4)


def test_polishing_finds_the_references_from_anywhere(small, monkeypatch):
    monkeypatch.chdir(small.folder)
    result = small.align(gain=small.gain.name, local_alignment=False)
    general = read_blocks(small.out / result.outputs["star"])["general"]
    assert general["rlnMicrographGainName"] == [str(small.gain)]
    assert "rlnMicrographDefectFile" not in general


# --- how the averages are formed


def test_magnification_stretches_the_averages(small):
    plain = small.image(small.align(local_alignment=False))
    y, x = np.mgrid[:240, :288].astype(float)
    for change in (dict(mag_major=1.04), dict(mag_minor=0.97), dict(mag_major=1.04, mag_angle=60.0)):
        result = small.align(local_alignment=False, **change)
        found = small.image(result)
        factors = dict(dict(mag_major=1.0, mag_minor=1.0, mag_angle=0.0), **change)
        where = stretched_positions(
            y, x, 1 / factors["mag_major"], 1 / factors["mag_minor"], factors["mag_angle"], plain.shape
        )
        expected = scipy.ndimage.map_coordinates(plain, where, order=3, mode="mirror")
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
        assert np.corrcoef(found.ravel(), plain.ravel())[0, 1] < 0.5
    turned = small.image(small.align(local_alignment=False, mag_angle=60.0))
    np.testing.assert_array_equal(turned, plain)


def test_in_frame_motion_weights_all_averages(small):
    """Low frequencies stay; the noise keeps its power at high ones."""
    wanted = dict(save_even_odd=True, dose_per_frame=2.0, local_alignment=False)
    images = {}
    for correct in (False, True):
        result = small.align(correct_in_frame_motion=correct, **wanted)
        images[correct] = {key: small.image(result, key) for key in result.outputs if key not in ("xmd", "star")}
    radius = np.hypot(np.fft.fftfreq(240)[:, None], np.fft.rfftfreq(288))
    assert len(images[True]) == 6
    for key, image in images[True].items():
        before, after = np.fft.rfft2(images[False][key]), np.fft.rfft2(image)
        np.testing.assert_allclose(after[radius < 0.01], before[radius < 0.01], rtol=0.02)
        high = radius > 0.45
        assert np.abs(after - before)[high].mean() > 0.1 * np.abs(before)[high].mean()
        assert (abs(after[high]) ** 2).mean() == pytest.approx((abs(before[high]) ** 2).mean(), rel=0.05)


# --- numbers


def test_even_odd_frc_gain(device):
    """Against ring sums of full transforms in float64; halves given as images and as transforms."""
    rng = np.random.default_rng(0)
    shape, rate = (60, 96), 2.0
    scene = 1.5 * scipy.ndimage.gaussian_filter(rng.normal(size=shape), 0.7)
    frames = (scene + rng.normal(0, 1, (6, *shape))).astype(np.float32)
    blurred = scipy.ndimage.gaussian_filter(frames, (0, 0.8, 0.8)) + rng.normal(0, 0.2, frames.shape)
    images, spectra = Halves(), Halves()
    images.add(np.arange(6), device.asarray(blurred.astype(np.float32)))
    spectra.add(np.arange(6), device.asarray(scipy.fft.rfft2(frames)))
    found = quality.even_odd_frc(spectra, images, shape, rate)
    (after, count), (before, _) = ring_correlation(frames), ring_correlation(blurred)
    resolution = 2 * 30 * rate / (np.arange(30) + 0.5)
    rings = (np.maximum(after, before) > 3 / np.sqrt(count)) & (resolution < 30)
    assert 0 < rings.sum() < 30
    assert found["even_odd_frc_rings"] == rings.sum()
    assert found["even_odd_frc"] == pytest.approx(after[rings].mean(), abs=1e-4)
    assert found["even_odd_frc_initial"] == pytest.approx(before[rings].mean(), abs=1e-4)
    assert found["even_odd_frc_gain"] == pytest.approx((after - before)[rings].mean(), abs=1e-4)


def ring_correlation(frames):
    """Correlation of odd and even frames in 30 rings without the axes, and independent coefficients of each."""
    odd, even = np.fft.fft2(frames[::2].mean(axis=0)), np.fft.fft2(frames[1::2].mean(axis=0))
    fy, fx = (np.fft.fftfreq(s) for s in frames.shape[1:])
    ring = (np.hypot(fy[:, None], fx) * 60).astype(int)
    ring[0], ring[:, 0] = -1, -1
    curve, count = np.zeros(30), np.ones(30)
    for r in range(30):
        a, b = odd[ring == r], even[ring == r]
        if len(a):
            curve[r] = (a * b.conj()).sum().real / np.sqrt((abs(a) ** 2).sum() * (abs(b) ** 2).sum())
            count[r] = len(a)
    return curve, count


def test_frc_gain_of_movies(small):
    """Alignment lets the halves agree better; without motion nothing changes, and one frame has no halves."""
    quality = small.align().quality
    assert quality["even_odd_frc_gain"] > 0.05
    assert quality["even_odd_frc"] - quality["even_odd_frc_initial"] == pytest.approx(quality["even_odd_frc_gain"])
    # Whole frames that move are worse than local motion that is followed.
    assert quality["even_odd_frc"] > small.align(local_alignment=False).quality["even_odd_frc"]
    still = small.align(max_shift=1.0).quality
    assert still["even_odd_frc_gain"] == pytest.approx(0, abs=1e-5)
    assert small.align(sum_first_frame=8, local_alignment=False).quality["even_odd_frc_rings"] == 0


def test_motion_summary_of_a_path_by_hand():
    """Steps of 5, 0, 13 and 1 px at 2 A/px; early are those up to the last frame that ends by 4 e/A^2."""
    shifts = np.array([[0, 0], [3, 4], [3, 4], [8, 16], [8, 17]], dtype=float)
    for dose, received, early in [
        (2, 0, 10),
        (1.3, 0, 10),
        (1, 0, 36),
        (0.8, 0, 38),
        (1, 2, 10),
        (1, 3, 0),
        (5, 0, 0),
    ]:
        found = quality.motion_summary(shifts, 2.0, np.full(5, dose), received)
        assert found == dict(total_motion=38.0, early_motion=early, late_motion=38.0 - early), (dose, received)
    expected = dict(total_motion=38.0, early_motion=36.0, late_motion=2.0)
    assert quality.motion_summary(shifts, 2.0, np.zeros(5)) == expected
    assert quality.motion_summary(shifts, 2.0, [0.5, 0.5, 1, 2, 2]) == expected
    assert set(quality.motion_summary(shifts[:1], 2.0, [1]).values()) == {0.0}


def test_local_summary_by_hand():
    """A field that grows with x and time: percentiles over nine columns, rows and all frames."""
    shifts = np.array([[1.0, 2.0], [5.0, 5.0]])

    def field(y, x, t):
        return shifts[t] + np.stack([0 * x, t * x / 10], axis=-1)

    found = quality.local_summary(field, shifts, (9, 81), 2)
    sizes = np.concatenate([np.zeros(9), np.linspace(0, 8, 9)])
    assert found["local_motion"] == pytest.approx(8.0)
    assert found["local_motion_2.5"] == pytest.approx(np.percentile(np.repeat(sizes, 9), 2.5))
    assert found["local_motion_97.5"] == pytest.approx(np.percentile(np.repeat(sizes, 9), 97.5))


def test_aligned_movie_keeps_the_place_of_each_summed_frame(small, tmp_path):
    """Frames without contrast stay in it, so that those behind keep their exposure; the averages skip them."""
    frames = prepared(small).astype(np.float32)
    frames[4] = 7.0
    write_stack(tmp_path / "movie.mrc", frames, 1.5)
    parameters = MovieAlignmentParameters(
        save_aligned_movie=True, save_initial_average=True, sum_first_frame=3, sum_last_frame=7, dose_per_frame=2.0
    )
    result = MovieAlignmentExecutor(parameters).process(tmp_path / "movie.mrc", tmp_path)
    stack = read_stack(tmp_path / "movie_aligned.mrcs")
    assert len(stack) == 5
    np.testing.assert_allclose(stack[2], 7.0, atol=1e-4)
    kept = [0, 1, 3, 4]
    average = read_image(tmp_path / result.outputs["unweighted"])[0]
    np.testing.assert_allclose(stack[kept].mean(axis=0), average, atol=1e-4)
    initial = read_image(tmp_path / result.outputs["initial"])[0]
    np.testing.assert_allclose(frames[2:7][kept].mean(axis=0), initial, atol=1e-4)
    weighted = grant_average(stack[kept], np.array([2.0, 4.0, 8.0, 10.0]), 1.5, 1.0)
    np.testing.assert_allclose(read_image(tmp_path / result.outputs["dose_weighted"])[0], weighted, atol=1e-3)
