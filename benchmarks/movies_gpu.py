"""Seconds per movie on one GPU, for the camera sizes of a facility, in one long-lived process.

``make bench-movies-gpu`` runs it; the last line is JSON. Each size gets an int8 MRC movie that drifts, made on the
GPU, and a gain reference; it is read from the page cache, aligned globally and locally with default parameters and
dose weighting, and both averages are written. Once warm, movies are first aligned one by one, then as a stream in
which reading, computing and writing of consecutive movies overlap.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.drifting_movie import write_movie
from benchmarks.gpu_activity import device_bytes, release_device_memory, traced_activity, utilization
from benchmarks.reporting import memory, print_json, print_machine, print_table, reset_peak
from xmipp_accel.backend import resolve_device
from xmipp_accel.backend.devices import cuda_status
from xmipp_accel.io.images import write_image
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters
from xmipp_accel.report.evaluate import shift_rmse

# (frames, height, width), A/px, seconds to be reached on one H200.
SIZES = {
    "falcon": ((40, 4096, 4096), 1.0, 0.14),
    "k2": ((40, 3710, 3838), 1.0, 0.12),
    "k3": ((30, 4092, 5760), 0.83, 0.15),
    "k2_super": ((40, 7420, 7676), 0.5, 0.45),
    "k3_super": ((20, 8184, 11520), 0.415, 0.40),
}
SMALL = {"small": ((8, 510, 638), 1.0, None)}
ALONE, STREAMED = 5, 16
# What the floors assume: readers into pinned memory, PCIe 5 x16, device memory; bytes/s.
READ_RATE, PCIE_RATE, HBM_RATE = 25e9, 55e9, 4e12
# Bytes of device memory for each pixel of each frame that no algorithm of this kind avoids: gain, transform, warp
# (50) and the transform for dose weighting (24). Work on down-sampled frames and patches comes on top.
HBM_BYTES_PER_PIXEL = 74
BUSY_SECONDS = 4.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument(
        "--folder", type=Path, help="where movies of up to 2.3 GB lie for a while; /tmp by default"
    )
    parser.add_argument("--profile", action="store_true", help="trace one more movie with PyTorch's profiler")
    parser.add_argument("--try-on-cpu", action="store_true", help="one small movie on the CPU, to try the script")
    arguments = parser.parse_args()
    count, reason = cuda_status()
    if not count and not arguments.try_on_cpu:
        raise SystemExit(f"bench-movies-gpu needs a GPU: {reason}")
    print_machine()
    device = resolve_device("cpu" if arguments.try_on_cpu else "cuda")
    sizes = SMALL if arguments.try_on_cpu else {name: SIZES[name] for name in arguments.sizes}
    figures = {}
    for name, (shape, sampling_rate, target) in sizes.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, device.activate():
            bench = SizeBenchmark(name, shape, sampling_rate, device, Path(folder))
            figures[name] = bench.measure(arguments.profile) | {"target_s": target}
        bench.show(figures[name])
    print_overview(figures)
    print_json(figures)


class SizeBenchmark:
    """One size: its movie, its executor and its figures."""

    def __init__(self, name, shape, sampling_rate, device, folder):
        self.name, self.shape, self.device, self.folder = name, shape, device, folder
        start = time.perf_counter()
        self.movie, gain = folder / "movie.mrc", folder / "gain.mrc"
        self.shifts, image = write_movie(self.movie, shape, sampling_rate, device.xp)
        write_image(gain, image, sampling_rate)
        self.generation = time.perf_counter() - start
        release_device_memory(device)
        parameters = MovieAlignmentParameters(dose_per_frame=1.0)
        self.executor = MovieAlignmentExecutor(parameters, device, gain=gain)

    def process(self):
        """Align the movie once more; finished when its files are written."""
        return self.executor.process(self.movie, self.folder / "out")

    def stream(self):
        """Align the movie several times as the engine does, so many at a time as the executor wants.

        Gives the last result and the seconds a movie takes, from the second on.
        """
        ended = []

        def process(number):
            result = self.executor.process(self.movie, self.folder / "out", f"movie{number}")
            ended.append(time.perf_counter())
            return result

        with concurrent.futures.ThreadPoolExecutor(self.executor.IN_FLIGHT) as pool:
            results = list(pool.map(process, range(STREAMED)))
        return results[-1], (ended[-1] - ended[0]) / (STREAMED - 1)

    def measure(self, profile):
        """All figures of this size; seconds, bytes and px."""
        device_before, host_before = device_bytes(self.device), memory()
        reset_peak()
        alone, results = [], []
        for _ in range(ALONE):
            start = time.perf_counter()
            results.append(self.process())
            alone.append(time.perf_counter() - start)
        self.stream()  # each thread that computes has a first movie
        result, seconds = self.stream()
        after = device_bytes(self.device)
        busy = utilization(self.stream, BUSY_SECONDS, self.device)
        return {
            "seconds": seconds,
            "alone_s": statistics.median(alone[1:]),
            "first_s": alone[0],
            "stages_s": {key: statistics.median(r.timings[key] for r in results[1:]) for key in result.timings},
            "device_peak_gib": (after["used"] - device_before["used"]) / 2**30,
            "device_pool_gib": after["pool"] / 2**30,
            "host_peak_gib": memory("VmHWM") / 2**30,
            "host_growth_gib": (memory("VmHWM") - host_before) / 2**30,
            "generation_s": self.generation,
            "status": result.status,
            "error_px": shift_rmse(result.shifts, self.shifts),
            "field_error_px": self.field_error(result),
            "busy": busy,
            "busy_s": None if busy is None else busy * seconds,
            **self.floors(),
            **(traced_activity(self.process) if profile else {}),
        }

    def field_error(self, result):
        """Error over the whole field, px: the movie has no local motion, so that any found adds to it."""
        n, ny, nx = self.shape
        y, x = np.linspace(0, ny - 1, 9)[:, None], np.linspace(0, nx - 1, 9)
        field = result.field(y, x, np.arange(n)[:, None, None])
        return shift_rmse(field, self.shifts[:, None, None])

    def floors(self):
        """Bytes that must move for one movie, and how long each path needs for its share at least."""
        n, ny, nx = self.shape
        up, down = n * ny * nx, 2 * 4 * ny * nx
        device = HBM_BYTES_PER_PIXEL * n * ny * nx
        floors = {"read": up / READ_RATE, "pcie": (up + down) / PCIE_RATE, "hbm": device / HBM_RATE}
        return {
            "moved_gb": {"up": up / 1e9, "down": down / 1e9, "device": device / 1e9},
            "floor_s": floors,
            "floor_overlapped_s": max(floors.values()),
            "floor_in_turn_s": sum(floors.values()),
        }

    def show(self, figures):
        """Print the figures as a table."""
        rows = [[key, _plain(value)] for key, value in figures.items()]
        n, ny, nx = self.shape
        print_table(f"{self.name}, {nx} x {ny} x {n}", ["figure", "value"], rows)


def _plain(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:.3g}" for key, part in value.items())
    return value


def print_overview(figures):
    columns = {
        "seconds": "streamed, s", "target_s": "target, s", "alone_s": "one by one, s", "busy_s": "GPU busy, s",
        "floor_overlapped_s": "floor, s", "device_peak_gib": "device, GiB", "host_peak_gib": "host, GiB",
        "error_px": "error, px",
    }  # fmt: skip
    rows = [[name, *(size[key] for key in columns)] for name, size in figures.items()]
    print_table("Overview, per movie", ["size", *columns.values()], rows)


if __name__ == "__main__":
    main()
