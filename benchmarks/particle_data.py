"""Particles with known poses or classes for the benchmarks.

They come from ``tools/make_truth.py`` of the reference folder and its map of 8ZPM, an asymmetric complex, where
that folder is there, else from :mod:`xmipp_accel.simulate.particles` and its phantom.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.movie_data import GENERATOR, SHARED
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import read_particles, write_particles
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.simulate.particles import simulate_particles

MAP = SHARED / "data" / "maps" / "8zpm_1.5A_96.mrc"


@dataclasses.dataclass(frozen=True)
class BenchmarkParticles:
    """Particles and what they show.

    Attributes
    ----------
    star, volume : Path
        The particles' table, and the map that they are projections of.
    eulers : ndarray, shape (n, 3)
        rot, tilt, psi, degrees.
    classes : ndarray of int, shape (n,)
        Number of the view, from 0.
    """

    star: Path
    volume: Path
    eulers: np.ndarray
    classes: np.ndarray

    @property
    def particles(self):
        """As the executors take them."""
        return read_particles(self.star)


def source() -> str:
    """Where the particles come from, for people."""
    if GENERATOR.exists():
        return f"particles from {GENERATOR.name} of the reference folder and {MAP.name}"
    return f"particles from xmipp_accel.simulate: {GENERATOR} is not there (set XMIPP_ACCEL_SHARED)"


def make_particles(folder, *, n, box, snr, shift, seed, ctf=False, classes=0) -> BenchmarkParticles:
    """Make particles in `folder`; boxes of less than 96 px have coarser pixels instead of a smaller field of view.

    Parameters
    ----------
    folder : Path
    n, box : int
    snr : float
        Variance of the signal over that of the noise, in the whole box.
    shift : float
        Largest along each axis, px.
    seed : int
    ctf : bool
    classes : int
        Fixed views with random in-plane angles; 0 for random directions.
    """
    make = _reference_particles if GENERATOR.exists() else _simulated_particles
    return make(Path(folder), n, box, snr, shift, seed, ctf, classes)


def cut_out(made, folder, box) -> BenchmarkParticles:
    """The middle `box` px of images and map, as a program would extract particles from a micrograph.

    Both generators apply the CTF to the box as if it were periodic, so that signal which leaves it on one side
    comes in on the other. It does not in what is cut from the middle.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    particles = made.particles
    first = (particles.box - box) // 2
    inner = slice(first, first + box)
    stack, volume = folder / "particles.mrcs", folder / "volume_truth.mrc"
    write_stack(stack, particles.images()[:, inner, inner], particles.sampling_rate)
    write_volume(volume, read_volume(made.volume)[0][inner, inner, inner], particles.sampling_rate)
    groups = {number: dataclasses.replace(group, box=box) for number, group in particles.groups.items()}
    cut = dataclasses.replace(particles, stack=[str(stack)] * len(particles), groups=groups)
    write_particles(folder / "particles.star", cut)
    return dataclasses.replace(made, star=folder / "particles.star", volume=volume)


def _reference_particles(folder, n, box, snr, shift, seed, ctf, classes):
    options = dict(out=folder, map=MAP, n=n, box=box, snr=snr, shift=shift, seed=seed, classes=classes)
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    arguments += ["--no-ctf"] * (not ctf) + ["--rescale-box"] * (box < 96)
    command = [sys.executable, str(GENERATOR), "particles", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    truth = np.load(folder / "truth.npz", allow_pickle=False)
    volume = folder / "volume_truth.mrc"
    return BenchmarkParticles(folder / "particles.star", volume, truth["eulers"], truth["classes"])


def _simulated_particles(folder, n, box, snr, shift, seed, ctf, classes):
    optics = {} if ctf else {"defocus": None}
    sampling_rate = 144.0 / min(box, 96)
    truth = simulate_particles(
        folder, n, box, sampling_rate, snr, shift, seed=seed, views=classes or None, **optics
    )
    volume = folder / "volume_truth.mrc"
    write_volume(volume, truth.phantom.volume(box, sampling_rate), sampling_rate)
    # Simulated tables come without poses; those of the reference folder have the true ones.
    (rot, tilt, psi), (shift_y, shift_x) = truth.eulers.T, truth.shifts.T
    posed = dataclasses.replace(
        read_particles(folder / "particles.star"),
        rot=rot, tilt=tilt, psi=psi, shift_y=shift_y, shift_x=shift_x, has_pose=True,
    )  # fmt: skip
    write_particles(folder / "particles.star", posed)
    return BenchmarkParticles(folder / "particles.star", volume, truth.eulers, truth.views)
