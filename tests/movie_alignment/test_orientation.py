"""Rows of movies, references and defects, beside RELION 3.1 or later where it is installed."""

import subprocess

import numpy as np
import pytest

from tests.movie_alignment.test_relion import MOVIES, relion
from xmipp_accel.io.images import read_image, write_image, write_stack
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.io.tiff import write_tiff
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters

SHAPE = 192, 256
HOT = 120, 30  # (y, x)
BOX = 40, 20, 30, 12  # x, y, width, height
GAINS = ["gain.mrc", "gain.tif"]
DEFECTS = ["defects.txt", "map.mrc", "map.tif"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A still movie that no turn maps on itself, as MRC and TIFF; its references in both, and its average."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(1)
    x, y, width, height = BOX
    yy, xx = np.indices(SHAPE)
    sample = 20 + 15 * np.exp(-((yy - 40) ** 2 + (xx - 160) ** 2) / 800)
    sample *= rng.normal(1, 0.3, SHAPE).clip(0.1)
    gain = rng.uniform(0.7, 1.4, SHAPE).astype(np.float32)
    frames = rng.poisson(sample / gain, (6, *SHAPE)).clip(0, 100)
    average = frames.mean(axis=0) * gain
    frames[:, y : y + height, x : x + width] = 200  # above all others: seen, wherever defects are not repaired
    frames[:, HOT[0], HOT[1]] = 250
    defects = np.zeros(SHAPE, np.uint8)
    defects[y : y + height, x : x + width] = 1
    write_stack(folder / "movie.mrcs", frames, 1.5, np.int16)
    write_tiff(folder / "movie.tiff", frames[:, ::-1].astype(np.uint8), 1.5, "lzw")
    write_image(folder / "gain.mrc", gain, 1.5)
    write_tiff(folder / "gain.tif", gain[None, ::-1], 1.5)
    write_image(folder / "map.mrc", defects, 1.5)
    write_tiff(folder / "map.tif", defects[None, ::-1].astype(np.float32), 1.5)
    (folder / "defects.txt").write_text("{} {} {} {}\n".format(*BOX))
    return folder, average


def _ours(folder, movie, gain, defects):
    parameters = MovieAlignmentParameters(local_alignment=False)
    executor = MovieAlignmentExecutor(parameters, gain=folder / gain, defects=folder / defects)
    result = executor.process(folder / movie, folder / "ours")
    assert result.quality["gain_best_score"] == result.quality["gain_score"] > 0.5
    average, star = (result.output_path(key, folder / "ours") for key in ("unweighted", "star"))
    return read_image(average)[0], read_blocks(star)


def _relions(folder, movie, gain, defects):
    (folder / "movies.star").write_text(MOVIES.format(movie))
    options = dict(
        i="movies.star", o="relion/", gainref=gain, defect_file=defects, patch_x=1, patch_y=1, angpix=1.5
    )
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    subprocess.run(
        [relion("relion_run_motioncorr"), *arguments, "--use_own"], cwd=folder, check=True, capture_output=True
    )
    return read_image(folder / "relion" / "movie.mrc")[0] / 6, read_blocks(folder / "relion" / "movie.star")


@pytest.mark.parametrize("align", [_ours, _relions], ids=["ours", "relion"])
@pytest.mark.parametrize("movie", ["movie.mrcs", "movie.tiff"])
@pytest.mark.parametrize(("gain", "defects"), [*zip(GAINS, DEFECTS), ("gain.mrc", "map.tif")])
def test_rows_of_movies_gains_and_defects(scene, align, movie, gain, defects):
    folder, expected = scene
    average, star = align(folder, movie, gain, defects)
    x, y, width, height = BOX
    unlit = np.ones(SHAPE, bool)
    unlit[y : y + height, x : x + width] = False
    assert average.max() < 100
    assert np.corrcoef(average[unlit], expected[unlit])[0, 1] > 0.9
    assert abs(np.corrcoef(average[::-1][unlit], expected[unlit])[0, 1]) < 0.5
    spots = np.stack([star["hot_pixels"]["rlnCoordinateX"], star["hot_pixels"]["rlnCoordinateY"]], axis=1)
    assert [HOT[1], HOT[0]] in spots.astype(int).tolist()
