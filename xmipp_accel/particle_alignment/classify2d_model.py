"""The statistical model of 2D classes on Fourier rings.

A particle ``x`` of class ``a`` is ``x = C (R A_a) + noise``: its CTF times the turned and shifted average, plus
noise that is white once each ring is divided by the square root of its noise power. On rings the log-likelihood of
a pose, relative to that of the background's noise alone, is

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

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.numerics.ctf import ctf_at
from xmipp_accel.particle_alignment.polar import (
    PolarGrid,
    angular_coefficients,
    cropped_samples,
    ring_energy,
)

_REFERENCE_WEIGHT = 20.0  # particles that an initial reference counts for, until it is replaced by its own
_SCALE_RANGE = 0.1, 10.0


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
    xp = array_module(images)
    outside = 1.0 - mask
    level = (images * outside).sum(axis=(1, 2), keepdims=True) / outside.sum()
    samples = cropped_samples((images - level) * mask, grid)
    samples *= xp.asarray(np.sqrt(2 * math.pi * grid.radii / noise).astype(np.float32))[:, None]
    energy = (samples.real**2 + samples.imag**2).mean(axis=-1)
    if optics is None:
        ctf2 = xp.ones_like(energy)
    else:
        ky, kx = grid.frequencies / (grid.box * sampling_rate)
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
class Typical:
    """What the particles of a set have in common.

    Attributes
    ----------
    grid : PolarGrid
    noise_energy : (K,) float64 array
        As `PreparedParticles` has it.
    ctf2, energy : (K,) float64 arrays
        Means over particles.
    """

    grid: PolarGrid
    noise_energy: np.ndarray
    ctf2: np.ndarray
    energy: np.ndarray

    def signal_power(self) -> np.ndarray:
        """Power (K,) of the undisturbed signal relative to the noise, before any class is known."""
        excess = np.maximum(self.energy - self.noise_energy, 0.02 * self.noise_energy)
        return excess / np.maximum(self.ctf2, 0.05) / self.noise_energy


@dataclasses.dataclass(frozen=True)
class ClassModel:
    """Averages of C classes and how well they are known; arrays of one module, NumPy unless `on` moved them.

    Attributes
    ----------
    typical : Typical
        Of the particles that it was made from.
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

    typical: Typical
    numerator: Any
    denominator: Any
    signal: np.ndarray
    noise: np.ndarray
    averages: Any
    weights: Any
    energy: Any
    log_terms: Any
    echo: Any

    _BY_CLASS = ("numerator", "denominator", "averages", "weights", "energy", "log_terms", "echo")

    def __len__(self):
        return len(self.numerator)

    @property
    def grid(self) -> PolarGrid:
        """Where the averages are known."""
        return self.typical.grid

    def take(self, classes) -> ClassModel:
        """The model of some of the classes."""
        return dataclasses.replace(self, **{name: getattr(self, name)[classes] for name in self._BY_CLASS})

    def joined(self, other) -> ClassModel:
        """These classes and those of `other`, with the noise and signal of these."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in self._BY_CLASS}
        return dataclasses.replace(self, **{name: np.concatenate(pair) for name, pair in pairs.items()})

    def on(self, device) -> ClassModel:
        """The model with its arrays on `device`."""
        return dataclasses.replace(self, **{name: device.asarray(getattr(self, name)) for name in self._BY_CLASS})

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
        rings = slice(0, n_rings)
        misfit = particles.ctf2[:, rings] @ (self.weights * self.energy)[:, rings].T
        unexplained = particles.energy[:, rings] @ (1.0 - self.weights)[:, rings].T
        result = 0.5 * (unexplained - misfit) + self.log_terms[:, rings].sum(axis=-1)
        if membership is not None:
            result = result - membership * (particles.ctf2[:, rings] @ self.echo[:, rings].T)
        return result


def fit_model(numerator, denominator, typical, noise=None, signal=None) -> ClassModel:
    """Averages from the sums over their members, on the host.

    Parameters
    ----------
    numerator : (C, K, Q) complex64 array
    denominator : (C, K) float32 array
    typical : Typical
    noise : (K,) array, optional
        Noise power relative to the background's, default 1.
    signal : (K,) array, optional
        Default: what the averages hold beyond the noise that is expected in them.
    """
    grid = typical.grid
    noise = np.ones(grid.n_rings) if noise is None else np.asarray(noise, dtype=np.float64)
    count = np.asarray(denominator, dtype=np.float64)
    noise_energy = typical.noise_energy * noise
    if signal is None:
        raw = ring_energy(numerator, grid).astype(np.float64) / np.maximum(count, 1e-3) ** 2
        excess = count * raw - noise_energy
        signal = excess.sum(axis=0) / np.maximum(count.sum(axis=0), 1e-3) / typical.noise_energy
    signal = np.maximum(signal, 1e-4)
    shrink = 1.0 / (count + noise / signal)
    averages = numerator * shrink.astype(np.float32)[:, :, None]
    predictive = noise * (1.0 + typical.ctf2 * shrink)
    return ClassModel(
        typical=typical,
        numerator=numerator,
        denominator=denominator,
        signal=signal,
        noise=noise,
        averages=averages,
        weights=(1.0 / predictive).astype(np.float32),
        energy=ring_energy(averages, grid),
        log_terms=(-0.5 * typical.noise_energy * np.log(predictive)).astype(np.float32),
        echo=(shrink * noise_energy / predictive).astype(np.float32),
    )


def reference_model(typical, coefficients) -> ClassModel:
    """Model of reference images, whose scale is unknown: each gets the power that particles have on average.

    Parameters
    ----------
    typical : Typical
    coefficients : (C, K, Q) complex64 host array
        Of the references, prepared like particles.
    """
    expected = (typical.signal_power() * typical.noise_energy).sum()
    found = ring_energy(coefficients, typical.grid).sum(axis=1)
    scale = np.sqrt(expected / np.maximum(found, 1e-30)).astype(np.float32)
    share = (_REFERENCE_WEIGHT * typical.ctf2).astype(np.float32)
    numerator = coefficients * scale[:, None, None] * share[:, None]
    return fit_model(numerator, np.tile(share, (len(numerator), 1)), typical, signal=typical.signal_power())


def rescaled(model, total) -> ClassModel:
    """The model with each average multiplied by what brings it closest to the particles in `total`."""
    weights = model.grid.harmonic_weights
    products = (total.numerator * model.averages.conj()).real * weights * model.weights[:, :, None]
    norm = (total.denominator * model.energy * model.weights).sum(axis=1)
    scale = np.where(norm > 0, products.sum(axis=(1, 2)) / np.maximum(norm, 1e-30), 1.0)
    scale = np.clip(scale, *_SCALE_RANGE).astype(np.float32)
    numerator = model.numerator * scale[:, None, None]
    return fit_model(numerator, model.denominator, model.typical, total.residual, model.signal)
