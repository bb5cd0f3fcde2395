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

from benchmarks.reporting import memory, print_json, print_machine, print_table
from xmipp_accel import cli
from xmipp_accel.backend import fft_module, resolve_device, to_host
from xmipp_accel.io.mrc import section_writer
from xmipp_accel.io.particles import Particles, read_particles, write_particles
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment import classify2d_executor, classify2d_run
from xmipp_accel.particle_alignment.classify2d_averages import transform_images
from xmipp_accel.report.evaluate import class_purity
from xmipp_accel.simulate.phantom import protein_phantom

FIELD, SNR, MAX_SHIFT = 192.0, 0.1, 0.04  # A; largest shift as a share of the box
CHUNK = 256
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
        views = make_particles(folder, count, arguments, device)
    device.release_memory()
    command = [sys.executable, "-m", "benchmarks.classify_gpu", CHILD]
    command += [str(folder / "particles.star"), "--output", str(folder / "classes"), "--device", arguments.device]
    command += ["--number-of-classes", str(arguments.classes), *options]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    found = read_particles(folder / "classes" / "classes.star")
    left = len(np.unique(found.class_id))
    result = dict(seconds=seconds, purity=class_purity(found.class_id, views), classes=left)
    return result | json.loads(done.stdout.splitlines()[-1])


def make_particles(folder, count, arguments, device):
    """Write ``particles.mrcs`` and ``particles.star``; the view (n,) of each particle."""
    box, xp, rng = arguments.box, device.xp, np.random.default_rng(1)
    made = min(count, arguments.same_images or count)
    rate = FIELD / box
    phantom = protein_phantom(0.6 * FIELD, 1).blurred(0.7 * rate)
    turn = np.arange(arguments.classes) + 0.5  # a spiral, whose turns are as far apart as its points
    tilt = np.rad2deg(np.arccos(1 - 2 * turn / arguments.classes))
    matrices = euler_to_matrix(180 * (1 + 5**0.5) * turn, tilt, np.zeros(arguments.classes))
    views = np.concatenate([phantom.project(matrix, box, rate) for matrix in matrices])
    noise = np.sqrt(views.var() / SNR)
    views, fft, generator = xp.asarray(views), fft_module(xp.zeros(1)), xp.random.RandomState(1)
    label = rng.integers(0, arguments.classes, made)
    defocus = rng.uniform(10_000.0, 25_000.0, made)
    with section_writer(folder / "particles.mrcs", rate, volume=False) as append:
        for first in range(0, made, CHUNK):
            part = slice(first, first + CHUNK)
            n = len(label[part])
            shift = MAX_SHIFT * box * rng.uniform(-1, 1, (n, 2))
            pose = rng.uniform(-np.pi, np.pi, n), shift, np.zeros(n, bool)
            images = transform_images(views[xp.asarray(label[part])], *pose)
            images = fft.irfft2(fft.rfft2(images) * ctf_image(box, rate, defocus[part], xp=xp), s=(box, box))
            append(to_host((images + noise * generator.standard_normal(images.shape)).astype(np.float32)))
    row = np.arange(count) % made
    particles = Particles(
        stack=[str(folder / "particles.mrcs")] * count,
        index=row,
        defocus_u=defocus[row],
        defocus_v=defocus[row],
        sampling_rate=rate,
        has_ctf=True,
    )
    write_particles(folder / "particles.star", particles)
    return label[row]


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
