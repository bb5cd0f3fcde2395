"""What the benchmarks rest on: the truth of their movies, the reading of RELION's motion, the sums of a trace."""

import dataclasses

import numpy as np
import pytest

from benchmarks.drifting_movie import write_movie
from benchmarks.gpu_activity import activity
from benchmarks.movie_data import simulated_movie, with_bad_pixels
from benchmarks.movie_peers import read_relion
from xmipp_accel.io.images import read_image, write_image
from xmipp_accel.io.movies import open_movie
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters
from xmipp_accel.movie_alignment.metadata import relion_polynomial
from xmipp_accel.report.evaluate import shift_rmse


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drifting")
    shifts, gain = write_movie(folder / "movie.mrc", (6, 250, 322), 1.5, np, exposure=3.0, seed=4)
    write_image(folder / "gain.mrc", gain, 1.5)
    return folder, shifts, gain


def test_drifting_movie_moves_as_it_says(drifting):
    folder, shifts, _ = drifting
    parameters = MovieAlignmentParameters(local_alignment=False)
    executor = MovieAlignmentExecutor(parameters, gain=folder / "gain.mrc")
    result = executor.process(folder / "movie.mrc", folder / "out")
    assert np.hypot(*shifts[-1]) > 5
    assert shift_rmse(result.shifts, shifts) < 0.1


def test_drifting_movie_counts_electrons(drifting):
    folder, _, gain = drifting
    movie = open_movie(folder / "movie.mrc")
    assert (movie.shape, movie.dtype, movie.sampling_rate) == ((6, 250, 322), np.int8, 1.5)
    frames = movie.read()
    assert frames.mean() == pytest.approx(3.0, rel=0.03)
    assert np.var(frames[0]) == pytest.approx(3.0 + (3.0 * 0.12) ** 2, rel=0.1)
    assert 0.03 < gain.std() < 0.05


@pytest.fixture(scope="module")
def doming(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doming")
    return simulated_movie(folder, "dome", 4.0, 2, 2.0, 256, 8)


def test_bad_pixels_are_not_in_the_gain(doming, tmp_path):
    bad = with_bad_pixels(doming, tmp_path, "bad")
    before, after = open_movie(doming.path).read().astype(int), open_movie(bad.path).read().astype(int)
    changed = (before != after).all(axis=0)
    assert changed.mean() == pytest.approx(0.005, rel=0.3)
    dead = changed & (after == 0).all(axis=0)
    assert dead.sum() == pytest.approx(changed.sum() / 2, rel=0.3)
    np.testing.assert_array_equal(read_image(bad.gain)[0], read_image(doming.gain)[0])


def test_relion_motion_is_read_with_its_signs_and_order(doming, tmp_path):
    """The executor's own STAR holds RELION's model of a known field."""
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(), gain=doming.gain)
    result = executor.process(doming.path, tmp_path)
    assert result.status == "local"
    motion = read_relion(tmp_path / result.outputs["star"])
    rms = relion_polynomial(result)[2]
    assert shift_rmse(doming.sample(motion.field), doming.sample(result.field)) < 2 * rms + 0.02
    for wrong in (motion.coefficients[::-1], -motion.coefficients, 0 * motion.coefficients):
        other = dataclasses.replace(motion, coefficients=wrong)
        assert shift_rmse(doming.sample(other.field), doming.sample(result.field)) > 0.5
    assert shift_rmse(doming.sample(motion.field), doming.field) < 0.3


def test_trace_counts_overlapping_work_once():
    kernel, up, down = (
        dict(cat="kernel", name="warp", ts=0.0, dur=10.0),
        dict(cat="gpu_memcpy", name="Memcpy HtoD (Pinned -> Device)", ts=5.0, dur=10.0, args={"bytes": 4000}),
        dict(cat="gpu_memcpy", name="Memcpy DtoH (Device -> Pageable)", ts=20.0, dur=1.0, args={"bytes": 1000}),
    )
    found = activity([up, kernel, down, dict(cat="cpu_op", name="other", ts=0.0, dur=99.0), {"ph": "M"}])
    assert found["kernel_s"] == pytest.approx(10e-6)
    assert found["copy_s"] == pytest.approx(11e-6)
    assert found["kernel_or_copy_s"] == pytest.approx(16e-6)
    assert (found["kernels"], found["up_gb"], found["down_gb"]) == (1, 4e-6, 1e-6)
