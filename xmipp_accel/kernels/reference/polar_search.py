"""Float64 oracle of the polar search kernels."""

from __future__ import annotations

import numpy as np


def polar_search(references, particles, n_psi):
    """Best in-plane angle and shift of every pair, by definition.

    Parameters
    ----------
    references : (R, K, Q) complex array
        Harmonics, already multiplied by ring and harmonic weights.
    particles : (m, S, K, Q) complex array
        Harmonics of the particles after each of S shifts.
    n_psi : int
        Angles ``psi_t = 2 pi t / n_psi`` are compared.

    Returns
    -------
    best : (m, R) float64 array
        ``max over t, s of Re sum_q exp(-i q psi_t) sum_k conj(R[k, q]) P_s[k, q]``.
    psi_index, shift_index : (m, R) int64 arrays
        Where.
    """
    products = np.einsum("rkq,mskq->mrsq", np.conj(references), particles, dtype=np.complex128)
    psi = np.arange(n_psi) * (2 * np.pi / n_psi)
    turn = np.exp(-1j * np.outer(np.arange(products.shape[-1]), psi))
    scores = (products @ turn).real
    flat = scores.reshape(scores.shape[:2] + (-1,))
    where = flat.argmax(axis=-1)
    best = np.take_along_axis(flat, where[..., None], axis=-1)[..., 0]
    return best, where % n_psi, where // n_psi
