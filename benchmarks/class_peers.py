"""Other programs on the same particles: RELION's 2D classification, ASPIRE's search for like images."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.io.tables import read_blocks

RELION = "relion_refine"
ITERATIONS = 20


def run_relion(particles, folder, n_classes, diameter):
    """Sort particles without a CTF with RELION's defaults for class averages.

    Parameters
    ----------
    particles : BenchmarkParticles
    folder : Path
        Emptied.
    n_classes : int
    diameter : float
        Of the mask, A.

    Returns
    -------
    classes : ndarray of int, shape (n,)
        From 1; in the order of the particles' table.
    seconds : float
    """
    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    # RELION looks for stacks in the folder that it runs in.
    (folder / "particles.star").symlink_to(particles.star.resolve())
    (folder / "particles.mrcs").symlink_to(particles.star.resolve().with_name("particles.mrcs"))
    options = dict(
        i="particles.star", o="out/run", K=n_classes, iter=ITERATIONS, tau2_fudge=2, psi_step=6,
        particle_diameter=f"{diameter:g}", offset_range=5, offset_step=2, oversampling=1, pool=30,
        j=cpu_count(), random_seed=0,
    )  # fmt: skip
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    arguments += ["--norm", "--scale", "--flatten_solvent", "--zero_mask", "--dont_check_norm"]
    start = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        subprocess.run([RELION, *arguments], cwd=folder, check=True, stdout=log, stderr=log)
    seconds = time.perf_counter() - start
    table = read_blocks(folder / "out" / f"run_it{ITERATIONS:03d}_data.star")["particles"]
    order = np.argsort([int(name.split("@")[0]) for name in table["rlnImageName"]])
    return np.asarray(table["rlnClassNumber"], dtype=int)[order], seconds


def run_aspire(particles, folder, neighbours, python):
    """Let ASPIRE find the images most like each one, in the environment of the interpreter `python`.

    Returns
    -------
    same : float
        Share of these images that show the same view.
    seconds : float
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).resolve().with_name("aspire_peer.py")
    stack = particles.star.resolve().with_name("particles.mrcs")
    command = [python, script, stack, neighbours, folder / "neighbours.npz"]
    with open(folder / "log.txt", "w") as log:
        # ASPIRE writes logs into the folder that it runs in.
        subprocess.run([str(part) for part in command], cwd=folder, check=True, stdout=log, stderr=log)
    with np.load(folder / "neighbours.npz") as found:
        others, seconds = found["neighbours"][:, 1:], float(found["seconds"])
    return float((particles.classes[others] == particles.classes[:, None]).mean()), seconds
