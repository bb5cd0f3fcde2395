"""RELION itself reads the metadata that its polishing starts from; only where RELION 3.1 or later is installed."""

import shutil
import subprocess

import numpy as np
import pytest

from tests.movie_alignment.test_executor import Movie
from xmipp_accel.io.tables import read_blocks

MOVIES = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
opticsGroup1 1 1.5 300 2.7 0.1

# version 30001

data_movies

loop_
_rlnMicrographMovieName #1
_rlnOpticsGroup #2
{} 1

"""


def relion(program):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relion")
    movie = Movie(folder, size=(240, 288), frames=8, sampling_rate=1.5, local=4.0, drift=5.0, seed=2)
    result = movie.align(dose_per_frame=1.0, first_frame=2)
    assert result.status == "local"
    return movie, result


@pytest.mark.parametrize(
    ("block", "labels", "rows"),
    [
        ("global_shift", ("rlnMicrographFrameNumber", "rlnMicrographShiftX", "rlnMicrographShiftY"), 8),
        ("local_motion_model", ("rlnMotionModelCoeffsIdx", "rlnMotionModelCoeff"), 36),
        ("hot_pixels", ("rlnCoordinateX", "rlnCoordinateY"), None),
    ],
)
def test_relion_prints_the_tables(aligned, block, labels, rows):
    movie, result = aligned
    path = result.output_path("star", movie.out)
    command = [relion("relion_star_printtable"), str(path), f"data_{block}", *(f"_{label}" for label in labels)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = np.array([line.split() for line in printed.splitlines() if line.strip()], dtype=float)
    columns = read_blocks(path)[block]
    np.testing.assert_array_equal(values, np.stack([columns[label] for label in labels], axis=1))
    assert len(values) == (rows or result.quality["bad_pixels"])


def test_relion_takes_our_alignment_for_its_own(aligned, tmp_path):
    """Started on a folder where all is done, it reads our file with its model of the motion, and sums up."""
    program = relion("relion_run_motioncorr")
    movie, result = aligned
    (tmp_path / "movies.star").write_text(MOVIES.format("Movies/movie.mrcs"))
    shutil.copytree(movie.out, tmp_path / "out" / "Movies")
    options = "--i movies.star --o out/ --use_own --only_do_unfinished --dose_per_frame 1.0".split()
    done = subprocess.run([program, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "ERROR: " not in done.stderr and "Ignoring unknown motion model" not in done.stderr
    table = read_blocks(tmp_path / "out" / "corrected_micrographs.star")["micrographs"]
    for part in ("total", "early", "late"):
        # In px, while the label is explained as A.
        found = table[f"rlnAccumMotion{part.title()}"][0] * 1.5
        assert found == pytest.approx(result.quality[f"{part}_motion"], abs=1e-4)
