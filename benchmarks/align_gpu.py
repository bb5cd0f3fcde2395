"""Seconds that Align Significant takes on one GPU for 2000 particles and 1692 references, and where they go.

``make bench-align-gpu`` runs it; the last line is JSON. Particles lie in memory (``--folder``, else /dev/shm) and
are aligned in a warm process, with the references made from the volume each time and shifts in the whole disc
of a quarter of the box. The whole command is timed apart. The search kernel is compared with its float64 oracle on
fresh random data, and its rate with what the device reaches in multiplications and copies alone. Where there are
more GPUs, 2 and 4 of them do the same, and their result is compared with that of one.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_activity import device_bytes, release_device_memory
from benchmarks.gpu_particles import make_particles
from benchmarks.reporting import memory, print_json, print_machine, print_table, reset_peak
from benchmarks.several_gpus import add_option, alignment_difference, device_sets
from xmipp_accel.backend import resolve_device, to_host
from xmipp_accel.backend.devices import cuda_status
from xmipp_accel.kernels.reference.polar_search import polar_search as oracle
from xmipp_accel.particle_alignment import align, assignment, polar, sweep
from xmipp_accel.particle_alignment.align import PolarAligner
from xmipp_accel.particle_alignment.executor import make_aligners
from xmipp_accel.particle_alignment.gallery import open_references
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.particle_alignment.search import PolarSearch
from xmipp_accel.particle_alignment.search_kernels import first_rings
from xmipp_accel.report.evaluate import direction_errors

TARGETS = {64: 1.0, 128: 1.2, 256: 2.0}  # s, one H200
MAX_SHIFT = 25.0  # % of the box
_FMA = r"""
extern "C" __global__ void fma_rate(float* out, int rounds) {
    float a[16];
    for (int i = 0; i < 16; ++i) a[i] = threadIdx.x + i;
    const float b = 1.0f + 1e-9f * blockIdx.x, c = 1e-9f;
    for (int r = 0; r < rounds; ++r)
#pragma unroll
        for (int i = 0; i < 16; ++i) a[i] = a[i] * b + c;
    float sum = 0;
    for (int i = 0; i < 16; ++i) sum += a[i];
    if (sum == -1.0f) out[0] = sum;
}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="*", default=list(TARGETS))
    parser.add_argument("--count", type=int, default=2000, help="particles")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the particles lie")
    parser.add_argument("--try-on-cpu", action="store_true", help="run on the CPU, to try the script")
    add_option(parser)
    arguments = parser.parse_args()
    gpus, reason = cuda_status()
    if not gpus and not arguments.try_on_cpu:
        raise SystemExit(f"bench-align-gpu needs a GPU: {reason}")
    device = resolve_device("cpu" if arguments.try_on_cpu else "cuda")
    sets = device_sets(device, arguments.more_devices)
    print_machine()
    figures = ceilings(device) | {"oracle_error": oracle_error(device)}
    print(figures, flush=True)
    rows, stages, more = [], {}, {}
    for box in arguments.boxes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, device.activate():
            made = make_particles(Path(folder), arguments.count, box, device)
            bench = Benchmark(made, device)
            figures[str(box)] = bench.figures(Path(folder))
            stages[box] = bench.stages()
            more[box] = bench.more(sets, figures[str(box)]["s"])
            for used in {device}.union(*sets):
                release_device_memory(used)
        rows.append([f"{box} px", *figures[str(box)].values(), TARGETS.get(box)])
    names = next(iter(figures[str(box)] for box in arguments.boxes))
    print_table(f"{arguments.count} particles, 1692 references", ["box", *names, "target, s"], rows)
    for box, table in stages.items():
        print_table(f"{box} px, stages one after the other", ["stage", "s"], [*table.items()])
    print_more(more)
    print_json({**figures, "more_devices": more})


