import os
import subprocess
import sys

import pytest

from xmipp_accel import __version__, cli
from xmipp_accel.backend import inventory
from xmipp_accel.errors import ParameterError
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.simulate.particles import simulate_particles


def _help(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("movies", ["--max-shift", "[A] (default: 50.0)", "--gain ", "--device"]),
        ("tracks", ["coordinates", "--output", "STAR file"]),
        (
            "align",
            [
                "--keep-best",
                "(default: 1)",
                "[degrees]",
                "--device",
                "--compat",
                "--algorithm xmipp --max-shift 25",
            ],
        ),
        (
            "classify",
            ["--initial-references", "--continue STATE", "--fixed-references", "--scratch STR", "cuda:0,cuda:1"],
        ),
        ("initial-volume", ["--alpha-start", "(default: 80.0)", "--reference", "--device"]),
        (
            "reconstruct",
            [
                "--symmetry",
                "(default: c1)",
                "--regularisation",
                "--mask-file",
                "--error-groups",
                "--state FOLDER",
                "--scratch STR",
                "--device",
            ],
        ),
        ("merge-states", ["states", "--state FOLDER", "--output", "--name", "cuda:0,cuda:1"]),
        ("tune", ["--box", "--show", "--symmetry", "--device"]),
        ("demo", ["--engine-only", "--seed", "--device"]),
    ],
)
def test_help_lists_parameters_with_units_and_defaults(capsys, command, parts):
    text = _help(capsys, command)
    for part in parts:
        assert part in text


def test_compat_sets_the_parameters_that_reproduce_an_original():
    """The original Align Significant searches shifts of up to a quarter of the box."""
    parse = cli.build_parser().parse_args
    align = ["align", "p.star", "v.mrc", "--output", "o"]
    read = AlignSignificantParameters.from_arguments
    assert read(parse(align)) == AlignSignificantParameters()
    original = AlignSignificantParameters(algorithm="xmipp", max_shift=25.0, max_shift_unit="%")
    assert read(parse([*align, "--compat", "xmipp"])) == original
    smaller = read(parse([*align, "--compat", "xmipp", "--max-shift", "4", "--max-shift-unit", "px"]))
    assert smaller == AlignSignificantParameters(algorithm="xmipp", max_shift=4.0, max_shift_unit="px")
    reconstruct = ["reconstruct", "p.star", "--output", "o", "--compat"]
    for name, method in (("xmipp", "xmipp"), ("xmipp-fast", "xmipp_fast")):
        assert ReconstructFourierParameters.from_arguments(parse([*reconstruct, name])).method == method
    with pytest.raises(SystemExit):
        parse([*align, "--compat", "relion"])


def test_an_error_is_one_line_that_names_the_file(capsys, tmp_path):
    status = cli.main(["reconstruct", str(tmp_path / "absent.star"), "--output", str(tmp_path)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert len(lines) == 1
    assert "absent.star" in lines[0]


def test_the_process_ends_with_the_status_and_all_that_was_said(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

    def run(*words):
        words = [sys.executable, "-m", "xmipp_accel.cli", *words]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = run("reconstruct", "absent.star", "--output", "out")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "absent.star" in done.stderr
    done = run("tune", "--show")
    assert done.returncode == 0 and done.stdout.endswith("\n") and not done.stderr
    assert run("align").returncode == 2


def test_a_parameter_out_of_range_is_one_line(capsys, tmp_path):
    status = cli.main(["movies", "a.mrc", "--output", str(tmp_path), "--bin-factor", "0.2"])
    assert status == 1
    assert capsys.readouterr().err.strip() == "xmipp-accel movies: bin_factor: expected at least 1, found 0.2"


def test_doctor_tells_versions_devices_and_why_no_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "xmipp_accel.cli", "doctor"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = dict(line.split(None, 1) for line in done.stdout.splitlines() if " " in line)
    assert rows["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert __version__ in done.stdout
    assert "would be used           cpu" in done.stdout
    assert "CUDA_VISIBLE_DEVICES" in done.stdout
    assert "GiB free" in done.stdout


def test_doctor_tells_that_several_gpus_can_share(monkeypatch):
    monkeypatch.setattr(inventory, "cuda_status", lambda: (2, ""))
    monkeypatch.setattr(inventory, "_gpus", list)
    assert "cuda:0,cuda:1" in dict(inventory.describe_machine())["more GPUs"]


def test_tune_measures_and_shows_what_was_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["tune", "--box", "20", "--device", "cpu"]) == 0
    measured = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in measured[-2:]] == [["40", "(2)"], ["42", "(2.1)"]]
    assert cli.main(["tune", "--show"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert str(tmp_path) in shown[0] and "box 20" in shown[1]
    assert [line.split()[1:] for line in shown[-2:]] == [line.split()[2:] for line in measured[-2:]]
    assert cli.main(["tune", "--box", "2"]) == 1
    assert "--box: expected 4 px or more, found 2" in capsys.readouterr().err


def test_an_unusable_file_of_frame_groups_is_told_once(capsys, tmp_path):
    (tmp_path / "groups.txt").write_text("10 ten\n")
    groups = str(tmp_path / "groups.txt")
    arguments = ["movies", "a.mrc", "b.mrc", "--output", str(tmp_path), "--frame-groups", groups]
    assert cli.main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "groups.txt: expected" in line and "line 1" in line


def test_movies_reports_each_movie_and_goes_on_after_a_bad_one(capsys, tmp_path):
    from xmipp_accel.simulate.movies import simulate_movie

    simulate_movie(tmp_path, name="good", size=192, frames=6, local=0.0, drift=3.0)
    whole = (tmp_path / "good.mrc").read_bytes()
    (tmp_path / "cut.mrc").write_bytes(whole[: len(whole) // 2])
    movies = [str(tmp_path / "cut.mrc"), str(tmp_path / "good.mrc")]
    status = cli.main(
        ["movies", *movies, "--gain", str(tmp_path / "good_gain.mrc"), "--output", str(tmp_path / "out")]
    )
    shown = capsys.readouterr()
    assert status == 1
    assert "cut.mrc" in shown.err and "expected" in shown.err
    assert "1 of 2 movies aligned" in shown.out
    assert (tmp_path / "out" / "good.json").exists()
    assert not list((tmp_path / "out").glob("cut*"))


def test_alignment_takes_several_devices(monkeypatch, tmp_path):
    from xmipp_accel.backend import devices
    from xmipp_accel.particle_alignment import executor

    simulate_particles(tmp_path, 4, 16, 6.0, 1.0)
    taken = []

    class Executor:
        def __init__(self, parameters, *chosen):
            taken.extend(map(str, chosen))

        def align(self, *arguments, **options):
            raise ParameterError("enough")

    monkeypatch.setattr(executor, "AlignSignificantExecutor", Executor)
    monkeypatch.setattr(devices, "cuda_status", lambda: (2, ""))
    command = ["align", str(tmp_path / "particles.star"), "volume.mrc", "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--device", "cuda:1,cuda:0"]) == 1
    assert taken == ["cuda:1", "cuda:0"]
