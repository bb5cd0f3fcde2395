import os
import subprocess
import sys

import pytest

from xmipp_accel import __version__, cli


def _help(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("movies", ["--max-shift", "[A] (default: 50.0)", "--gain ", "--device"]),
        ("align", ["--keep-best", "(default: 1)", "[degrees]", "--device"]),
        ("classify", ["--number-of-classes", "--iterations", "--initial-references", "--device"]),
        ("reconstruct", ["--symmetry", "(default: c1)", "--name", "--device"]),
        ("demo", ["--engine-only", "--seed", "--device"]),
    ],
)
def test_help_lists_parameters_with_units_and_defaults(capsys, command, parts):
    text = _help(capsys, command)
    for part in parts:
        assert part in text


def test_an_error_is_one_line_that_names_the_file(capsys, tmp_path):
    status = cli.main(["reconstruct", str(tmp_path / "absent.star"), "--output", str(tmp_path)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 1
    assert len(lines) == 1
    assert "absent.star" in lines[0]


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