def print_more(more):
    """Print the table of what :meth:`Benchmark.more` found for each box."""
    rows = [[f"{box} px", *found.values()] for box, sets in more.items() for found in sets]
    if rows:
        names = next(found for sets in more.values() for found in sets)
        print_table("More devices, and their result beside that of one", ["box", *names], rows)


def ceilings(device):
    """Measured TFLOP/s of fused multiplications and additions, and GB/s of a copy."""
    if device.kind == "cpu":
        return {"peak_tflops": None, "copy_gbs": None}
    xp = device.xp
    kernel, out, rounds = xp.RawKernel(_FMA, "fma_rate"), xp.zeros(1, np.float32), 20000
    blocks, threads = 132 * 16, 256
    seconds = timed(device, lambda: kernel((blocks,), (threads,), (out, np.int32(rounds))), 3)
    source = xp.zeros(1 << 28, np.float32)
    target = xp.empty_like(source)
    copying = timed(device, lambda: xp.copyto(target, source), 3)
    return {
        "peak_tflops": blocks * threads * rounds * 16 * 2 / seconds / 1e12,
        "copy_gbs": 2 * source.nbytes / copying / 1e9,
    }


def timed(device, call, repeats):
    """Median seconds of a call that has been made once before."""
    call()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def synchronize(device):
    if device.kind == "cuda":
        device.xp.cuda.Device().synchronize()


def oracle_error(device):
    """Largest difference of the search from its oracle, relative to the largest score, on random images."""
    rng = np.random.default_rng()
    grid = polar.polar_grid(64, 31, 25, 6)
    images = rng.normal(size=(40, 64, 64)).astype(np.float32) * polar.soft_circle(64, 25)
    samples = polar.polar_samples(images, grid)
    weights, shifts = polar.ring_weights(grid), rng.uniform(-6, 6, (23, 2))
    coefficients = polar.angular_coefficients(samples[3:], grid)
    search = PolarSearch(grid, device.asarray(coefficients), weights)
    score = to_host(search(device.asarray(samples[:3]), shifts)[0])
    shifted = polar.angular_coefficients(samples[:3, None] * polar.shift_phases(grid, shifts), grid)
    best = oracle(coefficients * (weights[:, None] * grid.harmonic_weights), shifted, search.n_psi)[0]
    return float(np.abs(score - best).max() / np.abs(best).max())


