"""The demo: simulated data with known truth, processed by the three executors, and measured against the truth."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.backend import resolve_device
from xmipp_accel.io.images import read_image, read_stack
from xmipp_accel.io.particles import Particles, read_particles
from xmipp_accel.io.publish import read_json, write_json
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.movie_alignment.result import MovieAlignmentResult
from xmipp_accel.report import evaluate, figures
from xmipp_accel.report.page import Measurement, text_table, write_page
from xmipp_accel.simulate.movies import MovieTruth, simulate_movie
from xmipp_accel.simulate.particles import simulate_particles
from xmipp_accel.simulate.phantom import protein_phantom

TEMPLATE = "xmipp_accel-demo"

MOVIES = 3
MOVIE_PATTERN = "movie_?.mrc"
MOVIE: dict[str, Any] = {"size": 640, "frames": 14, "sampling_rate": 1.5, "dose_per_frame": 1.2}
PARTICLES: dict[str, Any] = {"count": 1500, "box": 64, "sampling_rate": 5.0, "snr": 1.0, "max_shift": 3.0}
VIEWS: dict[str, Any] = {"count": 320, "box": 64, "sampling_rate": 5.0, "snr": 0.3, "max_shift": 3.0, "views": 8}
CLASSES = 8
REFERENCE_BLUR = 5.0  # A, standard deviation: the starting map shows little beyond 20 A
DESCRIPTION = {
    "movies": MOVIES,
    "movie": MOVIE,
    "particles": PARTICLES,
    "views": VIEWS,
    "reference_blur": REFERENCE_BLUR,
}


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where the results of each step lie: Scipion's protocols and the bare executors write the same files."""

    movies: Path
    alignment: Path
    classes: Path
    reconstruction: Path


def run_engines(output: Path, device_name: str, seed: int) -> int:
    """Run the demo's executors without Scipion; returns 0 if every target is met."""
    from xmipp_accel.engine.inline import align_movies
    from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
    from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor
    from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
    from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
    from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
    from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
    from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

    output = Path(output)
    device = resolve_device(device_name)
    data = _data_folder(output, seed)
    results = output / "results"
    folders = Folders(*(results / name for name in ("movies", "alignment", "classes", "reconstruction")))
    times: dict[str, float] = {}
    with device.activate():
        with _timed(times, "movie alignment"):
            outcomes = align_movies(
                sorted(data.glob(MOVIE_PATTERN)),
                folders.movies,
                MovieAlignmentParameters(dose_per_frame=MOVIE["dose_per_frame"]),
                device,
                gain=data / "movie_1_gain.mrc",
            )
        for outcome in outcomes:
            if outcome.error is not None:
                print(f"{outcome.movie}: {outcome.error}", file=sys.stderr)
        with _timed(times, "Align Significant"):
            aligned = AlignSignificantExecutor(AlignSignificantParameters(), device).align(
                read_particles(data / "particles.star"), data / "reference.mrc", folders.alignment
            )
        with _timed(times, "2D classification"):
            Classify2DExecutor(Classify2DParameters(number_of_classes=CLASSES), device).classify(
                read_particles(data / "views.star"), folders.classes
            )
        with _timed(times, "Fourier reconstruction"):
            ReconstructFourierExecutor(ReconstructFourierParameters(), device).reconstruct(
                read_particles(aligned.particles_star), folders.reconstruction
            )
    return _present(output, data, folders, str(device), times)


