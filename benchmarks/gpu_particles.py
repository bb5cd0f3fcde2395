"""Many noisy particles of a protein-like phantom, made on the device that is to be measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.io.mrc import section_writer
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler, random_matrices
from xmipp_accel.simulate.phantom import protein_phantom

_FIELD = 192.0  # A; smaller boxes have coarser pixels
_DEFOCUS = 10_000.0, 25_000.0  # A
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class GpuParticles:
    """Particles in files, the volume they are projections of, rot, tilt, psi (n, 3) in degrees, and views (n,)."""

    star: Path
    volume: Path
    particles: Particles
    eulers: np.ndarray
    views: np.ndarray


def make_particles(
    folder, count, box, device, snr=0.1, shift=3.0, seed=3, views=0, ctf=False, same_images=None
) -> GpuParticles:
    """Make `count` particles of `box` px, shifted by up to `shift` px along each axis.

    Parameters
    ----------
    folder : Path
    snr : float
        Variance of the signal, without CTF, over that of the noise, in the whole box.
    views : int
        Directions that the particles are seen from, evenly spread, each at any in-plane angle; 0 for random ones.
    ctf : bool
    same_images : int, optional
        Make only so many images, and use each for several particles.
    """
    rng, rate = np.random.default_rng(seed), _FIELD / box
    volume = protein_phantom().volume(box, rate)
    write_volume(folder / "volume.mrc", volume, rate)
    made = min(count, same_images or count)
    matrices, label = _orientations(made, views, rng)
    shifts = rng.uniform(-shift, shift, (made, 2))
    optics = dict.fromkeys(("defocus_u", "defocus_v"), rng.uniform(*_DEFOCUS, made)) if ctf else {}
    with section_writer(folder / "particles.mrcs", rate, volume=False) as append:
        for images in _images(device.asarray(volume, np.float32), rate, matrices, shifts, optics, snr, seed):
            append(images)
    row = np.arange(count) % made
    columns = {name: values[row] for name, values in optics.items()}
    stack = [str(folder / "particles.mrcs")] * count
    particles = Particles(stack=stack, index=row, sampling_rate=rate, has_ctf=ctf, **columns)
    write_particles(folder / "particles.star", particles)
    eulers = np.column_stack(matrix_to_euler(matrices))[row]
    return GpuParticles(folder / "particles.star", folder / "volume.mrc", particles, eulers, label[row])


def _orientations(count, views, rng):
    if not views:
        return random_matrices(count, rng), np.zeros(count, int)
    label = rng.integers(0, views, count)
    turn = label + 0.5  # a spiral, whose turns are as far apart as its points
    tilt = np.rad2deg(np.arccos(1 - 2 * turn / views))
    return euler_to_matrix(180 * (1 + 5**0.5) * turn, tilt, rng.uniform(0, 360, count)), label


def _images(volume, rate, matrices, shifts, optics, snr, seed):
    """Batches of images (m, N, N) float32, on the host."""
    fft, xp, box = fft_module(volume), array_module(volume), len(volume)
    spectrum = VolumeSpectrum(volume, box // 2)
    frequencies = np.stack(np.meshgrid(np.fft.fftfreq(box), np.fft.rfftfreq(box), indexing="ij")) * box
    inside = np.hypot(*frequencies) < box / 2 - 1
    frequencies = frequencies * inside
    ky, kx = (xp.asarray(part) for part in frequencies)
    inside = xp.asarray(inside)
    noise = xp.random.RandomState(seed)
    for start in range(0, len(matrices), _BATCH):
        part = slice(start, start + _BATCH)
        dy, dx = (xp.asarray(column)[:, None, None] for column in shifts[part].T)
        # A particle that is shifted by +s is centred by the translation -s; the origin goes to box // 2.
        phase = xp.exp(-2j * np.pi / box * (ky * (box // 2 - dy) + kx * (box // 2 - dx)))
        slices = spectrum.slices(matrices[part], frequencies) * phase * inside
        clean = fft.irfft2(slices, s=(box, box))
        sigma = float(clean.std()) / np.sqrt(snr)
        if optics:
            own = {name: values[part] for name, values in optics.items()}
            clean = fft.irfft2(slices * ctf_image(box, rate, xp=xp, **own), s=(box, box))
        yield to_host((clean + sigma * noise.standard_normal(clean.shape)).astype(np.float32))
