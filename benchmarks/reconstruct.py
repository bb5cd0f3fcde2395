"""Quality of the Fourier reconstruction on the CPU, and its time beside RELION's.

``make bench-reconstruct`` runs it; the last line is JSON. Errors are those of maps of an exact phantom
(:mod:`benchmarks.reconstruct_phantom`); times are of whole processes, from files to files. Nothing is tuned for
any set of particles.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from pathlib import Path

from benchmarks import particle_data, reconstruct_peers, reconstruct_phantom
from benchmarks.reporting import print_json, print_machine, print_table
from xmipp_accel.backend import CPU
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

# What each row's name means; the only place that knows the parameters' names.
METHODS: dict[str, dict[str, object]] = {
    "trilinear": dict(kernel="trilinear"),
    "blob": dict(kernel="blob"),
    "nearest": dict(kernel="nearest"),
    "xmipp": dict(compat="xmipp"),
    "xmipp-fast": dict(compat="xmipp-fast"),
    "conjugate gradients, 6": dict(refine_iterations=6),
    "conjugate gradients, 12": dict(refine_iterations=12),
}
EARLIER: dict[str, dict[str, object]] = {
    "trilinear": dict(method="direct"),
    "xmipp": dict(method="xmipp"),
    "xmipp-fast": dict(method="xmipp_fast"),
}
FIGURES = {"trilinear": "inband_trilinear", "blob": "inband_blob", "conjugate gradients, 12": "inband_cg"}
VIEWS = 2000, 300
# Key, SNR.
NOISE = ("snr002", 0.02), ("snr01", 0.1)
NOISY_METHODS = "trilinear", "blob", "xmipp-fast"


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


def choices_of(method):
    """Parameters of a row of the tables; None where this version has no such method."""
    known = {field.name for field in dataclasses.fields(ReconstructFourierParameters)}
    table = METHODS if "kernel" in known else EARLIER
    choices = table.get(method)
    return choices if choices is not None and known.issuperset(choices) else None


def exact(folder, quick):
    """Table of errors and gains without noise and CTF."""
    figures: dict[str, object] = {}
    rows = []
    phantom = reconstruct_phantom.make_phantom()
    truth = phantom.volume(reconstruct_phantom.BOX, reconstruct_phantom.SAMPLING_RATE)
    views = reconstruct_phantom.make_views(phantom, 100 if quick else VIEWS[0], seed=7)
    particles = reconstruct_phantom.write_particles(views, folder)
    for method in filter(choices_of, METHODS):
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
    truth = phantom.volume(reconstruct_phantom.BOX, reconstruct_phantom.SAMPLING_RATE)
    clean = reconstruct_phantom.make_views(phantom, 200 if quick else 3000, seed=3, ctf=True)
    for key, snr in NOISE:
        views = reconstruct_phantom.with_noise(clean, snr, seed=4)
        corrected = reconstruct_phantom.wiener_corrected(views)
        particles = reconstruct_phantom.write_particles(views, folder)
        wiener = reconstruct_phantom.write_particles(corrected, folder, "corrected")
        cases = [(f"{method}, CTF^2 weights", method, particles) for method in NOISY_METHODS]
        cases.append(("xmipp-fast after 2D Wiener: Scipion's default", "xmipp-fast", wiener))
        for name, method, images in cases:
            if choices_of(method) is None:
                continue
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
    parameters = ReconstructFourierParameters(halves=halves, **choices_of(method))
    result = ReconstructFourierExecutor(parameters, CPU).reconstruct(particles, folder / "map")
    names = (result.volume, result.half1, result.half2) if halves else (result.volume,)
    return [read_volume(folder / "map" / name)[0] for name in names]


def peers(folder, quick, peers_python):
    """Table of times and resolutions of programs on the same particles."""
    print(particle_data.source(), flush=True)
    common = dict(box=128, snr=0.1, shift=3.0, seed=31, ctf=True)
    warm = particle_data.make_particles(folder / "warm", n=20, **common)
    made = particle_data.make_particles(folder / "set", n=100 if quick else 2000, **common)
    # Kernels are compiled once in an installation's life.
    reconstruct_peers.run_ours(warm, folder / "ours")
    ours = reconstruct_peers.run_ours(made, folder / "ours")
    runs = {"xmipp_accel": ours}
    runs["xmipp_accel, no half maps"] = reconstruct_peers.run_ours(made, folder / "single", "--no-halves")
    figures = {"wall_s": ours.wall, "start_up_s": ours.start_up, "processor_s": ours.processor}
    figures["fsc05_A"] = ours.resolution
    if shutil.which(reconstruct_peers.RELION):
        relion = reconstruct_peers.run_relion(made, folder / "relion")
        runs["RELION"] = relion
        figures |= {"relion_wall_s": relion.wall, "relion_processor_s": relion.processor}
        figures |= {"relion_fsc05_A": relion.resolution, "wall_over_relion": ours.wall / relion.wall}
        figures["wall_over_relion_without_start_up"] = (ours.wall - ours.start_up) / relion.wall
    else:
        print(f"{reconstruct_peers.RELION} is not on the PATH: left out", flush=True)
    if peers_python:
        runs["cryoDRGN"] = reconstruct_peers.run_cryodrgn(made, folder / "cryodrgn", peers_python)
        runs["torch-fourier-slice"] = reconstruct_peers.run_slices(made, folder / "slices", peers_python)
    columns = ["", "wall, s", "of it start-up, s", "processor, s", "truth 0.5, A"]
    rows = [[name, run.wall, run.start_up or None, run.processor, run.resolution] for name, run in runs.items()]
    print_table(f"{len(made.eulers)} particles of 128 px", columns, rows)
    return figures


if __name__ == "__main__":
    main()
