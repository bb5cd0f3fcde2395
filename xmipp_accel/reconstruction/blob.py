"""The blob (generalised Kaiser-Bessel window) of Xmipp's gridding: its table and its Fourier transform.

Lewitt, J. Opt. Soc. Am. A 7 (1990), 1834: ``b(r) = I_m(alpha s) s^m / I_m(alpha)`` with
``s = sqrt(1 - (r / a)^2)``, whose transform in three dimensions is
``(2 pi)^(3/2) a^3 alpha^m I_(m+3/2)(sigma) / (I_m(alpha) sigma^(m+3/2))``, ``sigma^2 = alpha^2 - (2 pi a w)^2``,
and J in place of I where that is negative.
"""

from __future__ import annotations

import numpy as np
from scipy import special

TABLE_SIZE = 10000


def blob_values(r, radius: float, order: int, alpha: float) -> np.ndarray:
    """Blob at distances `r` (px), 1 at the origin and 0 from `radius` on."""
    s = np.sqrt(np.clip(1.0 - (np.asarray(r, dtype=np.float64) / radius) ** 2, 0.0, None))
    # Scaled Bessel functions, since I_m overflows for large alpha.
    values = special.ive(order, alpha * s) * np.exp(alpha * (s - 1.0)) * s**order / special.ive(order, alpha)
    return np.where(np.asarray(r) <= radius, values, 0.0)


def blob_transform(w, radius: float, order: int, alpha: float) -> np.ndarray:
    """Three-dimensional Fourier transform of the blob at frequencies `w` (cycles/px)."""
    squares = alpha**2 - (2 * np.pi * radius * np.asarray(w, dtype=np.float64)) ** 2
    sigma = np.sqrt(np.abs(squares))
    nu = order + 1.5
    safe = np.maximum(sigma, 1e-6)
    grown = special.ive(nu, safe) * np.exp(safe - alpha)
    waved = special.jv(nu, safe) * np.exp(-alpha)
    quotient = np.where(squares > 0, grown, waved) / safe**nu
    return (2 * np.pi) ** 1.5 * radius**3 * alpha**order * quotient / special.ive(order, alpha)


def blob_table(radius: float, order: int, alpha: float) -> np.ndarray:
    """Blob of integral 1 at `TABLE_SIZE` squared distances from 0 to ``radius**2``, float32."""
    distances = radius * np.sqrt(np.arange(TABLE_SIZE) / (TABLE_SIZE - 1))
    return (blob_values(distances, radius, order, alpha) / blob_transform(0.0, radius, order, alpha)).astype(
        np.float32
    )


def blob_apodisation(r, padded: int, radius: float, order: int, alpha: float) -> np.ndarray:
    """By how much the map is damped at distances `r` (px) from its centre when the blob acts in Fourier space."""
    transform = blob_transform(np.asarray(r, dtype=np.float64) / padded, radius, order, alpha)
    return transform / blob_transform(0.0, radius, order, alpha)
