"""Accuracy of the movie alignment on the CPU, and its wall time and accuracy beside RELION's in the same run.

``make bench-movies`` runs it; the last line is JSON. Errors are root mean square lengths in px after removing the
mean over the frames: of whole frames' translations for the drift movies, of the full field on a grid of 17 x 17
positions for the doming ones. Nothing is tuned for any movie.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import movie_data, movie_peers
from benchmarks.reporting import print_json, print_machine, print_table
from xmipp_accel.io.movies import open_movie
from xmipp_accel.movie_alignment.result import MovieAlignmentResult
from xmipp_accel.report.evaluate import shift_rmse

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 4  # one start and three that count, for each B-factor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small movies and two B-factors, to try the script")
    parser.add_argument("--seeds", type=int, nargs="*", default=[11, 12], help="seeds of further movies")
    parser.add_argument("--folder", type=Path, help="keep movies and results here; a later run uses the movies")
    parser.add_argument("--torch-python", help="interpreter of an environment with torch-motion-correction")
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments.folder or Path(temporary), arguments.seeds, arguments.quick, arguments.torch_python)


def run(folder, seeds, quick, torch_python):
    print(movie_data.source(), flush=True)
    folder = folder / "quick" if quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    movies = make_movies(folder, [] if quick else seeds, dict(size=384, frames=8) if quick else {})
    b_factors = movie_peers.B_FACTORS[1:3] if quick else movie_peers.B_FACTORS
    ours = align(movies, folder)
    relion = run_relion(movies, folder, b_factors)
    print_accuracy(movies, ours, relion)
    best: dict[str, float] = {name: min(errors.values()) for name, errors in relion.items()}
    figures: dict[str, object] = {"source": "reference" if movie_data.GENERATOR.exists() else "simulate"}
    errors = {name: error(movies[name], ours[name]) for name in movies}
    for key in ("drift", "dome", "lowdose_dome"):
        figures |= {f"{key}_px": errors[key], f"relion_{key}_px": best.get(key)}
    figures["bad_pixel_change_px"] = abs(errors["dome_bad"] - errors["dome"])
    figures["bad_pixel_moved_px"] = moved(movies["dome"], ours["dome"], ours["dome_bad"])
    figures |= race(movies["dome"], folder, b_factors)
    figures["stages_s"] = ours["dome"].timings
    figures["memory_over_movie"] = memory_over_movie(movies["dome"], folder)
    if torch_python:
        field, figures["torch_wall_s"] = movie_peers.run_torch(movies["dome"], folder / "torch", torch_python)
        figures["torch_dome_px"] = shift_rmse(field, movies["dome"].field)
    print_json(figures)


def make_movies(folder, seeds, size):
    """Make the reference movies, the one with few electrons, the one with bad pixels, and fresh seeds of each."""
    movies = [
        movie_data.make_movie(folder, "dome", local=4, seed=3, **size),
        movie_data.make_movie(folder, "drift", local=0, seed=4, **size),
        movie_data.make_movie(folder, "lowdose_dome", local=4, seed=3, dose_per_frame=movie_data.LOW_DOSE, **size),
    ]
    movies.append(movie_data.with_bad_pixels(movies[0], folder, "dome_bad"))
    for seed in seeds:
        movies += [
            movie_data.make_movie(folder, f"dome_{seed}", local=4, seed=seed, **size),
            movie_data.make_movie(folder, f"drift_{seed}", local=0, seed=seed, **size),
            movie_data.make_movie(
                folder, f"lowdose_dome_{seed}", local=4, seed=seed, dose_per_frame=movie_data.LOW_DOSE, **size
            ),
        ]
    return {movie.name: movie for movie in movies}


def error(movie, motion) -> float:
    """Score a result of ours or of RELION's, as the module's docstring says."""
    if movie.name.startswith("drift"):
        return shift_rmse(motion.shifts, movie.shifts)
    return shift_rmse(movie.sample(motion.field), movie.field)


def moved(movie, motion, other) -> float:
    """Rms difference between two results for one movie's field, px."""
    return shift_rmse(movie.sample(motion.field), movie.sample(other.field))