def run_in_scipion(output: Path, device_name: str, seed: int) -> int:
    """Run the demo in a Scipion project made from the batch template; returns 0 if every target is met."""
    from xmipp_accel.batch import run_template

    output = Path(output).resolve()
    device = resolve_device(device_name)
    data = _data_folder(output, seed)
    values = {
        "movies": data,
        "pattern": MOVIE_PATTERN,
        "gain": data / "movie_1_gain.mrc",
        "particles": data / "particles.star",
        "reference": data / "reference.mrc",
        "views": data / "views.star",
        "movie_sampling": MOVIE["sampling_rate"],
        "voltage": 300,
        "dose": MOVIE["dose_per_frame"],
        "reference_sampling": PARTICLES["sampling_rate"],
        "symmetry": "c1",
        "classes": CLASSES,
        "use_gpu": str(device.kind == "cuda").lower(),
    }
    times: dict[str, float] = {}
    with _timed(times, "Scipion project, all protocols"):
        runs = run_template(TEMPLATE, "demo", values, output / "scipion", str(device))
    for run in runs:
        if run["status"] != "finished":
            print(f"{run['label']}: {run['status']}: {run['error']}; see {run['folder']}/logs", file=sys.stderr)
    extra = {run["class"]: Path(run["folder"]) / "extra" for run in runs}
    # The last instalment of the classification holds all particles.
    classes = "XmippAccelProtClassify2D"
    extra[classes] = max(extra[classes].glob("instalment_*"), default=extra[classes])
    names = ("MovieAlignment", "AlignSignificant", "Classify2D", "ReconstructFourier")
    folders = Folders(*(extra[f"XmippAccelProt{name}"] for name in names))
    status = _present(output, data, folders, str(device), times)
    return status or int(any(run["status"] != "finished" for run in runs))


@contextlib.contextmanager
def _timed(times, name):
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def _data_folder(output: Path, seed: int) -> Path:
    """Simulate what this seed stands for, unless it lies there already."""
    data = Path(output) / "data"
    wanted = {**DESCRIPTION, "seed": seed}
    if (data / "complete.json").exists() and read_json(data / "complete.json") == wanted:
        return data
    shutil.rmtree(data, ignore_errors=True)
    print("simulating movies and particles ...", flush=True)
    simulate(data, seed)
    write_json(data / "complete.json", wanted)
    return data


def simulate(folder: Path, seed: int) -> None:
    """Write the movies, the particles of random directions, those of a few views, and a coarse starting map."""
    for number in range(1, MOVIES + 1):
        simulate_movie(folder, name=f"movie_{number}", seed=100 * seed + number, gain_seed=seed, **MOVIE)
    phantom = protein_phantom(seed=seed)
    simulate_particles(folder, phantom=phantom, seed=seed, name="particles", **PARTICLES)
    simulate_particles(folder, phantom=phantom, seed=seed + 1, name="views", **VIEWS)
    box, sampling_rate = PARTICLES["box"], PARTICLES["sampling_rate"]
    write_volume(folder / "truth.mrc", phantom.volume(box, sampling_rate), sampling_rate)
    coarse = phantom.blurred(REFERENCE_BLUR).volume(box, sampling_rate)
    write_volume(folder / "reference.mrc", coarse, sampling_rate)


def _present(output, data, folders, device, times) -> int:
    """Compare with the truth, print the table, write the page."""
    sections, measurements = [], []
    for measure, folder in (
        (_measure_movies, folders.movies),
        (_measure_poses, folders.alignment),
        (_measure_classes, folders.classes),
        (_measure_map, folders.reconstruction),
    ):
        heading, lines, pictures = measure(data, folder)
        measurements += lines
        sections.append((heading, pictures))
    facts = [("device", device), *((name, f"{seconds:.1f} s") for name, seconds in times.items())]
    page = Path(output).resolve() / "demo.html"
    write_page(page, "xmipp_accel demo", facts, measurements, sections)
    print(
        "\n".join(
            ["", *(f"{name:<32}{value}" for name, value in facts), "", text_table(measurements), "", str(page)]
        )
    )
    return int(not all(measurement.met for measurement in measurements))


