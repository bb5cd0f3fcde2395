"""Accuracy and time of Align Significant and of the 2D classification on the CPU, the latter beside RELION's.

``make bench-align`` runs it; the last line is JSON. Directions are those of the references, at distances of 5
degrees, against the true ones of particles between them. Times are of whole calls in a warm process, from files to
files. Nothing is tuned for any set of particles.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import class_peers, particle_data
from benchmarks.reporting import memory, print_json, print_machine, print_table, reset_peak
from xmipp_accel.io.particles import read_particles
from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.report.evaluate import class_purity, direction_errors

CLASSES = 10
# Name, box, SNR, largest shift in px, CTF; the first two are those with a target.
SETS = (
    ("128 px", 128, 0.1, 3.0, False),
    ("64 px", 64, 0.1, 3.0, False),
    ("64 px, SNR 0.3", 64, 0.3, 3.0, False),
    ("64 px, SNR 0.05", 64, 0.05, 3.0, False),
    ("64 px, SNR 0.03", 64, 0.03, 3.0, False),
    ("64 px, shifts of 6.4 px", 64, 0.1, 6.4, False),
    ("64 px, CTF", 64, 0.1, 3.0, True),
    ("128 px, CTF", 128, 0.1, 3.0, True),
)
# Key, SNR, seed of the generator, CTF; the first two have a target.
VIEW_SETS = (
    ("snr05", 0.5, 21, False),
    ("snr01", 0.1, 21, False),
    ("snr05_seed22", 0.5, 22, False),
    ("snr01_seed22", 0.1, 22, False),
    ("snr05_ctf", 0.5, 21, True),
    ("snr01_ctf", 0.1, 21, True),
)
SEEDS = 0, 1, 2
INSTALMENTS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few particles, to try the script")
    parser.add_argument("--only", choices=("align", "classes"), help="one half of the benchmark")
    parser.add_argument("--aspire-python", help="interpreter of an environment with aspire")
    arguments = parser.parse_args()
    print_machine()
    print(particle_data.source(), flush=True)
    figures: dict[str, object] = {"source": "reference" if particle_data.GENERATOR.exists() else "simulate"}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "classes":
            figures |= alignment(Path(folder), arguments.quick)
        if arguments.only != "align":
            figures |= classification(Path(folder), arguments.quick, arguments.aspire_python)
    print_json(figures)


def alignment(folder, quick):
    """Table of accuracies and times of Align Significant."""
    count = 20 if quick else 300
    warm = particle_data.make_particles(folder / "warm", n=4, box=64, snr=0.1, shift=3.0, seed=1, ctf=True)
    align(warm, folder)
    figures: dict[str, float] = {}
    rows = []
    for name, box, snr, shift, ctf in SETS[: 2 if quick else None]:
        made = particle_data.make_particles(
            folder / "set", n=count, box=box, snr=snr, shift=shift, seed=3, ctf=ctf
        )
        result, seconds = align(made, folder)
        found = best_rows(result)
        errors = direction_errors(found.rot, found.tilt, *made.eulers[:, :2].T)
        within = [float((errors <= limit).mean()) for limit in (5, 10)]
        rows.append([name, *within, float(np.median(errors)), result.n_rings, result.n_shifts, seconds])
        if (snr, shift, ctf) == SETS[0][2:]:
            figures |= {f"within5_{box}": within[0], f"within10_{box}": within[1]}
            figures[f"cpu_{count}x{result.n_references}_{box}_s"] = seconds
    if not quick:
        made = particle_data.make_particles(folder / "set", n=2000, box=64, snr=0.1, shift=3.0, seed=3)
        reset_peak()
        result, figures["cpu_2000x1692_64_s"] = align(made, folder)
        figures["cpu_2000x1692_64_peak_mib"] = memory("VmHWM") / 2**20
    columns = [f"{count} particles", "within 5 deg", "within 10 deg", "median, deg", "rings", "shifts", "s"]
    print_table("Align Significant", columns, rows)
    return figures


def align(made, folder):
    """Result of aligning particles to the projections of their map, and seconds."""
    executor = AlignSignificantExecutor(AlignSignificantParameters())
    start = time.perf_counter()
    result = executor.align(made.particles, made.volume, folder / "aligned")
    return result, time.perf_counter() - start


def best_rows(result):
    """The particles in their first order, each with its best reference."""
    rows = read_particles(result.particles_star)
    return rows.take(np.argsort(rows.index, kind="stable"))


def classification(folder, quick, aspire_python):
    """Table of purities and times of the 2D classification, ours and that of others."""
    figures: dict[str, object] = {}
    rows, count = [], 100 if quick else 500
    for key, snr, seed, ctf in VIEW_SETS[: 1 if quick else None]:
        made = particle_data.make_particles(
            folder / "set", n=count, box=64, snr=snr, shift=3.0, seed=seed, ctf=ctf, classes=CLASSES
        )
        runs = [classify(made, folder, seed) for seed in SEEDS]
        purities, left, seconds = zip(*runs)
        figures |= {f"purity_{key}": statistics.mean(purities), f"classes_{key}": min(left)}
        figures[f"classify_{key}_s"] = statistics.median(seconds)
        growing = statistics.mean(classify_in_instalments(made, folder, seed) for seed in SEEDS)
        figures[f"instalments_{key}"] = growing
        relion = [None] * 3
        if shutil.which(class_peers.RELION) and key in ("snr05", "snr01"):
            relion = relion_classes(made, folder)
            figures |= {f"relion_purity_{key}": relion[0], f"relion_{key}_s": relion[2]}
        aspire = [None] * 2
        if aspire_python and key in ("snr05", "snr01"):
            aspire = class_peers.run_aspire(made, folder / "aspire", count // CLASSES, aspire_python)
            figures |= {f"aspire_same_view_{key}": aspire[0], f"aspire_{key}_s": aspire[1]}
        others = [*relion, *aspire]
        ours = *purities, statistics.mean(purities), min(left), statistics.median(seconds), growing
        rows.append([key, *ours, *others])
    columns = [f"{count} particles", *(f"seed {seed}" for seed in SEEDS), "mean", "classes left", "s"]
    columns += ["in instalments", "RELION", "its classes", "its s", "ASPIRE: like images of one view", "its s"]
    print_table(f"2D classes, K = {CLASSES}", columns, rows)
    return figures


def classify_in_instalments(made, folder, seed):
    """Purity when the particles come in parts, and all are assigned to the classes at the end."""
    parameters, state = Classify2DParameters(number_of_classes=CLASSES, seed=seed), None
    particles = made.particles
    for number, rows in enumerate(np.array_split(np.arange(len(particles)), INSTALMENTS)):
        executor = Classify2DExecutor(parameters)
        state = executor.classify(particles.take(rows), folder / f"instalment{number}", state=state).state
    executor = Classify2DExecutor(dataclasses.replace(parameters, fixed_references=True))
    found = best_rows(executor.classify(particles, folder / "assigned", state=state))
    return class_purity(found.class_id, made.classes)


def classify(made, folder, seed):
    """Purity, classes that hold particles, and seconds."""
    executor = Classify2DExecutor(Classify2DParameters(number_of_classes=CLASSES, seed=seed))
    start = time.perf_counter()
    result = executor.classify(made.particles, folder / "classes")
    seconds = time.perf_counter() - start
    found = best_rows(result)
    return class_purity(found.class_id, made.classes), sum(count > 0 for count in result.counts), seconds


def relion_classes(made, folder):
    """As :func:`classify`, by RELION."""
    particles = made.particles
    diameter = 0.9 * particles.box * particles.sampling_rate
    classes, seconds = class_peers.run_relion(made, folder / "relion", CLASSES, diameter)
    return class_purity(classes, made.classes), len(np.unique(classes)), seconds


if __name__ == "__main__":
    main()
