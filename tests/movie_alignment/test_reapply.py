"""An alignment that is applied again gives what it gave before."""

import json

import numpy as np
import pytest

from tests.movie_alignment.test_executor import Movie
from tests.movie_alignment.test_metadata import example
from xmipp_accel import cli
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.images import read_image, read_stack, write_image, write_stack
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters, MovieAlignmentResult
from xmipp_accel.movie_alignment.metadata import write_xmd
from xmipp_accel.movie_alignment.reapply import saved_motion
from xmipp_accel.numerics import bspline


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return Movie(folder, size=(240, 288), frames=8, sampling_rate=1.5, dose_per_frame=2.0, local=4.0, drift=5.0)


def apply(small, alignment, name, **parameters):
    executor = MovieAlignmentExecutor(MovieAlignmentParameters(**parameters), gain=small.gain)
    result = executor.process(small.path, small.folder / name, alignment=alignment)
    return result, {key: small.folder / name / file for key, file in result.outputs.items()}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(("suffix", "tolerance"), [("json", 0.0), ("xmd", 1e-4)])
def test_averages_come_out_the_same(small, local, suffix, tolerance):
    wanted = dict(dose_per_frame=2.0, local_alignment=local)
    first = small.align(**wanted)
    images = {key: small.image(first, key) for key in ("unweighted", "dose_weighted")}
    result, files = apply(small, small.out / f"movie.{suffix}", f"{suffix}{local}", **wanted)
    assert result.status == first.status == ("local" if local else "global")
    assert result.alignment == str(small.out / f"movie.{suffix}")
    assert (result.reference_frame, first.alignment) == (first.reference_frame, "")
    assert result.quality["total_motion"] == pytest.approx(first.quality["total_motion"])
    for key, image in images.items():
        np.testing.assert_allclose(read_image(files[key])[0], image, atol=tolerance)
    n, ny, nx = small.truth.shape
    t, y, x = np.meshgrid(np.arange(n), np.linspace(0, ny - 1, 5), np.linspace(0, nx - 1, 5), indexing="ij")
    np.testing.assert_allclose(result.field(y, x, t), first.field(y, x, t), atol=1e-6)


def test_other_outputs_from_the_same_alignment(small):
    """Nothing is measured again: a low-pass that would change the shifts does not."""
    first = small.align()
    expected = small.image(small.align(bin_factor=2.0, save_even_odd=True))
    result, files = apply(
        small, small.folder / f"run{small.runs - 1}" / "movie.json", "binned",
        bin_factor=2.0, save_even_odd=True, max_resolution=40.0,
    )  # fmt: skip
    np.testing.assert_array_equal(result.shifts, first.shifts)
    np.testing.assert_array_equal(result.shift_errors, first.shift_errors)
    np.testing.assert_array_equal(read_image(files["unweighted"])[0], expected)
    assert files["even"].exists()
    assert result.quality["detection"] == first.quality["detection"]


def test_a_warning_about_the_gain_is_of_the_gain_that_is_used(small):
    turned = small.folder / "turned.mrc"
    write_image(turned, read_image(small.gain)[0][::-1], 1.5)
    warnings = []
    for gain, name in ((turned, "first"), (turned, "again"), (small.gain, "right")):
        executor = MovieAlignmentExecutor(MovieAlignmentParameters(last_frame=9), gain=gain)
        alignment = small.folder / "first" / "movie.json" if warnings else None
        result = executor.process(small.path, small.folder / name, alignment=alignment)
        warnings.append(result.reason.count("gain_flip"))
        assert result.reason.count("not 9") == 1
    assert warnings == [1, 1, 0]


def test_an_alignment_of_part_of_the_frames(small):
    first = small.align(first_frame=3, last_frame=7)
    image = small.image(first)
    for suffix in ("json", "xmd"):
        path = small.out / f"movie.{suffix}"
        _, files = apply(small, path, f"part_{suffix}", first_frame=3, last_frame=7)
        np.testing.assert_allclose(read_image(files["unweighted"])[0], image, atol=1e-4)
        with pytest.raises(InputFileError, match=r"frames 1 to 8 of 8.*found frames 3 to 7 of 8") as caught:
            apply(small, path, "wrong")
        assert str(path) in str(caught.value)
    assert not (small.folder / "wrong" / "movie.json").exists()


