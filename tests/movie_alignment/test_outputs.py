"""What is written besides the averages of aligned frames."""

import numpy as np
import pytest

from tests.movie_alignment.test_executor import Movie
from xmipp_accel.backend import to_host
from xmipp_accel.io.images import read_image, read_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.movie_alignment import quality


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
