"""What the README's commands install."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder, *arguments):
    """Run make with programs of `folder` in front of all others."""
    environment = dict(os.environ, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("device", "driver", "extras"),
    [
        ("cuda", "12.4", "test,cuda12"),
        ("cuda:1", "13.0", "test,cuda13"),
        ("cpu", "12.4", "test"),
        ("cuda", "", "test"),
    ],
)
def test_a_gpu_gets_cupy_for_its_driver(tmp_path, device, driver, extras):
    program(tmp_path / "nvidia-smi", f'echo "| NVIDIA-SMI 550.54   CUDA Version: {driver}   |"')
    planned = make(tmp_path, "--dry-run", "demo", f"DEVICE={device}", f"VENV={tmp_path / 'venv'}")
    assert f'".[{extras}]"' in planned.stdout
    assert f"--device {device} " in planned.stdout


def test_a_python_without_tkinter_is_passed_over_and_refused(tmp_path):
    lacking = (
        f'case "$2" in *tkinter*) echo "No module named tkinter" >&2; exit 1;; esac; exec {sys.executable} "$@"'
    )
    venv = f"VENV={tmp_path / 'venv'}"
    for version in ("3.11", "3.12", "3.9"):
        program(tmp_path / f"python{version}", lacking)
    program(tmp_path / "python3.10", "echo the/right/python")
    assert "the/right/python -m venv" in make(tmp_path, "--dry-run", "test", venv).stdout
    refused = make(tmp_path, "test", f"PYTHON={tmp_path / 'python3.11'}", venv)
    assert refused.returncode != 0
    assert "python3-tk" in refused.stdout
    assert not (tmp_path / "venv").exists()
