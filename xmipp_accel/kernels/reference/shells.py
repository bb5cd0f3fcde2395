"""Sums of two Fourier transforms over shells, in float64 NumPy: the oracle of the other twins."""

from __future__ import annotations

import numpy as np


def correlate_shells(a, b, n):
    """Cross-correlation and powers of two transforms in the shells of rounded radius.

    Parameters
    ----------
    a, b : (planes, n, n // 2 + 1) complex64
        Half transforms, as of ``rfftn``, of a cube of edge `n`, or of an image if there is one plane.
    n : int

    Returns
    -------
    (3, n // 2 + 1) float64 array
        ``sum(Re a conj(b))``, ``sum(|a|^2)`` and ``sum(|b|^2)`` over all samples of the full transform.
    """
    full, half = np.fft.fftfreq(n) * n, np.arange(n // 2 + 1)
    squares = full[: len(a), None, None] ** 2 + full[None, :, None] ** 2 + half**2.0
    shells = np.rint(np.sqrt(squares)).astype(int)
    # All columns but the first, and of an even edge the last, stand for two samples.
    count = np.where((half == 0) | (2 * half == n), 1.0, 2.0)
    a, b = a.astype(np.complex128), b.astype(np.complex128)
    products = (a * b.conj()).real, abs(a) ** 2, abs(b) ** 2
    inside = shells <= n // 2
    return np.stack([np.bincount(shells[inside], (p * count)[inside], n // 2 + 1) for p in products])
