"""Other programs on the same movies: RELION's own motion correction, TeamTomo's torch-motion-correction."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np

from benchmarks.movie_data import NODES, SAMPLING_RATE
from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.io.images import read_image
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tables import read_blocks

RELION = "relion_run_motioncorr"
B_FACTORS = 5, 20, 50, 150
PATCHES = 5
OPTICS = (
    "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n"
    "_rlnMicrographOriginalPixelSize #3\n_rlnVoltage #4\n_rlnSphericalAberration #5\n_rlnAmplitudeContrast #6\n"
    f"opticsGroup1 1 {SAMPLING_RATE} 300 2.7 0.1\n"
)
MOVIES = "\n\n# version 30001\n\ndata_movies\n\nloop_\n_rlnMicrographMovieName #1\n_rlnOpticsGroup #2\n"


@dataclasses.dataclass(frozen=True)
class RelionMotion:
    """What RELION found in one movie.

    Attributes
    ----------
    shifts : ndarray, shape (n, 2)
        Translation (y, x) to apply to whole frames, px of the movie.
    coefficients : ndarray, shape (2, 6, 3)
        Local model of (y, x): {1, x, x^2, y, y^2, x y} times {z, z^2, z^3}; zero if RELION gave it up.
    shape : (int, int)
        Frame's height and width.
    seconds : list of float
        Of each movie from the second on.
    """

    shifts: np.ndarray
    coefficients: np.ndarray
    shape: tuple[int, int]
    seconds: list[float]

    def field(self, y, x, t):
        """Translation (..., 2) to apply at (y, x) px in frame t; x and y run from -1/2 to 1/2 in the model."""
        y, x, t = np.broadcast_arrays(y, x, t)
        v, u = y / self.shape[0] - 0.5, x / self.shape[1] - 0.5
        space = np.stack([np.ones_like(u), u, u * u, v, v * v, u * v], axis=-1)
        time = np.stack([t, t**2, t**3], axis=-1)
        return self.shifts[t] + np.einsum("...s,...k,csk->...c", space, time, self.coefficients)


def relion_version() -> str:
    """Version of RELION on the PATH, empty if there is none."""
    if shutil.which(RELION) is None:
        return ""
    lines = subprocess.run([RELION, "--version"], capture_output=True, text=True).stdout.splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if "version:" in line), "of unknown version")


def run_relion(movie, folder, b_factor, times=1) -> RelionMotion:
    """Align a movie with 5x5 patches on all cores; write the averages with and without dose weighting, as ours.

    Parameters
    ----------
    movie : BenchmarkMovie
    folder : Path
        Emptied.
    b_factor : float
        px^2.
    times : int
        The movie stands so often in the list that RELION works through: all but the first are free of its start.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"m{k}" for k in range(times)]
    for name in names:
        (folder / f"{name}.mrcs").symlink_to(movie.path.resolve())
    rows = "".join(f"{name}.mrcs 1\n" for name in names)
    (folder / "movies.star").write_text(OPTICS + MOVIES + rows)
    options = dict(
        i="movies.star", o="out/", j=cpu_count(), gainref=movie.gain.resolve(), patch_x=PATCHES, patch_y=PATCHES,
        bfactor=b_factor, dose_per_frame=movie.dose_per_frame, angpix=SAMPLING_RATE, voltage=300,
    )  # fmt: skip
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    switches = ["--use_own", "--dose_weighting", "--save_noDW"]
    with open(folder / "log.txt", "w") as log:
        subprocess.run([RELION, *arguments, *switches], cwd=folder, check=True, stdout=log, stderr=log)
    written = [(folder / "out" / f"{name}.star").stat().st_mtime for name in names]
    return read_relion(folder / "out" / "m0.star", np.diff(written).tolist())


def read_relion(path: Path, seconds=()) -> RelionMotion:
    """Read the motion from the STAR file that RELION writes for one movie."""
    blocks = read_blocks(path)
    frames, general = blocks["global_shift"], blocks["general"]
    shifts = np.stack([frames["rlnMicrographShiftY"], frames["rlnMicrographShiftX"]], axis=1).astype(float)
    coefficients = np.zeros((2, 6, 3))
    if "local_motion_model" in blocks:
        for_x_then_y = np.asarray(blocks["local_motion_model"]["rlnMotionModelCoeff"], dtype=float)
        coefficients = for_x_then_y.reshape(2, 6, 3)[::-1]
    shape = int(general["rlnImageSizeY"][0]), int(general["rlnImageSizeX"][0])
    return RelionMotion(shifts, coefficients, shape, list(seconds))


def run_torch(movie, folder, python):
    """Align a movie with torch-motion-correction's defaults in the environment of the interpreter `python`.

    Returns
    -------
    field : ndarray, shape (n, g, g, 2)
        Translation to apply at the movie's nodes, px.
    seconds : float
        Of finding the motion alone.
    """
    gain = read_image(movie.gain)[0]
    frames = open_movie(movie.path).read() * gain
    frames[:, gain == 0] = frames.mean()
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "frames.npy", frames.astype(np.float32))
    script = Path(__file__).with_name("torch_peer.py")
    command = [python, script, folder / "frames.npy", SAMPLING_RATE, NODES, folder / "motion.npz"]
    with open(folder / "log.txt", "w") as log:
        subprocess.run([str(part) for part in command], check=True, stdout=log, stderr=log)
    with np.load(folder / "motion.npz") as motion:
        return motion["field"], float(motion["seconds"])