class Benchmark:
    """One set of particles."""

    def __init__(self, made, device):
        self.made, self.device = made, device
        self.parameters = AlignSignificantParameters(max_shift=MAX_SHIFT)

    def figures(self, folder):
        """Seconds, rates and accuracy."""
        rows = self.align()
        reset_peak()
        seconds = timed(self.device, self.align, 5)
        table = rows.particles
        errors = direction_errors(table.rot, table.tilt, *self.made.eulers[table.extra["imageIndex"] - 1, :2].T)
        return {
            "s": seconds,
            "command_s": self.command(folder),
            **self.kernel(),
            "within5": float((errors <= 5).mean()),
            "within10": float((errors <= 10).mean()),
            "device_gib": device_bytes(self.device)["pool"] / 2**30,
            "host_gib": memory("VmHWM") / 2**30,
        }

    def align(self, *devices):
        """Rows of all particles, references included, on the device or on several."""
        made, parameters = self.made, self.parameters
        references = open_references(made.volume)
        aligners = make_aligners(references, made.particles, parameters, devices or [self.device])
        return assignment.assign(aligners, made.particles, references, parameters)

    def more(self, sets, seconds):
        """What several devices make of the `seconds` of one, and how far their result is from its."""
        one, found = self.align(), []
        for devices in sets:
            align = functools.partial(self.align, *devices)
            taken = timed(self.device, align, 5)
            times = {"devices": len(devices), "one, s": seconds, "s": taken, "times faster": seconds / taken}
            tables = (rows.particles.take(rows.first) for rows in (one, align()))
            found.append({**times, **alignment_difference(*tables)})
        return found

    def command(self, folder):
        """Seconds of the whole command, from its start to its files."""
        command = [sys.executable, "-m", "xmipp_accel.cli", "align", self.made.star, self.made.volume]
        command += ["--max-shift", MAX_SHIFT, "--output", folder / "aligned", "--device", self.device.kind]
        seconds = []
        for _ in range(2):  # the first one compiles
            start = time.perf_counter()
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        return seconds[-1]

    def kernel(self):
        """Seconds of the first stage's kernel, arithmetic it needs and bytes it must move."""
        aligner = PolarAligner(
            open_references(self.made.volume), self.made.particles, self.parameters, self.device
        )
        search, grid, shifts = aligner.coarse.search, aligner.comparison.coarse, aligner.comparison.shifts
        count = min(256, len(self.made.particles))
        xp, shape = self.device.xp, (count, aligner.n_references)
        samples = aligner._samples(self.made.particles.take(np.arange(count))).values[:, : grid.n_rings]
        shifted = polar.angular_coefficients(samples[:, None] * polar.shift_phases(grid, shifts, xp), grid)
        particles = search.kernel.arranged(samples, shifted)
        candidates = xp.broadcast_to(xp.arange(shape[1], dtype=np.int32), shape).copy()
        results = xp.zeros(shape, np.float32), xp.zeros(shape, np.int32), xp.zeros(shape, np.int32)
        seconds = timed(self.device, lambda: search.kernel(particles, len(shifts), candidates, *results), 3)
        arrange = timed(self.device, lambda: search.kernel.arranged(samples, shifted), 3)
        rings = grid.n_rings - to_host(first_rings(aligner.coarse.coefficients, grid.n_harmonics))
        quarter = search.n_psi // 4 + 1
        flops = 8 * int(rings.sum()) + 4 * grid.n_harmonics * quarter
        pairs = shape[0] * shape[1]
        moved = shifted.nbytes + 8 * aligner.coarse.coefficients.size + 12 * pairs
        return {
            "shifts": len(shifts),
            "kernel_s": seconds * len(self.made.particles) / count,
            "arrange_s": arrange * len(self.made.particles) / count,
            "kernel_tflops": flops * len(shifts) * pairs / seconds / 1e12,
            "kernel_gbs": moved / seconds / 1e9,
        }

    def stages(self):
        """Seconds of each stage when nothing overlaps."""
        spent: dict[str, float] = {}
        patched = [
            (align, "reference_coefficients", "references from the volume"),
            (align.PolarAligner, "_samples", "particles: read, mask, transform"),
            (align.PolarComparison, "__init__", "first stage, all pairs"),
            (align.PolarComparison, "poses", "second stage, 128 references a particle"),
            (align.PolarComparison, "polished", "polish"),
            (assignment, "best_first", "choice of the candidates"),
            (assignment, "entropies", "entropies"),
            (assignment.PooledRanks, "add", "ranks: counting"),
            (assignment.PooledRanks, "weights", "ranks: weights"),
        ]
        originals = [getattr(owner, name) for owner, name, _ in patched]
        at_once, sweep._AT_ONCE = sweep._AT_ONCE, {"cpu": 1, "cuda": 1}
        for (owner, name, label), original in zip(patched, originals):
            setattr(owner, name, self._timing(original, label, spent))
        try:
            start = time.perf_counter()
            self.align()
            total = time.perf_counter() - start
        finally:
            sweep._AT_ONCE = at_once
            for (owner, name, _), original in zip(patched, originals):
                setattr(owner, name, original)
        return {**spent, "the rest": total - sum(spent.values()), "all": total}

    def _timing(self, original, label, spent):
        def call(*arguments, **options):
            synchronize(self.device)
            start = time.perf_counter()
            result = original(*arguments, **options)
            synchronize(self.device)
            spent[label] = spent.get(label, 0.0) + time.perf_counter() - start
            return result

        return call


if __name__ == "__main__":
    main()
