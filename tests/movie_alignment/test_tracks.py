"""Tracks of particles against the truth, and their tables."""

import numpy as np
import pytest

from tests.movie_alignment.test_correct import stretched_positions
from tests.movie_alignment.test_metadata import example
from xmipp_accel import cli
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.coordinates import read_coordinates
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.tables import read_blocks, write_blocks
from xmipp_accel.movie_alignment import MovieAlignmentParameters
from xmipp_accel.movie_alignment.correct import MotionCorrector, corrected_averages
from xmipp_accel.movie_alignment.magnification import Magnification
from xmipp_accel.movie_alignment.prepare import PreparedMovie
from xmipp_accel.movie_alignment.tracks import particle_tracks, read_particles_of

POINTS = np.array([[20.0, 30.0], [150.5, 250.25], [0.0, 0.0], [199.0, 299.0]])


def result_with(local=True, **parameters):
    result = example(local)
    result.parameters.update(MovieAlignmentParameters(**parameters).to_dict())
    object.__setattr__(result, "output_sampling_rate", result.sampling_rate * parameters.get("bin_factor", 1.0))
    return result


@pytest.mark.parametrize("local", [True, False])
def test_displacement_is_minus_the_translation_to_apply(local):
    """At every frame and particle the cubic B-spline, written out, and the whole frame's shift."""
    result = result_with(local)
    places, displacements = particle_tracks(result, POINTS)
    assert places.shape == displacements.shape == (4, 7, 2)
    np.testing.assert_allclose(places, POINTS[:, None] + displacements)
    for (y, x), way in zip(POINTS, displacements):
        for t in range(7):
            expected = result.shifts[t] + (spline(result.control_points, t, y, x) if local else 0)
            np.testing.assert_allclose(way[t], -expected, atol=1e-12)


def spline(points, t, y, x):
    def basis(u):
        u = abs(u)
        return 2 / 3 - u**2 + u**3 / 2 if u < 1 else max(2 - u, 0) ** 3 / 6

    (nt, ny, nx), total = points.shape[:3], np.zeros(2)
    for i in range(nt):
        for j in range(ny):
            for k in range(nx):
                weight = basis(t * (nt - 3) / 7 - i + 1) * basis(y * (ny - 3) / 200 - j + 1)
                total += weight * basis(x * (nx - 3) / 300 - k + 1) * points[i, j, k]
    return total


def test_positions_in_binned_averages():
    plain, binned = result_with(), result_with(bin_factor=2.0)
    np.testing.assert_allclose(particle_tracks(binned, POINTS / 2)[0], particle_tracks(plain, POINTS)[0])
    # 1.7 makes 200 x 300 px into 116 x 176, which is not the same along both axes.
    uneven = result_with(bin_factor=1.7)
    np.testing.assert_allclose(
        particle_tracks(uneven, POINTS * (116 / 200, 176 / 300))[0], particle_tracks(plain, POINTS)[0]
    )


