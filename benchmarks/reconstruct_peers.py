"""Programs that reconstruct a map of the same particles, each in a process of its own, and the maps' quality."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.fsc import fourier_shell_correlation, resolution_at, soft_sphere
from xmipp_accel.numerics.rotations import euler_to_matrix

RELION = "relion_reconstruct"
MASK_RADIUS, MASK_EDGE = 45, 4.0  # px
REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """One program's run.

    Attributes
    ----------
    wall, processor : float
        Seconds of the process, and of all its threads.
    start_up : float
        Seconds of `wall` outside the reconstruction itself; 0 where not known.
    resolution : float
        A, where the FSC of its map with the truth falls below 0.5 in a soft sphere whose edge is halfway
        down at `MASK_RADIUS`.
    """

    wall: float
    processor: float
    start_up: float
    resolution: float


def run_relion(made, folder) -> Run:
    """``relion_reconstruct --ctf --pad 2``."""
    folder = _emptied(folder)
    # RELION looks for stacks in the folder that it runs in.
    command = [RELION, "--i", made.star.name, "--o", folder / "map.mrc", "--ctf", "--pad", 2]
    wall, processor = timed(command, made.star.resolve().parent, folder / "log.txt")
    return Run(wall, processor, 0.0, score(folder / "map.mrc", made.volume))


def run_ours(made, folder, *options) -> Run:
    """``xmipp-accel reconstruct`` on the CPU; the median of `REPEATS` runs in wall time."""
    folder = _emptied(folder)
    command = [sys.executable, "-m", "xmipp_accel.cli", "reconstruct", made.star.resolve(), "--device", "cpu"]
    command += ["--output", folder, *options]
    runs = []
    for _ in range(REPEATS):
        wall, processor = timed(command, Path.cwd(), folder / "log.txt")
        start_up = wall - json.loads((folder / "volume.json").read_text())["seconds"]["total"]
        runs.append((wall, processor, start_up))
    return Run(*statistics.median_low(runs), score(folder / "volume.mrc", made.volume))


def run_cryodrgn(made, folder, python) -> Run:
    """``cryodrgn backproject_voxel`` with CTF multiplication; its conversion of the STAR file comes before.

    It turns images of bright particles over, and its CTF is of the opposite sign: its map is bright again.
    """
    folder = _emptied(folder)
    program = Path(python).with_name("cryodrgn")
    star, stack = made.star.resolve(), made.star.resolve().with_name("particles.mrcs")
    for kind in ("pose", "ctf"):
        timed([program, f"parse_{kind}_star", star, "-o", folder / f"{kind}.pkl"], folder, folder / "log.txt")
    command = [program, "backproject_voxel", stack, "--poses", folder / "pose.pkl", "--ctf", folder / "ctf.pkl"]
    command += ["--ctf-alg", "mul", "-o", folder]
    wall, processor = timed(command, folder, folder / "log.txt")
    return Run(wall, processor, 0.0, score(folder / "backproject.mrc", made.volume))


def run_slices(made, folder, python) -> Run:
    """TeamTomo's torch-fourier-slice, see ``slices_peer.py``."""
    folder = _emptied(folder)
    particles = made.particles
    names = "shift_y shift_x defocus_u defocus_v defocus_angle voltage cs amplitude_contrast".split()
    columns = {name: getattr(particles, name) for name in names}
    # Its matrices turn positions in an image into those in the volume.
    matrices = euler_to_matrix(particles.rot, particles.tilt, particles.psi).transpose(0, 2, 1)
    np.savez(folder / "particles.npz", stack=particles.stack[0], matrices=matrices, **columns)
    script = Path(__file__).resolve().with_name("slices_peer.py")
    wall, processor = timed(
        [python, script, folder / "particles.npz", folder / "map.mrc"], folder, folder / "log.txt"
    )
    return Run(wall, processor, 0.0, score(folder / "map.mrc", made.volume))


def timed(command, folder, log):
    """Run a command in `folder`; wall and processor seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(log, "w") as output:
        subprocess.run([str(part) for part in command], cwd=folder, check=True, stdout=output, stderr=output)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def score(path, truth) -> float:
    """Resolution of a map against the true one, A."""
    volume, sampling_rate = read_volume(truth)
    mask = soft_sphere(len(volume), MASK_RADIUS - MASK_EDGE / 2, MASK_EDGE)
    curve = fourier_shell_correlation(read_volume(path)[0], volume, mask)
    return resolution_at(curve, 0.5, sampling_rate, len(volume))


def _emptied(folder):
    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
