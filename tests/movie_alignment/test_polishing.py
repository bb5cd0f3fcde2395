"""The references named for RELION do to the raw frames what the alignment did."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.io.samples import eer_bytes, electron_events
from xmipp_accel.io.gains import FLIPS, read_defects, read_reference
from xmipp_accel.io.images import read_image, write_image, write_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters

SHAPE = (48, 64)


@pytest.fixture
def movie(tmp_path):
    """Still frames: noise without a common scene is not aligned, and averaged as it is."""
    frames = np.random.default_rng(0).poisson(5, (6, *SHAPE)).astype(np.float32)
    write_stack(tmp_path / "movie.mrc", frames, 1.0)
    write_stack(tmp_path / "movie.tif", frames, 1.0)
    return tmp_path / "movie.mrc"


def gain_image(shape=SHAPE):
    gain = np.random.default_rng(1).uniform(0.9, 1.1, shape).astype(np.float32)
    gain[3, 5] = 0
    return gain


def align(path, folder="out", gain=None, defects=None, **options):
    parameters = MovieAlignmentParameters(**{"repair_bad_pixels": False, "check_gain": False, **options})
    executor = MovieAlignmentExecutor(parameters, gain=gain, defects=defects)
    result = executor.process(path, path.parent / folder)
    general = read_blocks(path.parent / folder / result.outputs["star"])["general"]
    average = read_image(path.parent / folder / result.outputs["unweighted"])[0]
    assert result.status == "not aligned"
    return general, average


def relion_average(movie, gain):
    """Mean of the frames times the file, as RELION does it with movies that are counts."""
    with open_movie(movie) as reader:
        return reader.read().astype(np.float64).mean(axis=0) * read_reference(gain)


def test_a_gain_that_is_used_as_it_is_keeps_its_name(movie):
    gain = movie.parent / "gain.mrc"
    write_image(gain, gain_image(), 1.0)
    general, average = align(movie, gain=gain)
    assert general["rlnMicrographGainName"] == [str(gain)]
    np.testing.assert_allclose(average, relion_average(movie, gain), rtol=1e-5, atol=1e-5)
    assert not list(movie.parent.glob("out/gain_*"))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (SHAPE[::-1], dict(gain_rotation=90)),
        (SHAPE, dict(gain_rotation=180, gain_flip="left_right")),
        (SHAPE, dict(gain_mode="divide")),
        ((96, 128), {}),
        ((24, 32), dict(gain_flip="up_down", gain_mode="divide")),
    ],
)
@pytest.mark.parametrize("suffix", [".mrc", ".tif"])
def test_any_other_gain_is_written_as_it_was_applied(movie, shape, options, suffix):
    movie = movie.with_suffix(suffix)
    gain = movie.parent / f"gain{suffix}"
    write_image(gain, gain_image(shape), 1.0)
    general, average = align(movie, gain=gain, **options)
    (named,) = general["rlnMicrographGainName"]
    assert os.path.isabs(named) and "/out/gain_applied_" in named
    np.testing.assert_allclose(average, relion_average(movie, named), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".mrc", ".tif"])
def test_a_gain_of_another_format_keeps_its_name(movie, suffix):
    """Both read TIFF images from the last row on."""
    movie, gain = movie.with_suffix(suffix), movie.parent / f"gain{'.tif' if suffix == '.mrc' else '.mrc'}"
    write_image(gain, gain_image(), 1.0)
    general, average = align(movie, gain=gain)
    assert general["rlnMicrographGainName"] == [str(gain)]
    np.testing.assert_allclose(average, relion_average(movie, gain), rtol=1e-5, atol=1e-5)


def test_negative_factors_are_defects_for_relion_too(movie):
    image = gain_image()
    image[7, 7] = -1
    write_image(movie.parent / "gain.mrc", image, 1.0)
    (named,) = align(movie, gain=movie.parent / "gain.mrc")[0]["rlnMicrographGainName"]
    assert read_image(named)[0][7, 7] == 0


def test_the_file_tells_its_content_and_is_written_once(movie):
    """Several threads and runs share a folder; another gain gets another name."""
    gain = movie.parent / "gain.mrc"
    write_image(gain, gain_image(), 1.0)
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(gain_mode="divide", check_gain=False), gain=gain)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: executor.process(movie, movie.parent / "out", f"m{k}"), range(4)))
    (written,) = (movie.parent / "out").glob("gain_applied_*")
    before = written.stat().st_mtime_ns, written.stat().st_ino
    align(movie, gain=gain, gain_mode="divide")
    assert (written.stat().st_mtime_ns, written.stat().st_ino) == before
    align(movie, gain=gain, gain_mode="divide", gain_rotation=180)
    assert len(list((movie.parent / "out").glob("gain_applied_*"))) == 2


# --- movies of electron events


def relion_divides(path):
    """Factors that RELION makes of a gain which is not a .gain file: the mean over all pixels by each."""
    response = read_image(path)[0].astype(np.float64)
    return np.divide(response.mean(), response, out=np.zeros_like(response), where=response != 0)


@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("mode", ["auto", "multiply"])
def test_electron_events(tmp_path, mode, flip):
    rng = np.random.default_rng(0)
    movie = tmp_path / "movie.eer"
    movie.write_bytes(eer_bytes(electron_events((6, 64, 64), 0.3), (64, 64)))
    response = tmp_path / "gain.mrc"
    image = rng.uniform(0.8, 1.25, (64, 64)).astype(np.float32)
    write_image(response, image, 1.0)
    parameters = MovieAlignmentParameters(
        eer_frames=3, sampling_rate=1.0, gain_mode=mode, gain_flip=flip, repair_bad_pixels=False, check_gain=False
    )
    result = MovieAlignmentExecutor(parameters, gain=response).process(movie, tmp_path / "out")
    (named,) = read_blocks(tmp_path / "out" / result.outputs["star"])["general"]["rlnMicrographGainName"]
    assert (named == str(response)) == (mode == "auto" and flip == "none")
    with open_movie(movie, 3) as reader:
        expected = reader.read().astype(np.float64).mean(axis=0) * relion_divides(named)
    average = read_image(tmp_path / "out" / result.outputs["unweighted"])[0]
    # RELION's factors have a mean of their own.
    np.testing.assert_allclose(average / average.mean(), expected / expected.mean(), rtol=1e-4, atol=1e-6)


# --- defects


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        ("d.txt", "1 2 3 4\n10 20 5 6\n", True),
        ("d.txt", "# bad columns\n1 2 3 4\n", False),
        ("d.txt", "1 2 3 4  # bad\n", False),
        ("d.defects", "1 2 3 4\n", False),
    ],
)
def test_lists_of_defects_that_relion_cannot_read_become_maps(movie, name, text, kept):
    defects = movie.parent / name
    defects.write_text(text)
    for path in (movie, movie.with_suffix(".tif")):
        (named,) = align(path, defects=defects)[0]["rlnMicrographDefectFile"]
        if kept:
            assert named == str(defects)
        else:
            np.testing.assert_array_equal(read_image(named)[0], read_defects(defects, SHAPE))


def test_a_map_of_defects_keeps_its_name(movie):
    for suffix in (".mrc", ".tif"):
        path = movie.parent / f"defects{suffix}"
        write_image(path, (gain_image() > 1.08).astype(np.float32), 1.0)
        assert align(movie, defects=path)[0]["rlnMicrographDefectFile"] == [str(path)]
