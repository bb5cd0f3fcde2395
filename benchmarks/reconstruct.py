"""Quality of the Fourier reconstruction on the CPU, and its time beside RELION's.

``make bench-reconstruct`` runs it; the last line is JSON. Errors are those of maps of an exact phantom
(:mod:`benchmarks.reconstruct_phantom`); times are of whole processes, from files to files. Nothing is tuned for
any set of particles.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import particle_data, reconstruct_peers, reconstruct_phantom
from benchmarks.reporting import print_json, print_machine, print_table
from xmipp_accel.backend import CPU
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

# Parameters of each row of the tables.
METHODS: dict[str, dict[str, Any]] = {
    "trilinear": dict(method="trilinear"),
    "trilinear, images not padded": dict(method="trilinear", padding_images=1.0),
    "blob": dict(method="blob"),
    "nearest": dict(method="nearest"),
    "xmipp": dict(method="xmipp"),
    "xmipp-fast": dict(method="xmipp_fast"),
    "conjugate gradients, 6": dict(refine_iterations=6),
    "conjugate gradients, 12": dict(refine_iterations=12),
}
# Like RELION's run without padded images; unlike it with a map regularised by the FSC of the run's half maps.
UNPADDED = "xmipp_accel --padding-images 1 --regularisation fsc"
# Options of each row of our runs beside RELION's.
OURS = {
    "xmipp_accel": (),
    "xmipp_accel --padding-images 1": ("--padding-images", "1"),
    UNPADDED: ("--padding-images", "1", "--regularisation", "fsc"),
    "xmipp_accel --no-halves": ("--no-halves",),
}
FIGURES = {"trilinear": "inband_trilinear", "blob": "inband_blob", "conjugate gradients, 12": "inband_cg"}
VIEWS = 2000, 300
# Key, SNR.
NOISE = ("snr002", 0.02), ("snr01", 0.1)
NOISY_METHODS = "trilinear", "trilinear, images not padded", "blob", "xmipp-fast"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few particles, to try the script")
    parser.add_argument("--only", choices=("exact", "noise", "peers"), help="one part of the benchmark")
    parser.add_argument(
        "--peers-python", help="interpreter of an environment with cryodrgn and torch-fourier-slice"
    )
    arguments = parser.parse_args()
    print_machine()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only in (None, "exact"):
            figures |= exact(folder, arguments.quick)
        if arguments.only in (None, "noise"):
            figures |= noisy(folder, arguments.quick)
        if arguments.only in (None, "peers"):
            figures |= peers(folder, arguments.quick, arguments.peers_python)
    print_json(figures)


def exact(folder, quick):
    """Table of errors and gains without noise and CTF."""
    figures: dict[str, object] = {}
    rows = []
    phantom = reconstruct_phantom.make_phantom()
    truth = reconstruct_phantom.true_map(phantom)
    views = reconstruct_phantom.make_views(phantom, 100 if quick else VIEWS[0], seed=7)
    particles = reconstruct_phantom.write_particles(views, folder)
    for method in METHODS:
        many, few = (
            reconstruct_phantom.compare(reconstruct(part, folder, method, halves=False)[0], truth)
            for part in (particles, particles.take(range(min(VIEWS[1], len(particles)))))
        )
        rows.append([method, many.error, few.error, many.gain, many.rim_over_core])
        if method in FIGURES:
            figures[FIGURES[method]] = many.error
        if method == "trilinear":
            figures |= {"rim_core_gain": many.rim_over_core, "inband_trilinear_300": few.error}
    columns = ["", *(f"error, {count} views" for count in VIEWS), "gain", "rim / core"]
    print_table("Noise-free phantom, 64 px", columns, rows)
    return figures


def noisy(folder, quick):
    """Table of resolutions with CTF and noise."""
    figures: dict[str, object] = {}
    rows = []
    phantom = reconstruct_phantom.make_phantom()
    truth = reconstruct_phantom.true_map(phantom)
    clean = reconstruct_phantom.make_views(phantom, 200 if quick else 3000, seed=3, ctf=True)
    for key, snr in NOISE:
        views = reconstruct_phantom.with_noise(clean, snr, seed=4)
        corrected = reconstruct_phantom.wiener_corrected(views)
        particles = reconstruct_phantom.write_particles(views, folder)
        wiener = reconstruct_phantom.write_particles(corrected, folder, "corrected")
        cases = [(f"{method}, CTF^2 weights", method, particles) for method in NOISY_METHODS]
        cases.append(("xmipp-fast after 2D Wiener: Scipion's default", "xmipp-fast", wiener))
        for name, method, images in cases:
            full, *halves = reconstruct(images, folder, method, halves=True)
            between_halves, to_truth = reconstruct_phantom.resolutions(full, halves, truth)
            rows.append([name, snr, between_halves, to_truth])
            if method == "trilinear":
                figures |= {f"fsc05_{key}_A": to_truth, f"fsc0143_{key}_A": between_halves}
            elif images is wiener:
                figures[f"scipion_fsc05_{key}_A"] = to_truth
    print_table("Phantom with CTF and noise, 64 px", ["", "SNR", "half maps 0.143, A", "truth 0.5, A"], rows)
    return figures


def reconstruct(particles, folder, method, halves):
    """Full map, and with `halves` the two half maps, by the executor."""
    parameters = ReconstructFourierParameters(halves=halves, **METHODS[method])
    result = ReconstructFourierExecutor(parameters, CPU).reconstruct(particles, folder / "map")
    names = (result.volume, result.half1, result.half2) if halves else (result.volume,)
    return [read_volume(folder / "map" / name)[0] for name in names]


def peers(folder, quick, peers_python):
    """Tables of times and resolutions of programs on the same particles."""
    print(particle_data.source(), flush=True)
    common = dict(shift=3.0, seed=31, ctf=True)
    warm = particle_data.make_particles(folder / "warm", n=20, box=128, snr=0.1, **common)
    # Kernels are compiled once in an installation's life.
    reconstruct_peers.run_ours(warm, folder / "ours")
    made = particle_data.make_particles(folder / "set", n=100 if quick else 2000, box=128, snr=0.1, **common)
    found = side_by_side(made, folder, "CTF on a periodic box")
    figures = figures_of(found, "")
    if peers_python:
        others = {
            "cryoDRGN": reconstruct_peers.run_cryodrgn(made, folder / "cryodrgn", peers_python),
            "torch-fourier-slice": reconstruct_peers.run_slices(made, folder / "slices", peers_python),
        }
        print_runs("Other programs on the same particles", others)
    # A quarter of the ratio in four times the pixels is the same noise in each of them.
    large = particle_data.make_particles(folder / "large", n=100 if quick else 1000, box=256, snr=0.025, **common)
    cut = particle_data.cut_out(large, folder / "cut", 128)
    found = side_by_side(cut, folder, "cut from 256 px")
    return figures | figures_of(found, "cut_")


def side_by_side(made, folder, title):
    """Print and return the runs of RELION and of ours, one after the other."""
    runs = {name: reconstruct_peers.run_ours(made, folder / "ours", *options) for name, options in OURS.items()}
    if shutil.which(reconstruct_peers.RELION):
        runs["RELION"] = reconstruct_peers.run_relion(made, folder / "relion")
    else:
        print(f"{reconstruct_peers.RELION} is not on the PATH: left out", flush=True)
    print_runs(f"{len(made.eulers)} particles of 128 px, {title}", runs)
    return runs


def print_runs(title, runs):
    columns = ["", "wall, s", "of it start-up, s", "processor, s", "truth 0.5, A"]
    rows = [[name, run.wall, run.start_up or None, run.processor, run.resolution] for name, run in runs.items()]
    print_table(title, columns, rows)


def figures_of(runs, prefix):
    """Figures for the JSON line: of ours without padded images, with default parameters, and of RELION."""
    figures: dict[str, Any] = {}
    for name, kind in ((UNPADDED, ""), ("xmipp_accel", "default_")):
        run = runs[name]
        figures |= {f"{kind}wall_s": run.wall, f"{kind}start_up_s": run.start_up}
        figures |= {f"{kind}processor_s": run.processor, f"{kind}fsc05_A": run.resolution}
        if "RELION" in runs:
            relion = runs["RELION"].wall
            figures[f"{kind}wall_over_relion"] = run.wall / relion
            figures[f"{kind}wall_over_relion_without_start_up"] = (run.wall - run.start_up) / relion
    if "RELION" in runs:
        figures |= {"relion_wall_s": runs["RELION"].wall, "relion_processor_s": runs["RELION"].processor}
        figures["relion_fsc05_A"] = runs["RELION"].resolution
    return {prefix + key: value for key, value in figures.items()}


if __name__ == "__main__":
    main()
