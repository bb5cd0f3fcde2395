"""CUDA sources compile although no GPU is here, as long as nvcc is."""

import re
import shutil
import subprocess

import pytest

from xmipp_accel.backend.kernels import CUDA_FOLDER

SOURCES = sorted(CUDA_FOLDER.glob("*.cu"))


def _architectures():
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    numbers = sorted(int(n) for n in re.findall(r"compute_(\d+)\b", listed))
    return [n for n in numbers if n >= 60][:1] + [n for n in numbers if n == 90]


@pytest.mark.parametrize("source", SOURCES, ids=[s.name for s in SOURCES])
def test_kernel_compiles_for_the_oldest_and_the_newest_devices(source, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    for number in _architectures():
        command = [
            "nvcc",
            "-std=c++17",
            "--ptx",
            f"-arch=compute_{number}",
            "-o",
            str(tmp_path / "out.ptx"),
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # What has a C++ name is compiled anew in every process.
        names = re.findall(r"\.entry (\w+)\(", (tmp_path / "out.ptx").read_text())
        assert not [name for name in names if name.startswith("_Z")]
