"""The power spectrum of the noise, from what is around the particles."""

from __future__ import annotations

import numpy as np
import scipy.fft

from xmipp_accel.errors import ProcessingError
from xmipp_accel.numerics.fsc import shell_sums

MOST_IMAGES = 1000
BATCH = 100
SMOOTHING = 2  # rings to each side


def noise_power(particles, rows, group, particle_diameter: float, seed: int) -> np.ndarray:
    """Mean power by ring of the noise of a pixel; the variance of the pixels if the noise is white.

    Each image, less its mean outside the particle, is set to zero inside it, which smooths the spectrum of the
    noise and takes the same share of its power from all rings.

    Parameters
    ----------
    particles : Particles
    rows : (n,) int64 array
        Those of an optics group; at most `MOST_IMAGES` of them, drawn at random, are read.
    group : OpticsGroup
    particle_diameter : float
        A; 0 takes 0.8 of the box.
    seed : int

    Returns
    -------
    (box // 2 + 1,) float64 array

    Raises
    ------
    ProcessingError
        The particle fills the images, or nothing is around it.
    """
    box = group.box
    radius = particle_diameter / group.sampling_rate / 2 if particle_diameter else 0.4 * box
    axis = (np.arange(box) - box // 2) ** 2
    outside = axis[:, None] + axis > radius**2
    if not outside.any():
        raise ProcessingError(
            f"noise_weights: expected pixels around a particle of {2 * radius:.0f} px, found none"
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_IMAGES])
    power, used = np.zeros(box // 2 + 1), 0
    for first in range(0, len(drawn), BATCH):
        images = particles.images(drawn[first : first + BATCH]).astype(np.float64)
        images = images[np.isfinite(images).all(axis=(1, 2))]
        images -= images[:, outside].mean(axis=1)[:, None, None]
        for spectrum in scipy.fft.rfft2(images * outside, workers=-1).astype(np.complex64):
            power += shell_sums(spectrum, spectrum)[1]
        used += len(images)
    ones = np.ones((box, box // 2 + 1), np.complex64)
    power /= shell_sums(ones, ones)[1] * (outside.sum() * max(used, 1))
    # Ring 0 has no power, since the mean is taken away; few samples are in the next ones.
    power[0] = power[1]
    padded = np.pad(power, SMOOTHING, mode="edge")
    smooth = np.convolve(padded, np.ones(2 * SMOOTHING + 1) / (2 * SMOOTHING + 1), "valid")
    if not (smooth > 0).all():
        raise ProcessingError("noise_weights: expected noise around the particles, found none")
    return smooth
