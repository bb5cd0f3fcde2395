"""Draw measured against true motion of the drift and the doming movie: ``docs/figures/movie_alignment.png``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.movie_data import SIZE, make_movie
from benchmarks.movies import error
from xmipp_accel.backend import resolve_device
from xmipp_accel.movie_alignment import MovieAlignmentExecutor, MovieAlignmentParameters

FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "movie_alignment.png"
EXAGGERATION = 20
TRUE, MEASURED = "0.75", "tab:red"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the movies here; a later run uses them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        movies = [make_movie(folder, "drift", local=0, seed=4), make_movie(folder, "dome", local=4, seed=3)]
        results = [align(movie, Path(temporary), resolve_device(arguments.device)) for movie in movies]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(movies, results).savefig(arguments.output, dpi=90)


def align(movie, folder, device):
    parameters = MovieAlignmentParameters(dose_per_frame=movie.dose_per_frame)
    return MovieAlignmentExecutor(parameters, device, gain=movie.gain).process(movie.path, folder / "out")


def draw(movies, results) -> Figure:
    """Traces of both movies, and the local tracks of the second."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, movie, result in zip(panels, movies, results):
        traces(axes, movie, result)
    tracks(panels[2], movies[1], results[1])
    return figure


def traces(axes, movie, result):
    """Draw the field's mean in each frame, relative to the mean over the frames."""
    frames = np.arange(1, len(movie.field) + 1)
    found = movie.sample(result.field).mean(axis=(1, 2))
    for column, name, mark in ((1, "x", "o"), (0, "y", "s")):
        true, measured = (values[:, column] - values[:, column].mean() for values in (movie.shifts, found))
        axes.plot(frames, true, "-", color=TRUE, lw=4, label="true" if name == "x" else None)
        axes.plot(frames, measured, mark, color=MEASURED, ms=4, mfc="none", label=f"measured {name}")
    axes.set(xlabel="frame", ylabel="translation (px)")
    axes.set_title(f"{movie.name}: mean of the field; error {error(movie, result):.3f} px")
    axes.legend(frameon=False)


def tracks(axes, movie, result):
    """Local motion, that of the whole frames taken off, as tracks over the field of view."""
    for field, style in (
        (movie.field, dict(color=TRUE, lw=4)),
        (movie.sample(result.field), dict(color=MEASURED, lw=1)),
    ):
        local = field - field.mean(axis=(1, 2), keepdims=True)
        local = EXAGGERATION * (local - local[0])
        for i in range(2, len(movie.nodes), 3):
            for j in range(2, len(movie.nodes), 3):
                axes.plot(movie.nodes[j] + local[:, i, j, 1], movie.nodes[i] + local[:, i, j, 0], **style)
    axes.set(xlim=(0, SIZE), ylim=(0, SIZE), xlabel="x (px)", ylabel="y (px)", aspect="equal")
    axes.set_title(f"{movie.name}: local motion, {EXAGGERATION} times as long")


if __name__ == "__main__":
    main()
