import numpy as np
import pytest

from xmipp_accel.io.images import read_image
from xmipp_accel.io.movies import open_movie
from xmipp_accel.simulate.movies import MovieTruth, simulate_movie


def read(folder, name):
    with open_movie(folder / name) as movie:
        return movie.read()


def test_files_and_truth(tmp_path):
    truth = simulate_movie(tmp_path, size=(90, 120), frames=3, seed=1, sampling_rate=1.5)
    movie = read(tmp_path, truth.movie)
    gain, rate = read_image(tmp_path / truth.gain)
    assert movie.shape == truth.shape == (3, 90, 120)
    assert rate == pytest.approx(1.5)
    assert (gain == 0).sum() == len(truth.bad_pixels)
    assert not movie[:, truth.bad_pixels[:, 0], truth.bad_pixels[:, 1]].any()
    hot = movie.mean(axis=0)[truth.hot_pixels[:, 0], truth.hot_pixels[:, 1]]
    assert hot.mean() > 5 * movie.mean()
    assert movie.mean() == pytest.approx(1.5**2, rel=0.1)
    again = MovieTruth.from_json(tmp_path / "movie_truth.json")
    np.testing.assert_array_equal(again.field(10, 20, np.arange(3)), truth.field(10, 20, np.arange(3)))


def test_seed_decides(tmp_path):
    options = dict(size=64, frames=2)
    movies = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate_movie(tmp_path, name=name, seed=seed, **options)
        movies.append(read(tmp_path, f"{name}.mrc"))
    np.testing.assert_array_equal(movies[0], movies[1])
    assert (movies[0] != movies[2]).any()


def test_high_dose_needs_sixteen_bits(tmp_path):
    truth = simulate_movie(tmp_path, size=64, frames=2, dose_per_frame=150.0, hot_pixels=0)
    movie = read(tmp_path, truth.movie)
    assert movie.dtype == np.uint16
    assert movie.max() > 150


def test_motion_is_what_the_truth_says(tmp_path):
    """At very high dose, shifting frame t back by the truth makes it frame 0."""
    from xmipp_accel.kernels.reference.warp import warp

    truth = simulate_movie(
        tmp_path, size=160, frames=3, dose_per_frame=1000.0, drift=5.0, local=3.0, dead_pixels=0, hot_pixels=0
    )
    gain, _ = read_image(tmp_path / truth.gain)
    movie = read(tmp_path, truth.movie) * gain
    nodes = np.arange(0, 177, 16.0)
    y, x = np.meshgrid(nodes, nodes, indexing="ij")
    inner = slice(20, -20)
    back = warp(movie[2], truth.field(y, x, 2), 16)[inner, inner]
    first = movie[0][inner, inner]
    assert np.corrcoef(back.ravel(), first.ravel())[0, 1] > 0.9
    assert np.corrcoef(movie[2][inner, inner].ravel(), first.ravel())[0, 1] < 0.5