def test_a_movie_of_another_shape_or_length_is_refused(small, tmp_path):
    small.align(local_alignment=False)
    executor = MovieAlignmentExecutor(MovieAlignmentParameters())
    frames = read_stack(small.path)
    for number, (changed, found) in enumerate([(frames[:7], "7 of 7"), (frames[:, :200], "200 x 288")]):
        path = tmp_path / f"{number}.mrc"
        write_stack(path, changed, 1.5)
        with pytest.raises(InputFileError, match=f"{found}.*8 of 8, 240 x 288"):
            executor.process(path, tmp_path / "out", alignment=small.out / "movie.json")
    with pytest.raises(InputFileError, match="7 of 7"):
        executor.process(tmp_path / "0.mrc", tmp_path / "out", alignment=small.out / "movie.xmd")
    assert not list((tmp_path / "out").glob("*"))


def test_files_that_are_no_alignment_are_refused(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text(
        json.dumps(dict.fromkeys(MovieAlignmentResult.__dataclass_fields__, 1) | {"z": 1})
    )
    (tmp_path / "c.xmd").write_text("data_other\nloop_\n_a\n1\n")
    (tmp_path / "d.xmd").write_text(
        "data_referenceFrame\nloop_\n_ref\n0\ndata_frameShifts\nloop_\n_enabled\n_shiftX\n_shiftY\n-1 0 0\n"
    )
    reasons = {"a.json": "no control_points", "b.json": "z where", "c.xmd": "shiftX", "d.xmd": "enabled"}
    for name, reason in {**reasons, "absent.json": "readable"}.items():
        with pytest.raises(InputFileError, match=reason) as caught:
            saved_motion(tmp_path / name, 1, 1, 1, (2, 2))
        assert name in str(caught.value)


def flexalign_field(points, t, y, x, lengths):
    """FlexAlign's sum over control points -1 to l - 2 at distances h = length / (l - 3), or length for l = 3."""
    bases = []
    for position, length, count in zip((t, y, x), lengths, points.shape[:3]):
        h = length / max(1, count - 3)
        bases.append(bspline.cubic_bspline(np.ravel(position)[:, None] / h - np.arange(-1, count - 1)))
    return np.einsum("pi,pj,pk,ijkc->pc", *bases, points).reshape((*t.shape, 2))


@pytest.mark.parametrize("counts", [(5, 4, 6), (5, 3, 3), (3, 5, 4)])
def test_the_motion_that_flexalign_wrote(tmp_path, counts):
    """Its spline has fewer control points in time than there are frames, and differs from the frames' shifts."""
    rng = np.random.default_rng(0)
    result = example(first=0)
    object.__setattr__(result, "n_frames", 7)
    write_xmd(tmp_path / "m.xmd", result)
    points = rng.normal(size=(*counts, 2))
    vectors = [counts[:0:-1], points[..., 1].ravel(), points[..., 0].ravel(), counts[::-1]]
    quoted = ["' " + " ".join(f"{v:.17g}" for v in vector) + " '" for vector in vectors]
    lines = (tmp_path / "m.xmd").read_text().splitlines()
    row = next(k for k, line in enumerate(lines) if line.startswith(" ' "))
    lines[row] = f" {quoted[0]} {quoted[1]} {quoted[2]} 0 0 {quoted[3]}"
    (tmp_path / "m.xmd").write_text("\n".join(lines) + "\n")
    motion = saved_motion(tmp_path / "m.xmd", 7, 1, 7, (200, 300))
    applied = example(first=0)
    object.__setattr__(applied, "shifts", motion.shifts)
    object.__setattr__(applied, "control_points", motion.control_points)
    t, y, x = np.meshgrid(np.arange(7), np.linspace(0, 199, 4), np.linspace(0, 299, 5), indexing="ij")
    expected = flexalign_field(points, t, y, x, (7.0, 200.0, 300.0))
    np.testing.assert_allclose(applied.field(y, x, t), expected, atol=1e-6)


def test_command_line(small, capsys):
    small.align(name="movie", local_alignment=False)
    options = ["movies", str(small.path), "--gain", str(small.gain), "--device", "cpu", "--output"]
    status = cli.main([*options, str(small.folder / "cli"), "--apply-alignment", str(small.out)])
    assert status == 0
    expected, found = (read_image(folder / "movie.mrc")[0] for folder in (small.out, small.folder / "cli"))
    np.testing.assert_array_equal(found, expected)
    capsys.readouterr()
    assert cli.main([*options, str(small.folder / "none"), "--apply-alignment", str(small.folder / "absent")]) == 1
    assert "movie.json" in capsys.readouterr().err
