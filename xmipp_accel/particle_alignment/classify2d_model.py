"""The statistical model of 2D classes on Fourier rings.

A particle ``x`` of class ``a`` is ``x = C (R A_a) + noise``: its CTF times the turned and shifted average, plus
noise that is white once each ring is divided by the square root of its noise power. On rings the log-likelihood of
a pose, relative to that of noise alone, is

    L = sum_k [ Re <A, C x>_k - C^2_k |A|^2_k / 2 ] w_k + sum_k [ |x|^2_k (1 - w_k) / 2 - n_k log(1 / w_k) / 2 ]

with sums over the Cartesian Fourier samples of ring k. An average of few particles is itself uncertain, by the
variance ``v`` a sample: the particle is then predicted with the variance ``1 + C^2 v = 1 / w``, and a particle
that took part in the average finds its own noise there, which is taken off. So a class neither holds on to the
noise that it was made from nor loses its members because of it (Bishop, *Pattern Recognition and Machine
Learning*, 2006, eq. 3.57-3.59, for the predictive distribution; Scheres, J. Mol. Biol. 415 (2012), 406, for the
regularised average ``A = sum(C x) / (sum(C^2) + 1 / signal)``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, fft_module, good_fft_size, to_host
from xmipp_accel.numerics.ctf import ctf_at
from xmipp_accel.numerics.filters import fourier_resize
from xmipp_accel.particle_alignment.polar import (
    PolarGrid,
    angular_coefficients,
    polar_samples,
    ring_energy,
)


@dataclasses.dataclass(frozen=True)
class PreparedParticles:
    """Particles as the classification compares them, on one device.

    Attributes
    ----------
    grid : PolarGrid
    samples : (m, K, Phi / 2) complex64 array
        Ring samples of masked images, times the CTF, in units of the noise.
    coefficients : (m, K, Q) complex64 array
        Their angular harmonics.
    ctf2 : (m, K) float32 array
        Mean of the squared CTF on each ring.
    energy : (m, K) float32 array
        Squared norm of each ring before the multiplication by the CTF.
    noise_energy : (K,) float64 host array
        What `energy` is for noise alone.
    """

    grid: PolarGrid
    samples: Any
    coefficients: Any
    ctf2: Any
    energy: Any
    noise_energy: np.ndarray

    def __len__(self):
        return len(self.samples)

    def take(self, indices) -> PreparedParticles:
        """The particles at `indices` (an array of the same module)."""
        names = ("samples", "coefficients", "ctf2", "energy")
        return dataclasses.replace(self, **{name: getattr(self, name)[indices] for name in names})


def background_power(images, mask, n_rings) -> np.ndarray:
    """Noise power on rings 1..K, from what the mask leaves out.

    Parameters
    ----------
    images : (m, N, N) float32 array
    mask : (N, N) float32 array of the same module
        1 on the particle; the rest of the image counts as noise.
    n_rings : int

    Returns
    -------
    (K,) float64 host array
        Mean squared modulus of a sample of the unnormalised Fourier transform of a whole image.
    """
    xp, fft = array_module(images), fft_module(images)
    box = images.shape[-1]
    outside = 1.0 - mask
    level = (images * outside).sum(axis=(1, 2), keepdims=True) / outside.sum()
    power = xp.abs(fft.rfft2((images - level) * outside)) ** 2
    power = to_host(power.mean(axis=0)).astype(np.float64) / float((outside**2).mean())
    radius = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None]) * box
    rings = np.rint(radius).astype(int).ravel()
    total = np.bincount(rings, power.ravel())[1 : n_rings + 1]
    found = total / np.bincount(rings)[1 : n_rings + 1]
    # Images without noise, as simulated ones may be, must not make the weights infinite.
    return np.maximum(found, 1e-6 * max(found.max(), 1e-12))


def prepare_particles(images, mask, grid, noise, optics=None, sampling_rate=1.0) -> PreparedParticles:
    """Bring images to the rings of a grid.

    Parameters
    ----------
    images : (m, N, N) float32 array
    mask : (N, N) float32 array of the same module
    grid : PolarGrid
    noise : (K,) array
        Noise power, from :func:`background_power`.
    optics : dict, optional
        Arguments of `numerics.ctf.ctf_at` by name, arrays of length m; None ignores the CTF.
    sampling_rate : float
        A/px, needed with `optics`.
    """
    xp, box = array_module(images), grid.box
    outside = 1.0 - mask
    level = (images * outside).sum(axis=(1, 2), keepdims=True) / outside.sum()
    # Only K rings are needed, and the cost of the transform grows with the number of pixels.
    small = min(box, good_fft_size(2 * grid.n_rings + 16))
    masked = fourier_resize((images - level) * mask, small)
    samples = polar_samples(masked, dataclasses.replace(grid, box=small)) * np.float32((box / small) ** 2)
    samples *= xp.asarray(np.sqrt(2 * math.pi * grid.radii / noise).astype(np.float32))[:, None]
    energy = (samples.real**2 + samples.imag**2).mean(axis=-1)
    if optics is None:
        ctf2 = xp.ones_like(energy)
    else:
        ky, kx = grid.frequencies / (box * sampling_rate)
        ctf = ctf_at(kx**2 + ky**2, np.arctan2(ky, kx), xp=xp, **optics)
        ctf2 = (ctf**2).mean(axis=-1)
        samples *= ctf
    mask_share = float((mask**2).mean())
    noise_energy = 2 * math.pi * grid.radii * mask_share
    return PreparedParticles(grid, samples, angular_coefficients(samples, grid), ctf2, energy, noise_energy)


def join_particles(parts) -> PreparedParticles:
    """One object of several that were prepared alike."""
    xp = array_module(parts[0].samples)
    names = ("samples", "coefficients", "ctf2", "energy")
    joined = {name: xp.concatenate([getattr(part, name) for part in parts]) for name in names}
    return dataclasses.replace(parts[0], **joined)


@dataclasses.dataclass(frozen=True)
class ClassModel:
    """Averages of C classes and how well they are known.

    Attributes
    ----------
    numerator : (C, K, Q) complex64 array
        Sum over the members of aligned harmonics, already times the CTF.
    denominator : (C, K) float32 array
        Sum over the members of the squared CTF.
    signal, noise : (K,) float64 host arrays
        Power of an average relative to the noise; noise power relative to the background's.
    averages : (C, K, Q) complex64 array
    weights : (C, K) float32 array
        w of the module's formula, over the noise.
    energy, log_terms : (C, K) float32 arrays
        Squared norm of each ring of the averages, and the terms of the formula that no particle changes.
    echo : (C, K) float32 array
        What a particle's own noise adds to its score with an average that it is part of, for a CTF of 1.
    """

    grid: PolarGrid
    numerator: Any
    denominator: Any
    signal: np.ndarray
    noise: np.ndarray
    averages: Any
    weights: Any
    energy: Any
    log_terms: Any
    echo: Any

    def __len__(self):
        return len(self.numerator)

    def take(self, classes) -> ClassModel:
        """The model of some of the classes."""
        names = ("numerator", "denominator", "averages", "weights", "energy", "log_terms", "echo")
        return dataclasses.replace(self, **{name: getattr(self, name)[classes] for name in names})

    def offsets(self, particles, membership=None, n_rings=None):
        """The terms of L that do not depend on the pose.

        Parameters
        ----------
        particles : PreparedParticles
        membership : (m, C) float32 array, optional
            Share that each particle had in the sums of each class. Its own noise, which it finds again there, is
            taken off.
        n_rings : int, optional
            Sum over the first rings only.

        Returns
        -------
        (m, C) float32 array
        """
        xp = array_module(self.averages)
        rings = slice(0, n_rings)
        misfit = particles.ctf2[:, rings] @ (self.weights * self.energy)[:, rings].T
        spread = xp.asarray((1.0 / self.noise).astype(np.float32)) - self.weights
        unexplained = particles.energy[:, rings] @ spread[:, rings].T
        result = 0.5 * (unexplained - misfit) + self.log_terms[:, rings].sum(axis=-1)
        if membership is not None:
            result = result - membership * (particles.ctf2[:, rings] @ self.echo[:, rings].T)
        return result


def fit_model(numerator, denominator, particles, noise=None, signal=None) -> ClassModel:
    """Averages from the sums over their members.

    Parameters
    ----------
    numerator : (C, K, Q) complex64 array
    denominator : (C, K) float32 array
    particles : PreparedParticles
        Any that are typical; they give the mean squared CTF.
    noise : (K,) array, optional
        Noise power relative to the background's, default 1.
    signal : (K,) array, optional
        Default: what the averages hold beyond the noise that is expected in them.
    """
    xp, grid = array_module(numerator), particles.grid
    noise = np.ones(grid.n_rings) if noise is None else np.asarray(noise, dtype=np.float64)
    count = to_host(denominator).astype(np.float64)
    noise_energy = particles.noise_energy * noise
    if signal is None:
        raw = to_host(ring_energy(numerator, grid)).astype(np.float64) / np.maximum(count, 1e-3) ** 2
        excess = count * raw - noise_energy
        signal = excess.sum(axis=0) / np.maximum(count.sum(axis=0), 1e-3) / particles.noise_energy
    signal = np.maximum(signal, 1e-4)
    shrink = 1.0 / (count + noise / signal)
    averages = numerator * xp.asarray(shrink.astype(np.float32))[:, :, None]
    ctf2 = to_host(particles.ctf2.mean(axis=0)).astype(np.float64)
    predictive = noise * (1.0 + ctf2 * shrink)
    echo = shrink * noise_energy / predictive
    return ClassModel(
        grid=grid,
        numerator=numerator,
        denominator=denominator,
        signal=signal,
        noise=noise,
        averages=averages,
        weights=xp.asarray((1.0 / predictive).astype(np.float32)),
        energy=ring_energy(averages, grid),
        log_terms=xp.asarray((-0.5 * particles.noise_energy * np.log(predictive / noise)).astype(np.float32)),
        echo=xp.asarray(echo.astype(np.float32)),
    )


def signal_power(particles) -> np.ndarray:
    """Power (K,) of the undisturbed signal relative to the noise, before any class is known."""
    energy = to_host(particles.energy.mean(axis=0)).astype(np.float64)
    ctf2 = to_host(particles.ctf2.mean(axis=0)).astype(np.float64)
    excess = np.maximum(energy - particles.noise_energy, 0.02 * particles.noise_energy)
    return excess / np.maximum(ctf2, 0.05) / particles.noise_energy
