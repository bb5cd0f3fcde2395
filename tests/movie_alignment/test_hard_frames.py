"""Frames that are hard to place: few electrons, or another scene."""

import numpy as np
import pytest

from tests.movie_alignment.test_executor import Movie, process, write_movie
from xmipp_accel.io.images import read_image
from xmipp_accel.io.movies import open_movie


def test_frames_of_few_electrons_are_found_by_the_sum_of_the_others(tmp_path):
    """1 e/px a frame: pairs leave single frames up to 20 px astray."""
    movie = Movie(tmp_path, size=256, frames=12, sampling_rate=1.0, local=0.0, seed=2, dead_pixels=0, hot_pixels=0)
    result = movie.align(sampling_rate=1.0, local_alignment=False)
    assert result.status == "global"
    assert result.quality["lost_frames"] == 0
    assert movie.error(result) < 0.2


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    return Movie(folder, size=256, frames=10, sampling_rate=1.5, dose_per_frame=2.0, local=0.0)


def test_a_frame_that_fits_nowhere_is_placed_between_its_neighbours(drifting, tmp_path):
    gain, _ = read_image(drifting.gain)
    with open_movie(drifting.path) as movie:
        frames = movie.read() * gain
    frames[4] = np.random.default_rng(0).poisson(frames[4].mean(), frames[4].shape)
    result = process(write_movie(tmp_path, frames), sampling_rate=1.5)
    assert "placed between their neighbours: 5" in result.reason
    assert result.quality["lost_frames"] == 1
    np.testing.assert_allclose(result.shifts[4], (result.shifts[3] + result.shifts[5]) / 2, atol=1e-6)
    assert (result.shift_errors[4] >= np.abs(result.shifts[5] - result.shifts[3]) - 1e-9).all()
    assert result.shift_errors[3].max() < 0.2
