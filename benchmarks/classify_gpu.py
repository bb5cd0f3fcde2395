"""Time, memory and purity of the 2D classification of many particles: 100,000 of 128 px into 50 classes.

``make bench-classify-gpu`` runs it; the last line is JSON. The particles, one view for each class with CTF, shifts
of up to 4 % of the box and white noise, are made on the device. Then ``xmipp-accel classify`` runs in a process of
its own, which reads them from the page cache; its time is that of the whole command, from its start to its end.
With several ``--counts`` it shows how the memory of a process grows with the number of particles. Where there are
more GPUs, 2 and 4 of them do the same, and their result is compared with that of one. Options that this script
does not know go to the command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu_particles import make_particles
from benchmarks.reporting import memory, print_json, print_machine, print_table
from benchmarks.several_gpus import add_option, classification_difference, device_sets
from xmipp_accel import cli
from xmipp_accel.backend import Device, resolve_device
from xmipp_accel.io.images import read_stack
from xmipp_accel.io.particles import read_particles, write_particles
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
    add_option(parser)
    arguments, options = parser.parse_known_args()
    print_machine()
    figures: dict[str, Any] = {}
    more: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for count in arguments.counts:
            figures[f"{count}"], found = run(Path(folder), count, arguments, options)
            more |= {f"{count}, {number} devices": values for number, values in found.items()}
    columns = figures | more
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name) for column in columns.values())] for name in names]
    print_table(f"Particles of {arguments.box} px, {arguments.classes} classes", ["", *columns], rows)
    if len(figures) > 1:
        (first, a), *_, (last, b) = figures.items()
        slope = (b["host_peak_mib"] - a["host_peak_mib"]) / (int(last) - int(first))
        figures["host_kib_per_particle"] = 1024 * slope
        figures["host_gib_for_a_million"] = (b["host_peak_mib"] + (1_000_000 - int(last)) * slope) / 1024
    print_json(figures | {"more_devices": more})


def run(folder, count, arguments, options):
    """Figures of one set of particles, and by their number those of more devices."""
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
    options = ["--number-of-classes", str(arguments.classes), *options]
    if device.kind == "cuda":
        compile_kernels(folder, made.particles, arguments, options)
    one = classify(made.star, folder / "one", arguments.device, options)
    figures, more = one.figures | {"purity": class_purity(one.label, made.views)}, {}
    for devices in [] if "," in arguments.device else device_sets(device, arguments.more_devices):
        several = classify(made.star, folder / f"{len(devices)}", ",".join(map(str, devices)), options)
        more[len(devices)] = {
            **several.figures,
            "purity": class_purity(several.label, made.views),
            "times faster": figures["seconds"] / several.figures["seconds"],
            **classification_difference(one, several),
        }
    return figures, more


def compile_kernels(folder, particles, arguments, options):
    """Take a few particles through all stages, so that no time holds what is done once on a machine."""
    size = max(300, 2 * arguments.classes)
    write_particles(folder / "few.star", particles.take(np.arange(min(len(particles), 3 * size))))
    quick = f"--batch-size={size}", "--iterations=2", "--split-merge-rounds=1"
    classify(folder / "few.star", folder / "few", arguments.device, [*options, *quick])


class Classified(NamedTuple):
    """What a run of the command measured, the classes (n,) of the particles, and the averages (C, N, N)."""

    figures: dict[str, float]
    label: np.ndarray
    averages: np.ndarray


def classify(star, output, device, options) -> Classified:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.classify_gpu", CHILD, str(star), "--output", str(output)]
    start = time.perf_counter()
    done = subprocess.run([*command, "--device", device, *options], check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    label = read_particles(output / "classes.star").class_id
    figures = {"seconds": seconds, "classes": len(np.unique(label)), **json.loads(done.stdout.splitlines()[-1])}
    return Classified(figures, label, read_stack(output / "classes.mrcs"))


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

    # Unlike the command's own function, it takes the CPU twice if it is named twice.
    def devices(request: str = "auto") -> tuple[Device, ...]:
        return tuple(resolve_device(part) for part in request.split(","))

    cli.resolve_devices = devices
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
