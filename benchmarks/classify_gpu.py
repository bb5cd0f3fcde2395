"""Time, memory and purity of the 2D classification of many particles: 100,000 of 128 px into 50 classes.

``make bench-classify-gpu`` runs it; the last line is JSON. The particles, one view for each class with CTF, shifts
of up to 4 % of the box and white noise, are made on the device. Then ``xmipp-accel classify`` runs in a process of
its own, which reads them from the page cache; its time is that of the whole command, from its start to its end.
With several ``--counts`` it shows how the memory of a process grows with the number of particles. Options that
this script does not know go to the command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_particles import make_particles
from benchmarks.reporting import memory, print_json, print_machine, print_table
from xmipp_accel import cli
from xmipp_accel.backend import resolve_device
from xmipp_accel.io.particles import read_particles
from xmipp_accel.particle_alignment import classify2d_executor, classify2d_run
from xmipp_accel.report.evaluate import class_purity

MAX_SHIFT = 0.04  # of the box
CHILD = "--child"
STAGES = {
    "_begin": "seeds, annealing",
    "_breathe": "splits, merges",
    "_converge": "convergence",
    "_learn": "online learning",
    "_assign": "assignment, averages",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu, cuda:N, or several with commas between them")
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000])
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="where the particles lie for a while; /tmp by default")
    parser.add_argument("--same-images", type=int, help="make only so many images, and use each several times")
    arguments, options = parser.parse_known_args()
    print_machine()
    figures = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for count in arguments.counts:
            figures[f"{count}"] = run(Path(folder), count, arguments, options)
    rows = [[name, *(one[name] for one in figures.values())] for name in next(iter(figures.values()))]
    print_table(f"Particles of {arguments.box} px, {arguments.classes} classes", ["", *figures], rows)
    if len(figures) > 1:
        (first, a), *_, (last, b) = figures.items()
        slope = (b["host_peak_mib"] - a["host_peak_mib"]) / (int(last) - int(first))
        figures["host_kib_per_particle"] = 1024 * slope
        figures["host_gib_for_a_million"] = (b["host_peak_mib"] + (1_000_000 - int(last)) * slope) / 1024
    print_json(figures)


def run(folder, count, arguments, options):
    """Figures of one set of particles."""
    device = resolve_device(arguments.device.split(",")[0])
    with device.activate():
        made = make_particles(
            folder,
            count,
            arguments.box,
            device,
            shift=MAX_SHIFT * arguments.box,
            views=arguments.classes,
            ctf=True,
            same_images=arguments.same_images,
        )
    device.release_memory()
    command = [sys.executable, "-m", "benchmarks.classify_gpu", CHILD]
    command += [str(made.star), "--output", str(folder / "classes"), "--device", arguments.device]
    command += ["--number-of-classes", str(arguments.classes), *options]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    found = read_particles(folder / "classes" / "classes.star")
    left = len(np.unique(found.class_id))
    result = dict(seconds=seconds, purity=class_purity(found.class_id, made.views), classes=left)
    return result | json.loads(done.stdout.splitlines()[-1])


def measured(options):
    """Run the command in this process; seconds of its stages, and the most memory that it held."""
    seconds = dict.fromkeys(["reading the table", *STAGES.values(), "writing tables"], 0.0)

    def timed(owner, name, stage):
        function = getattr(owner, name)

        def call(*arguments, **choices):
            start = time.perf_counter()
            try:
                return function(*arguments, **choices)
            finally:
                seconds[stage] += time.perf_counter() - start

        setattr(owner, name, call)

    for name, stage in STAGES.items():
        timed(classify2d_run.ClassificationRun, name, stage)
    timed(classify2d_executor, "write_particles", "writing tables")
    import xmipp_accel.io.particles as tables

    timed(tables, "read_particles", "reading the table")
    if cli.main(["classify", *options]):
        raise SystemExit(1)
    device = resolve_device(options[options.index("--device") + 1].split(",")[0])
    figures = {f"{stage}, s": value for stage, value in seconds.items()} | {
        "host_peak_mib": memory("VmHWM") / 2**20
    }
    if device.kind == "cuda":
        with device.activate():
            figures["device_peak_mib"] = device.xp.get_default_memory_pool().total_bytes() / 2**20
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(measured(sys.argv[2:])))
    else:
        main()
