"""Particle images with known poses, written as a user would have them: without the poses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.backend import fft_module
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.publish import atomic_path
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.numerics.statistics import normalise_background
from xmipp_accel.simulate.phantom import Phantom, protein_phantom

_ASTIGMATISM = 500.0  # A, largest difference of the two defoci
_PIXEL_BLUR = 0.7  # px: finer detail than pixels can hold would fold back
_VIEW_DISTANCE = 25.0  # degrees between the fixed views


@dataclasses.dataclass(frozen=True)
class ParticleTruth:
    """What the simulated images show.

    Attributes
    ----------
    eulers : (n, 3) float64 array
        rot, tilt, psi, degrees.
    shifts : (n, 2) float64 array
        (y, x) px, to be applied to centre the particle.
    views : (n,) int64 array
        Number of the fixed view, from 0; -1 where every view is random.
    defocus : (n, 3) float64 array
        Defocus u and v (A) and angle (degrees); zeros without a CTF.
    sampling_rate : float
        A/px.
    phantom : Phantom
        Already as blurred as the images.
    """

    eulers: np.ndarray
    shifts: np.ndarray
    views: np.ndarray
    defocus: np.ndarray
    sampling_rate: float
    phantom: Phantom


def simulate_particles(
    folder,
    count,
    box=64,
    sampling_rate=3.0,
    snr=0.3,
    max_shift=3.0,
    defocus=(10000.0, 25000.0),
    seed=0,
    views=None,
    symmetry="c1",
    phantom=None,
    name="particles",
) -> ParticleTruth:
    """Write ``NAME.mrcs``, ``NAME.star`` and ``NAME.xmd`` without poses, and the truth in ``NAME.npz``.

    Parameters
    ----------
    folder : path
        Made if absent.
    count : int
        Number of particles.
    box : int
        Px.
    sampling_rate : float
        A/px.
    snr : float
        Variance of the signal over that of the noise, over the whole box; 0 means no noise.
    max_shift : float
        Largest displacement along y and along x, px.
    defocus : (float, float) or None
        Range in A; None makes images without a CTF.
    seed : int
        Of the phantom, of the poses and of the noise.
    views : int, optional
        Number of fixed directions, at least 25 degrees apart as far as there is room, with any in-plane angle;
        default: all directions are random.
    symmetry : str
        Of the phantom.
    phantom : Phantom, optional
        Instead of the built-in one, which fills 0.6 of the box.
    name : str
        Of the files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if phantom is None:
        phantom = protein_phantom(0.6 * box * sampling_rate, seed, symmetry)
    phantom = phantom.blurred(_PIXEL_BLUR * sampling_rate)
    view, eulers = _poses(count, views, rng)
    shifts = rng.uniform(-max_shift, max_shift, (count, 2))
    optics = np.zeros((count, 3))
    if defocus is not None:
        least, most = defocus
        optics[:, 0] = rng.uniform(least, most, count)
        optics[:, 1] = optics[:, 0] - rng.uniform(0, _ASTIGMATISM, count)
        optics[:, 2] = rng.uniform(0, 180, count)
    truth = ParticleTruth(eulers, shifts, view, optics, sampling_rate, phantom)
    images = _images(truth, box, snr, defocus is not None, rng)
    _write(folder, name, images, truth, defocus is not None)
    return truth


def _poses(count, views, rng):
    """Numbers of the views (n,) and angles (n, 3)."""
    psi = rng.uniform(-180, 180, count)
    if views is None:
        directions = _random_directions(count, rng)
        return np.full(count, -1), np.column_stack([directions, psi])
    chosen = _random_directions(1, rng)
    while len(chosen) < views:
        trials = _random_directions(40, rng)
        axes, known = _unit(trials), _unit(chosen)
        # Opposite directions show mirror images, which a classification with mirrors may take for one view.
        nearest = np.abs(axes @ known.T).max(axis=1)
        apart = np.flatnonzero(nearest < np.cos(np.deg2rad(_VIEW_DISTANCE)))
        pick = apart[0] if len(apart) else nearest.argmin()
        chosen = np.vstack([chosen, trials[pick]])
    view = rng.permutation(np.arange(count) % views)
    return view, np.column_stack([chosen[view], psi])


def _random_directions(count, rng):
    """(n, 2) rot and tilt in degrees, uniform over the sphere."""
    return np.column_stack([rng.uniform(-180, 180, count), np.rad2deg(np.arccos(rng.uniform(-1, 1, count)))])


def _unit(directions):
    rot, tilt = np.deg2rad(directions).T
    return np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)


def _images(truth, box, snr, has_ctf, rng):
    """Projections with CTF and noise (n, box, box), background-normalised."""
    images = truth.phantom.project(euler_to_matrix(*truth.eulers.T), box, truth.sampling_rate, -truth.shifts)
    if has_ctf:
        fft = fft_module(images)
        for first in range(0, len(images), 256):
            part = slice(first, first + 256)
            ctf = ctf_image(box, truth.sampling_rate, *truth.defocus[part].T)
            images[part] = fft.irfft2(fft.rfft2(images[part]) * ctf, s=(box, box))
    if snr > 0:
        deviation = np.sqrt(images.var(axis=(1, 2)).mean() / snr)
        images += (deviation * rng.standard_normal(images.shape, dtype=np.float32)).astype(np.float32)
    return normalise_background(images, 0.46 * box)


def _write(folder, name, images, truth, has_ctf):
    stack = folder / f"{name}.mrcs"
    write_stack(stack, images, truth.sampling_rate)
    defocus_u, defocus_v, defocus_angle = truth.defocus.T
    particles = Particles(
        stack=[str(stack.resolve())] * len(images),
        index=np.arange(len(images)),
        defocus_u=defocus_u,
        defocus_v=defocus_v,
        defocus_angle=defocus_angle,
        sampling_rate=truth.sampling_rate,
        has_ctf=has_ctf,
    )
    with atomic_path(folder / f"{name}.npz") as path:
        arrays = ("eulers", "shifts", "views", "defocus", "sampling_rate")
        np.savez(path, **{key: getattr(truth, key) for key in arrays})
    write_particles(folder / f"{name}.star", particles)
    write_particles(folder / f"{name}.xmd", particles)
