"""Movies with known motion for the benchmarks: drift, doming, few electrons, bad pixels.

They come from ``tools/make_truth.py`` of the reference folder where that is there, else from
:mod:`xmipp_accel.simulate.movies` with the same size, exposure and extent of motion.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from xmipp_accel.io.images import read_image, write_image, write_stack
from xmipp_accel.io.movies import open_movie

SHARED = Path(os.environ.get("XMIPP_ACCEL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
GENERATOR = SHARED / "tools" / "make_truth.py"
PARTICLE = SHARED / "data" / "maps" / "groel_1mnf_2.5A_96.mrc"
SIZE, FRAMES, SAMPLING_RATE, DRIFT = 1024, 20, 1.5, 8.0
DOSE = 1.0  # e/A^2 a frame
LOW_DOSE = 0.3 / SAMPLING_RATE**2  # 0.3 e/px a frame
NODES = 17
BAD_SHARE, HOT_COUNTS = 0.005, 45.0


@dataclasses.dataclass(frozen=True)
class BenchmarkMovie:
    """A movie and the motion in it.

    Attributes
    ----------
    name : str
    path, gain : Path
    dose_per_frame : float
        e/A^2.
    nodes : ndarray, shape (g,)
        Positions in px, the same along y and x.
    field : ndarray, shape (n, g, g, 2)
        Translation (y, x) to apply at the nodes, px.
    """

    name: str
    path: Path
    gain: Path
    dose_per_frame: float
    nodes: np.ndarray
    field: np.ndarray

    @property
    def shifts(self):
        """Translation (n, 2) of the whole frames."""
        return self.field.mean(axis=(1, 2))

    def sample(self, field):
        """Values (n, g, g, 2) at the nodes of a function ``field(y, x, t)``."""
        return field(self.nodes[:, None], self.nodes, np.arange(len(self.field))[:, None, None])


def source() -> str:
    """Where the movies come from, for people."""
    if GENERATOR.exists():
        return f"movies from {GENERATOR.name} of the reference folder"
    return f"movies from xmipp_accel.simulate: {GENERATOR} is not there (set XMIPP_ACCEL_SHARED)"


def make_movie(folder, name, *, local, seed, dose_per_frame=DOSE, size=SIZE, frames=FRAMES) -> BenchmarkMovie:
    """Make a movie, or find the one that an earlier run left in `folder`.

    Parameters
    ----------
    folder : Path
        Receives a folder `name`.
    name : str
    local : float
        Largest local motion, px; 0 is drift alone.
    seed : int
    dose_per_frame : float
        e/A^2.
    size, frames : int
    """
    make = reference_movie if GENERATOR.exists() else simulated_movie
    return make(folder / name, name, local, seed, dose_per_frame, size, frames)


def reference_movie(folder, name, local, seed, dose, size, frames):
    """Let the reference folder's generator make it."""
    if not (folder / "movies.star").exists():  # written last
        options = dict(
            out=folder, map=PARTICLE, size=size, frames=frames, apix=SAMPLING_RATE, dose=dose, drift=DRIFT,
            local=local, seed=seed, motion="dome", format="mrcs", dtype="uint8",
        )  # fmt: skip
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        subprocess.run(
            [sys.executable, str(GENERATOR), "movie", *arguments], check=True, stdout=subprocess.DEVNULL
        )
    truth = np.load(folder / "truth.npz", allow_pickle=False)
    # The generator stores where features went; what is applied is the opposite.
    return BenchmarkMovie(
        name, folder / "movie.mrcs", folder / "gain.mrc", dose, truth["field_y"], -truth["field"]
    )


def simulated_movie(folder, name, local, seed, dose, size, frames):
    """Make it with this package alone."""
    from xmipp_accel.simulate.movies import MovieTruth, simulate_movie

    stored = folder / "movie_truth.json"
    if stored.exists():
        truth = MovieTruth.from_json(stored)
    else:
        truth = simulate_movie(
            folder, seed=seed, size=size, frames=frames, sampling_rate=SAMPLING_RATE, dose_per_frame=dose,
            drift=DRIFT, local=local, gain_seed=seed,
        )  # fmt: skip
    nodes = np.linspace(0, size - 1, NODES)
    field = truth.field(nodes[:, None], nodes, np.arange(frames)[:, None, None])
    return BenchmarkMovie(name, folder / truth.movie, folder / truth.gain, dose, nodes, field)


def with_bad_pixels(movie, folder, name, seed=0) -> BenchmarkMovie:
    """Make half of `BAD_SHARE` of the pixels dead and the other half hot, and mark none of them in the gain."""
    rng = np.random.default_rng(seed)
    frames = open_movie(movie.path).read().astype(np.int64)
    n, ny, nx = frames.shape
    bad = rng.choice(ny * nx, int(BAD_SHARE * ny * nx), replace=False)
    dead, hot = np.split(bad, [len(bad) // 2])
    pixels = frames.reshape(n, ny * nx)
    pixels[:, dead] = 0
    pixels[:, hot] += rng.poisson(HOT_COUNTS, (n, len(hot)))
    return _derived(movie, folder, name, np.clip(frames, 0, 127), read_image(movie.gain)[0])


def tiled(movie, folder, name, times) -> BenchmarkMovie:
    """Repeat a movie beside and below itself, for its size alone."""
    frames = np.tile(open_movie(movie.path).read(), (1, times, times))
    return _derived(movie, folder, name, frames, np.tile(read_image(movie.gain)[0], (times, times)))


def cut(movie, folder, name, frames, size) -> BenchmarkMovie:
    """Take the first frames' corner, for what any movie compiles and loads."""
    gain = read_image(movie.gain)[0][:size, :size]
    return _derived(movie, folder, name, open_movie(movie.path).read(0, frames)[:, :size, :size], gain)


def _derived(movie, folder, name, frames, gain):
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    write_stack(path / "movie.mrcs", frames.astype(np.int8), SAMPLING_RATE, np.int8)
    write_image(path / "gain.mrc", gain, SAMPLING_RATE)
    return dataclasses.replace(movie, name=name, path=path / "movie.mrcs", gain=path / "gain.mrc")