def align(movies, folder):
    """Results of ours by name."""
    work([job(movie, folder) for movie in movies.values()], folder)
    return {name: result(movie, folder) for name, movie in movies.items()}


def result(movie, folder):
    return MovieAlignmentResult.from_json(folder / "ours" / movie.name / "movie.json")


def job(movie, folder, times=1, patches=0):
    """What the worker does: patches along each axis as many as wanted, 0 for the default."""
    return {
        "movie": str(movie.path),
        "gain": str(movie.gain),
        "dose_per_frame": movie.dose_per_frame,
        "output": str(folder / "ours" / movie.name),
        "times": times,
        "patches": patches,
    }


def work(jobs, folder):
    """Run the worker; it starts from nothing, so that its first movie shows what starting costs."""
    path = folder / "jobs.json"
    path.write_text(json.dumps({"started": time.time(), "jobs": jobs}))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "benchmarks.movie_worker", str(path)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(finished.stdout.splitlines()[-1])


def run_relion(movies, folder, b_factors):
    """RELION's errors by movie and B-factor; empty without RELION."""
    version = movie_peers.relion_version()
    if not version:
        print(f"RELION is left out: {movie_peers.RELION} is not on the PATH (apt-get install relion)", flush=True)
        return {}
    print(f"RELION {version}", flush=True)
    return {
        name: {b: error(movie, movie_peers.run_relion(movie, folder / "relion", b)) for b in b_factors}
        for name, movie in movies.items()
    }


def print_accuracy(movies, ours, relion):
    b_factors = list(next(iter(relion.values()), ()))
    columns = ["movie", "e/px/frame", "xmipp_accel", "status", *(f"RELION B {b}" for b in b_factors)]
    rows = []
    for name, movie in movies.items():
        exposure = movie.dose_per_frame * movie_data.SAMPLING_RATE**2
        row = [name, exposure, error(movie, ours[name]), ours[name].status]
        rows.append(row + list(relion.get(name, {}).values()))
    print_table("Error, px", columns, rows)


def race(movie, folder, b_factors):
    """Seconds per movie of ours, with RELION's patches and by default, and of RELION, by turns; their ratios."""
    times: dict[str, list[float]] = {"relion": [], "same_patches": [], "default": []}
    figures: dict[str, float] = {}
    for b_factor in b_factors:
        if movie_peers.relion_version():
            times["relion"] += movie_peers.run_relion(movie, folder / "relion", b_factor, REPEATS).seconds
        for key, patches in (("same_patches", movie_peers.PATCHES), ("default", 0)):
            report = work([job(movie, folder, REPEATS, patches)], folder)
            first, *others = report["jobs"][0]["seconds"]
            times[key] += others
            figures |= {"process_start_s": report["ready_s"], "first_movie_s": first}
            if patches:
                figures["dome_same_patches_px"] = error(movie, result(movie, folder))
    rows = []
    for key, seconds in times.items():
        if seconds:
            figures |= {f"{key}_wall_s": statistics.median(seconds), f"{key}_fastest_s": min(seconds)}
            rows.append([key, statistics.median(seconds), min(seconds), len(seconds)])
    columns = ["", "median, s", "fastest, s", "movies"]
    print_table("Wall time of the doming movie, global and local alignment, both averages", columns, rows)
    if times["relion"]:
        for key, ratio in (("same_patches", "wall_over_relion"), ("default", "default_wall_over_relion")):
            figures[ratio] = figures[f"{key}_wall_s"] / figures["relion_wall_s"]
            figures[f"fastest_{ratio}"] = figures[f"{key}_fastest_s"] / figures["relion_fastest_s"]
    return figures


def memory_over_movie(movie, folder) -> float:
    """Peak growth of the process for a movie four times as large, over the size of that movie in float32."""
    small = movie_data.cut(movie, folder, "small", 6, 256)
    large = movie_data.tiled(movie, folder, "large", 2)
    report = work([job(small, folder), job(large, folder)], folder)
    return report["jobs"][1]["growth_bytes"] / (4.0 * np.prod(open_movie(large.path).shape))


if __name__ == "__main__":
    main()
