"""One long-lived process that aligns movies on the CPU and tells times and memory.

Run as ``python -m benchmarks.movie_worker JOBS.json``, where the file holds the time at which this was ``started``
and ``jobs``: ``movie``, ``gain``, ``dose_per_frame``, ``output``, ``times`` and ``patches`` of each. Prints one
line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.reporting import memory, reset_peak
from xmipp_accel.movie_alignment.executor import MovieAlignmentExecutor
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters


def main(path):
    order = json.loads(Path(path).read_text())
    report = {"ready_s": time.time() - order["started"], "jobs": []}
    for job in order["jobs"]:
        held = memory()
        reset_peak()
        patches = {"patches_y": job["patches"], "patches_x": job["patches"]}
        parameters = MovieAlignmentParameters(dose_per_frame=job["dose_per_frame"], **patches)
        executor = MovieAlignmentExecutor(parameters, gain=job["gain"])
        seconds = []
        for _ in range(job["times"]):
            start = time.perf_counter()
            executor.process(job["movie"], job["output"])
            seconds.append(time.perf_counter() - start)
        report["jobs"].append({"seconds": seconds, "growth_bytes": memory("VmHWM") - held})
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
