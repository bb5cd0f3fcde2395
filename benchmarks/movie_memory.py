"""Does a process that aligns movies for days grow? 300 small ones in one process, host and device memory.

The last line is JSON: what the process held after the first 20 movies and after the last, and by how much it grew.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.drifting_movie import write_movie
from benchmarks.gpu_activity import device_bytes, release_device_memory
from benchmarks.reporting import memory, print_json, print_machine, print_table
from xmipp_accel.backend import resolve_device
from xmipp_accel.io.images import write_image
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters

SHAPE, SAMPLING_RATE = (8, 256, 256), 1.5
DIFFERENT, SETTLED, SHOWN = 5, 20, 40


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", type=int, default=300)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments = parser.parse_args()
    print_machine()
    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder, device.activate():
        held = run(Path(folder), device, arguments.movies)
    columns = ["movies", "host MiB", "device MiB", "device pool MiB"]
    print_table(str(device), columns, [[count, *(value / 2**20 for value in row)] for count, *row in held])
    print_json(growth(held))


def run(folder, device, count):
    """Movies done, bytes of the process, of the device and of its pool, now and then."""
    for number in range(DIFFERENT):
        _, gain = write_movie(folder / f"movie{number}.mrc", SHAPE, SAMPLING_RATE, device.xp, seed=number)
    # The last movie's gain serves them all: how well they are aligned does not matter here.
    write_image(folder / "gain.mrc", gain, SAMPLING_RATE)
    release_device_memory(device)
    parameters = MovieAlignmentParameters(dose_per_frame=1.0)
    executor = MovieAlignmentExecutor(parameters, device, gain=folder / "gain.mrc")
    held = []
    for number in range(1, count + 1):
        executor.process(folder / f"movie{number % DIFFERENT}.mrc", folder / "out")
        if number == SETTLED or number % SHOWN == 0 or number == count:
            on_device = device_bytes(device)
            held.append((number, memory(), on_device["used"], on_device["pool"]))
    return held


def growth(held):
    """Figures of the first and the last row, and the growth of each column in per cent."""
    figures = {"movies": held[-1][0]}
    for key, first, last in zip(("host", "device", "device_pool"), held[0][1:], held[-1][1:]):
        figures[f"{key}_mib"] = last / 2**20
        figures[f"{key}_growth_percent"] = 100 * (last / first - 1) if first else 0.0
    return figures


if __name__ == "__main__":
    main()
