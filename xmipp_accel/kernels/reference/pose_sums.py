"""Sums for the score of aligned pairs and its derivatives, in float64 NumPy: the oracle of the other twins."""

from __future__ import annotations

import numpy as np


def pose_sums(turned, samples, phases, factors, frequencies):
    """Sums over the rings of ``conj(R) P`` and its derivatives.

    Parameters
    ----------
    turned : (b, K, 3, J) complex array
        Ring samples of a reference for each pair, and their first and second derivative by the angle.
    samples : (b, K, J) complex array
        Those of the particles.
    phases : (b, K, J) complex array
        Factors that shift the particles.
    factors : (K,) array
        Weight of each ring's samples.
    frequencies : (2, K, J) array
        Derivatives of the phases' angle by the shift along y and x.

    Returns
    -------
    (b, 10) float64 array
        Score; its derivatives by psi, y, x; by psi psi, psi y, psi x, y y, y x, x x.
    """
    particle = samples.astype(np.complex128) * phases * np.asarray(factors)[:, None]
    ky, kx = frequencies
    plain, turning, twice = np.conj(np.moveaxis(turned, 2, 0).astype(np.complex128)) * particle
    real, imaginary, slope = plain.real, plain.imag, -turning.imag
    terms = (
        [real, turning.real, -imaginary * ky, -imaginary * kx]
        + [twice.real, slope * ky, slope * kx]
        + [-real * ky * ky, -real * ky * kx, -real * kx * kx]
    )
    return np.stack([term.sum(axis=(1, 2)) for term in terms], axis=1)
