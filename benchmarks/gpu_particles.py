"""Many noisy particles of a protein-like phantom, made on the device that is to be measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from xmipp_accel.backend import fft_module, to_host
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import matrix_to_euler, random_matrices
from xmipp_accel.simulate.phantom import protein_phantom

_FIELD = 192.0  # A; smaller boxes have coarser pixels
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class GpuParticles:
    """Particles in files, the volume they are projections of, and rot, tilt and psi (n, 3) in degrees."""

    star: Path
    volume: Path
    particles: Particles
    eulers: np.ndarray


def make_particles(folder, count, box, device, snr=0.1, shift=3.0, seed=3, matrices=None) -> GpuParticles:
    """Make `count` particles of `box` px without CTF, shifted by up to `shift` px along each axis.

    Parameters
    ----------
    folder : Path
    snr : float
        Variance of the signal over that of the noise, in the whole box.
    matrices : (count, 3, 3) array, optional
        Orientations; random ones by default.
    """
    rng, xp = np.random.default_rng(seed), device.xp
    rate = _FIELD / box
    volume = protein_phantom().volume(box, rate)
    write_volume(folder / "volume.mrc", volume, rate)
    matrices = random_matrices(count, rng) if matrices is None else matrices
    shifts = rng.uniform(-shift, shift, (count, 2))
    images = np.empty((count, box, box), np.float32)
    spectrum = VolumeSpectrum(device.asarray(volume, np.float32), box // 2)
    frequencies = np.stack(np.meshgrid(np.fft.fftfreq(box), np.fft.rfftfreq(box), indexing="ij")) * box
    inside = np.hypot(*frequencies) < box / 2 - 1
    frequencies = frequencies * inside
    ky, kx = (xp.asarray(part) for part in frequencies)
    inside = xp.asarray(inside)
    noise = xp.random.RandomState(seed)
    fft = fft_module(ky)
    for start in range(0, count, _BATCH):
        part = slice(start, min(start + _BATCH, count))
        dy, dx = (xp.asarray(column)[:, None, None] for column in shifts[part].T)
        # A particle that is shifted by +s is centred by the translation -s; the origin goes to box // 2.
        phase = xp.exp(-2j * np.pi / box * (ky * (box // 2 - dy) + kx * (box // 2 - dx)))
        clean = fft.irfft2(spectrum.slices(matrices[part], frequencies) * phase * inside, s=(box, box))
        sigma = float(clean.std()) / np.sqrt(snr)
        images[part] = to_host((clean + sigma * noise.standard_normal(clean.shape)).astype(np.float32))
    write_stack(folder / "particles.mrcs", images, rate)
    particles = Particles(
        stack=[str(folder / "particles.mrcs")] * count, index=np.arange(count), sampling_rate=rate
    )
    write_particles(folder / "particles.star", particles)
    eulers = np.column_stack(matrix_to_euler(matrices))
    return GpuParticles(folder / "particles.star", folder / "volume.mrc", particles, eulers)
