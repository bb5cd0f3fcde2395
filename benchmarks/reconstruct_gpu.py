"""Time, rate and energy of the Fourier reconstruction on GPUs, and its insertion kernels one by one.

``make bench-reconstruct-gpu`` runs it; the last line is JSON. Particles with CTF are made on the device and read
from the page cache. A case's seconds are those of a whole call in a warm process, from the particles' file to half
maps, map and FSC on disk, the median of three; the command's are those of a process of its own, start included,
the median of three too.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.align_gpu import ceilings, synchronize, timed
from benchmarks.gpu_activity import joules, release_device_memory
from benchmarks.gpu_particles import make_particles
from benchmarks.reconstruct_gpus import compare
from benchmarks.reporting import print_json, print_machine, print_table
from benchmarks.several_gpus import add_option, device_sets
from xmipp_accel.backend import resolve_device, to_host
from xmipp_accel.backend.devices import cuda_status
from xmipp_accel.io.particles import read_particles, write_particles
from xmipp_accel.io.publish import read_json
from xmipp_accel.kernels.reference import insert as oracle
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction import insert
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.blob import blob_table
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.symmetry import complete_plane, factorise
from xmipp_accel.reconstruction.views import Views

# Box, particles, target in seconds on one H200.
CASES = (128, 20_000, 0.5), (256, 20_000, 1.0), (512, 4_000, 2.5), (256, 100_000, 3.5)
MORE_GPUS = 3  # the case that more GPUs are measured with: insertion is to be 1.8 times faster on 2, 3.3 on 4
WAYS = (
    ("trilinear", "scatter"),
    ("trilinear", "columns"),
    ("trilinear", "bricks"),
    ("blob", "columns"),
    ("blob", "bricks"),
)
# Voxels of the half volume that one image of edge p reaches, over p^2 (spec: 226,000 and 391,000 for 512).
REACHED = {"trilinear": 0.862, "blob": 1.49}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="*", default=list(range(len(CASES))), help="which, from 0")
    parser.add_argument("--share", type=float, default=1.0, help="of the particles, to try the script")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the particles lie")
    parser.add_argument("--try-on-cpu", action="store_true", help="run on the CPU, to try the script")
    parser.add_argument("--skip-kernels", action="store_true")
    parser.add_argument("--same-images", type=int, help="so many images stand for all, which saves making them")
    add_option(parser)
    arguments = parser.parse_args()
    gpus, reason = cuda_status()
    if not gpus and not arguments.try_on_cpu:
        raise SystemExit(f"bench-reconstruct-gpu needs a GPU: {reason}")
    device = resolve_device("cpu" if arguments.try_on_cpu else "cuda")
    print_machine()
    figures: dict[str, object] = dict(ceilings(device), oracle_error=oracle_error(device))
    print(figures, flush=True)
    if not arguments.skip_kernels:
        figures["kernels"] = kernels(device, figures["copy_gbs"], 8 if arguments.try_on_cpu else 1024)
    rows = []
    for number in arguments.cases:
        box, count, target = CASES[number]
        count = max(10, int(count * arguments.share))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found, particles = case(Path(folder), box, count, device, arguments.same_images)
            figures[f"{count}x{box}"] = found
            rows.append([f"{count} x {box} px", *found.values(), target])
            print_table("Particles to maps", ["case", *found, "target, s"], rows)
            several = device_sets(device, arguments.more_devices) if number == MORE_GPUS else []
            if several:
                figures["devices"] = more = compare(particles, Path(folder), [(device,), *several])
                names = ["devices", *more[1]]
                print_table(f"{count} x {box} px", names, [[n, *each.values()] for n, each in more.items()])
        release_device_memory(device)
    print_json(figures)


def oracle_error(device):
    """Largest difference of each way of insertion from its oracle, over the largest sum, on random data."""
    rng, columns, worst = np.random.default_rng(), 12, {}
    slices = rng.normal(size=(20, 2 * columns - 1, columns, 4)).astype(np.float32)
    slices[..., 2] **= 2
    ky, kx = np.meshgrid(np.arange(2 * columns - 1) - columns + 1, np.arange(columns), indexing="ij")
    slices[:, kx**2 + ky**2 > (columns - 1) ** 2] = 0
    matrices = np.einsum("nij,gkj->ngik", random_matrices(20, rng), symmetry_matrices("d3"))
    curvature, images = (rng.uniform(-1, 1, 20) / columns**2).astype(np.float32), np.arange(20)
    for kernel, how in WAYS:
        extra = () if kernel == "trilinear" else (blob_table(1.9, 0, 15.0), 1.9, columns + 1.9)
        centre = columns + 2
        shape = 2 * centre + 1, 2 * centre + 1, centre + 1, 4
        expected, found = np.zeros(shape), device.asarray(np.zeros(shape, np.float32))
        arguments = matrices, curvature, images, *extra
        getattr(oracle, f"insert_{kernel}")(expected, 0, slices, *arguments)
        getattr(insert, f"insert_{kernel}")(found, 0, device.asarray(slices), *arguments, how=how)
        found = to_host(found)
        complete_plane(found)
        complete_plane(expected)
        worst[f"{kernel} {how}"] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return worst


def kernels(device, copy_gbs, count):
    """Milliseconds of insertion for so many images, and their ratio to the time that the traffic alone takes."""
    rows, found = [], {}
    for symmetry in ("c1", "d7", "i1"):
        for kernel, how in WAYS:
            name = f"{kernel} {how} {symmetry}"
            with device.activate():
                found[name] = insertion(device, kernel, how, symmetry, copy_gbs, count)
            rows.append([kernel, how, symmetry, *found[name].values()])
        release_device_memory(device)
    columns = ["kernel", "way", "group", "insertions", "prepare, ms", "insert, ms", "over memory floor"]
    print_table(f"{count} images of 256 px, padded twice", columns, rows)
    return found


def insertion(device, kernel, how, symmetry, copy_gbs, count, box=256):
    """Figures of one way to insert a batch of images."""
    rng = np.random.default_rng(0)
    cosets = factorise(symmetry_matrices(symmetry))[1]
    parameters = ReconstructFourierParameters(method=kernel, halves=False, ctf="none", symmetry=symmetry)
    accumulator = FourierAccumulator(parameters, device, box, 1.0)
    gridding, plan = dataclasses.replace(accumulator.gridding, how=how), accumulator.plan()
    views = Views(random_matrices(count, rng), np.zeros((count, 2)))
    images = device.asarray(rng.standard_normal((count, box, box), np.float32))
    factors = device.asarray(plan.factors(views, 100.0))
    slices = plan.slices(images, factors)
    preparing = timed(device, lambda: plan.slices(images, factors), 3)
    matrices = np.ascontiguousarray(np.einsum("nij,gkj->ngik", plan.axes(views.matrices), cosets))
    arguments = matrices, np.zeros(count, np.float32), np.arange(count), 1e9
    inserting = timed(device, lambda: gridding.insert(accumulator.sums[0], 0, slices, *arguments), 3)
    # Records are read once, and each voxel reached is read and written: 16 bytes each.
    moved = slices.nbytes + 32 * REACHED[kernel] * plan.grid.padded**2 * len(cosets) * count
    floor = copy_gbs and moved / (copy_gbs * 1e9)
    times = dict(prepare_ms=1e3 * preparing, insert_ms=1e3 * inserting)
    return dict(insertions=len(cosets), **times, over_floor=floor and inserting / floor)


def case(folder, box, count, device, same_images):
    """Seconds of a whole reconstruction, of its stages, of the command; joules; and the particles."""
    with device.activate():
        made = make_particles(folder, count, box, device, shift=0.0, ctf=True, same_images=same_images)
    rot, tilt, psi = made.eulers.T
    posed = dataclasses.replace(made.particles, rot=rot, tilt=tilt, psi=psi, has_pose=True)
    star = folder / "posed.star"
    write_particles(star, posed)
    release_device_memory(device)
    particles = read_particles(star)
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(), device)
    executor.reconstruct(particles, folder / "warm")
    results, seconds = [], []
    for number in range(3):
        synchronize(device)
        start = time.perf_counter()
        results.append(executor.reconstruct(particles, folder / f"run{number}"))
        seconds.append(time.perf_counter() - start)
    found = {"s": statistics.median(seconds)}
    found |= {f"{stage}, s": results[-1].seconds[stage] for stage in ("wait", "insert", "finish")}
    found["resolution, A"] = results[-1].resolution
    energy = joules(lambda: executor.reconstruct(particles, folder / "energy"), device)
    found["kJ per 100,000"] = energy and energy / 1e3 * 100_000 / count
    release_device_memory(device)
    return found | command(star, folder, device, found["s"]), particles


def command(star, folder, device, warm):
    """Seconds of the command, of its stages, and with no kernel compiled before."""
    runs = sorted(one_command(star, folder / "out", device) for _ in range(3))
    seconds, stages = runs[1]
    new, _ = one_command(star, folder / "out", device, CUPY_CACHE_DIR=str(folder / "kernels"))
    found = {"command, s": seconds, "adds, s": seconds - warm}
    return found | dict(zip(("its insert, s", "its finish, s"), stages)) | {"on a new machine, s": new}


def one_command(star, output, device, **environment):
    words = [sys.executable, "-m", "xmipp_accel.cli", "reconstruct", star, "--output", output, "--device", device]
    start = time.perf_counter()
    subprocess.run([*map(str, words)], check=True, capture_output=True, env=os.environ | environment)
    seconds, stages = time.perf_counter() - start, read_json(output / "volume.json")["seconds"]
    return seconds, [stages["insert"], stages["finish"]]


if __name__ == "__main__":
    main()