def test_stretched_averages():
    factors = dict(mag_major=1.05, mag_minor=0.98, mag_angle=30.0)
    y, x = np.array([[100.0, 60.0, 140.0], [150.0, 220.0, 30.0]])
    stretched = np.stack(stretched_positions(y, x, *factors.values(), (200, 300)), axis=1)
    found = particle_tracks(result_with(**factors), stretched)
    expected = particle_tracks(result_with(), np.stack([y, x], axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("stretch", [1.0, 1.1])
def test_particles_lie_where_the_tracks_say(stretch):
    """Spots are drawn into frames where the tracks have them; the average then shows them at their positions."""
    parameters = dict(mag_major=stretch, mag_angle=20.0, bin_factor=2.0)
    result = result_with(**parameters)
    object.__setattr__(result, "control_points", 3 * result.control_points)
    wanted = np.array([[30.0, 40.0], [52.5, 90.0], [70.25, 120.5]])
    places, _ = particle_tracks(result, wanted)
    y, x = np.mgrid[:200, :300]
    frames = np.zeros((7, 200, 300), np.float32)
    for t in range(7):
        for py, px in places[:, t]:
            frames[t] += np.exp(-((y - py) ** 2 + (x - px) ** 2) / 18)
    magnification = Magnification(stretch, 1.0, 20.0, (200, 300))
    corrector = MotionCorrector(result.shifts, result.control_points, (200, 300), magnification)
    images, _ = corrected_averages(
        PreparedMovie(frames), range(7), corrector, MovieAlignmentParameters(**parameters), 1.1, np.zeros(7)
    )
    for py, px in wanted:
        window = images["unweighted"][round(py) - 6 : round(py) + 7, round(px) - 6 : round(px) + 7]
        v, u = np.mgrid[-6:7, -6:7]
        centre = [round(py) + (v * window).sum() / window.sum(), round(px) + (u * window).sum() / window.sum()]
        np.testing.assert_allclose(centre, [py, px], atol=0.05)


def test_command_line_writes_a_row_for_each_particle_and_frame(tmp_path, capsys):
    result = result_with()
    write_json(tmp_path / "m.json", result.to_json())
    table = {
        "rlnMicrographName": ["job/other.mrc", "job/m.mrc", "job/m.mrc"],
        "rlnCoordinateX": np.array([1.0, 30.0, 250.25]),
        "rlnCoordinateY": np.array([2.0, 20.0, 150.5]),
    }
    write_blocks(tmp_path / "c.star", {"optics": {"rlnOpticsGroup": [1]}, "particles": table})
    output = tmp_path / "new" / "tracks.star"
    assert cli.main(["tracks", str(tmp_path / "m.json"), str(tmp_path / "c.star"), "--output", str(output)]) == 0
    assert "2 particles in 7 frames" in capsys.readouterr().out
    blocks = read_blocks(output)
    assert blocks["general"]["rlnMicrographMovieName"] == ["/data/m.mrc"]
    tracks, (places, displacements) = blocks["tracks"], particle_tracks(result, POINTS[:2])
    np.testing.assert_array_equal(tracks["rlnImageId"], [2] * 7 + [3] * 7)
    np.testing.assert_array_equal(tracks["rlnMicrographFrameNumber"], list(range(2, 9)) * 2)
    found = np.stack([tracks["rlnCoordinateY"], tracks["rlnCoordinateX"]], axis=1)
    np.testing.assert_allclose(found, places.reshape(-1, 2), rtol=1e-9)
    found = np.stack([tracks["rlnMicrographShiftY"], tracks["rlnMicrographShiftX"]], axis=1)
    np.testing.assert_allclose(found, -displacements.reshape(-1, 2), rtol=1e-9)


def test_coordinates_of_xmipp_and_without_micrographs(tmp_path):
    write_blocks(tmp_path / "c.xmd", {"particles": {"xcoor": [30, 7], "ycoor": [20, 8]}})
    positions, rows = read_particles_of(example(), tmp_path / "c.xmd")
    np.testing.assert_array_equal(positions, [[20, 30], [8, 7]])
    np.testing.assert_array_equal(rows, [1, 2])


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"xcoor": [1, 2]}, "ycoor"),
        ({"a": [1, 2]}, "rlnCoordinateX or xcoor"),
        ({"xcoor": [1, 2], "ycoor": [1, "x"]}, "numbers in ycoor"),
        ({"xcoor": [1, 2], "ycoor": [1, 2], "micrograph": ["a.mrc", "b.mrc"]}, "particles of m"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, table, reason):
    write_blocks(tmp_path / "c.xmd", {"particles": table})
    with pytest.raises(InputFileError, match=reason):
        read_particles_of(example(), tmp_path / "c.xmd")


def test_no_particles(tmp_path):
    (tmp_path / "c.xmd").write_text("data_particles\nloop_\n_xcoor\n_ycoor\n")
    assert read_coordinates(tmp_path / "c.xmd")[0].shape == (0, 2)
    assert particle_tracks(example(), np.zeros((0, 2)))[0].shape == (0, 7, 2)


def test_results_of_unknown_parameters_are_refused():
    result = example()
    result.parameters["unknown"] = 1
    with pytest.raises(ParameterError, match="unknown"):
        particle_tracks(result, POINTS)
