"""What the README's commands install."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
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
    command = tmp_path / "nvidia-smi"
    command.write_text(f'#!/bin/sh\necho "| NVIDIA-SMI 550.54   CUDA Version: {driver}   |"\n')
    command.chmod(0o755)
    environment = dict(os.environ, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    options = [f"DEVICE={device}", f"VENV={tmp_path / 'venv'}"]
    planned = subprocess.run(
        ["make", "--dry-run", "demo", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'".[{extras}]"' in planned.stdout
    assert f"--device {device} " in planned.stdout