def _measure_movies(data, folder):
    """Errors of the whole field of every movie; a movie without a result misses its target."""
    lines, pictures = [], []
    for path in sorted(data.glob(MOVIE_PATTERN)):
        truth = MovieTruth.from_json(data / f"{path.stem}_truth.json")
        file = folder / f"{path.stem}.json"
        if not file.exists():
            lines.append(Measurement(f"{path.stem}: global shift RMSE (px)", float("nan"), 0.1, at_most=True))
            continue
        result = MovieAlignmentResult.from_json(file)
        y, x = (np.linspace(0, side - 1, 17) for side in truth.shape[1:])
        grid = y[:, None], x[None, :], np.arange(result.n_aligned)[:, None, None]
        measured, true = result.field(*grid), truth.field(*grid)
        whole = evaluate.shift_rmse(measured.mean(axis=(1, 2)), true.mean(axis=(1, 2)))
        lines.append(Measurement(f"{path.stem}: global shift RMSE (px)", whole, 0.1, at_most=True))
        local = evaluate.shift_rmse(measured, true)
        lines.append(Measurement(f"{path.stem}: local shift RMSE (px)", local, 0.3, at_most=True))
        micrograph, _ = read_image(result.output_path("unweighted", folder))
        pictures += [
            figures.movie_traces(result.shifts, path.stem, result.shift_errors),
            figures.local_field(result.field, result.shape, result.shifts, path.stem),
            figures.micrograph_image(micrograph, path.stem),
        ]
    return "Movie alignment", lines, pictures


def _measure_poses(data, folder):
    rows, truth = read_particles(folder / "aligned.star"), np.load(data / "particles.npz")
    best = _by_particle(rows, len(truth["eulers"]))
    measured, true = np.stack([rows.rot, rows.tilt, rows.psi], axis=1), truth["eulers"]
    errors = np.full(len(true), 180.0)
    found = best >= 0
    errors[found] = evaluate.rotation_errors(measured[best[found]], true[found])
    lines = [
        Measurement("poses within 5 degrees", float((errors <= 5).mean()), 0.6, at_most=False),
        Measurement("poses within 10 degrees", float((errors <= 10).mean()), 0.9, at_most=False),
    ]
    return "Align Significant", lines, [figures.direction_plot(rows.rot, rows.tilt)]


def _measure_classes(data, folder):
    rows, truth = read_particles(folder / "classes.star"), np.load(data / "views.npz")
    best = _by_particle(rows, len(truth["views"]))
    classes = np.where(best >= 0, rows.class_id[best], 0)
    averages = read_stack(folder / "classes.mrcs")
    sizes = [f"{i + 1}: {np.count_nonzero(rows.class_id == i + 1)}" for i in range(len(averages))]
    purity = evaluate.class_purity(classes, truth["views"])
    pictures = [figures.class_montage(averages, sizes, "class: particles")]
    return "2D classification", [Measurement("class purity", purity, 0.9, at_most=False)], pictures


def _by_particle(rows: Particles, count: int) -> np.ndarray:
    """Row of each simulated particle, by its position in its stack; -1 where there is none."""
    best = np.full(count, -1)
    best[rows.index[::-1]] = np.arange(len(rows))[::-1]
    return best


def _measure_map(data, folder):
    volume, sampling_rate = read_volume(folder / "volume.mrc")
    truth, _ = read_volume(data / "truth.mrc")
    frequencies, curve, resolution = evaluate.fsc_to_truth(volume, truth, sampling_rate)
    result = read_json(folder / "volume.json")
    # Nyquist is 10 A: with the truth and between half maps, most of what pixels can hold should be there.
    lines = [
        Measurement(
            "FSC with the truth is 0.5 at, of Nyquist", 2 * sampling_rate / resolution, 0.8, at_most=False
        ),
        Measurement("half maps agree (FSC 0.143) to, A", result["resolution"], 12.5, at_most=True),
    ]
    curves = {
        "with the truth": (frequencies, curve),
        "between half maps": (result["frequencies"], result["fsc_corrected"]),
    }
    agreement = figures.fsc_curves(curves, resolution=result["resolution"])
    pictures = [figures.volume_slices(volume, sampling_rate), agreement]
    return "Fourier reconstruction", lines, pictures
