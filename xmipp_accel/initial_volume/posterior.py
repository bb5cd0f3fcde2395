"""How much an image counts in each view of a volume, and the averages of the views."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.search import PolarSearch, normalize_references

_NEGLIGIBLE = 1e-3  # of an image's largest weight
_DARK = 0.05  # CTF^2 on a ring; dividing by less would bring up noise
_BISECTIONS = 40
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Views:
    """Averages of images over the views of a volume.

    Attributes
    ----------
    averages : (R, K, Q) complex64 array
        Harmonics, on the device.
    weight : (R,) float64 array
        Images in each average; their sum is the number of images.
    score : (m,) float64 array
        Correlation of each image with the view that fits best.
    direction : (m,) int64 array
        That view.
    psi : (m,) float64 array
        Its in-plane angle, degrees.
    perplexity : float
        Views that an image counts in, in the geometric mean.
    """

    averages: Any
    weight: np.ndarray
    score: np.ndarray
    direction: np.ndarray
    psi: np.ndarray
    perplexity: float


def temperatures(scores, share):
    """Inverse temperatures b (m,) at which ``exp(b score)`` spreads over a share of the references.

    The perplexity of an image's weights, the exponential of their entropy, becomes `share` times the number of
    references: what a significance of ``1 - share`` keeps in Xmipp's Reconstruct Significant, without its edge.

    Parameters
    ----------
    scores : (m, R) array
    share : float
        In (0, 1].
    """
    scores = np.asarray(scores, dtype=np.float64)
    below = scores - scores.max(axis=1, keepdims=True)
    target = np.log(np.clip(share * scores.shape[1], 1.05, 0.999 * scores.shape[1]))
    low, high = np.full(len(scores), 1e-3), np.full(len(scores), 1e6)
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        wide = entropy(middle[:, None] * below) > target
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return middle


def entropy(logarithms):
    """Entropy (m,) in nats of the distributions proportional to ``exp(logarithms)``, (m, R), at most 0."""
    weight = np.exp(logarithms)
    total = weight.sum(axis=1)
    return np.log(total) - (weight * logarithms).sum(axis=1) / total


def likelihood_temperatures(scores, independent):
    """Inverse temperatures (m,) of the posterior itself.

    A correlation c of nu independent data has the profile likelihood ``(1 - c^2)^(-nu / 2)``; its logarithm grows
    by ``nu c / (1 - c^2)`` at the best score c.
    """
    best = np.clip(np.max(scores, axis=1), 0.0, 0.999)
    return independent * best / (1 - best**2)


def average_views(images, rows, references, share, power=1.0) -> Views:
    """Compare images with views and average them, each over all views and in-plane angles at their best shifts.

    Parameters
    ----------
    images : RingImages
    rows : (m,) int array
        The images that take part.
    references : (R, K, Q) complex64 array
        Harmonics of the views, on the images' device.
    share : float
        Of the views that an image spreads over; more where its likelihood does not tell so few views apart.
    power : float
        Of that likelihood.
    """
    grid, xp = images.grid, array_module(references)
    references = normalize_references(references, grid, images.weights)
    search = PolarSearch(grid, references, images.weights)
    energy = to_host(polar.ring_energy(references, grid)).astype(np.float64)
    norms = np.sqrt(np.maximum(images.gain[rows] @ (energy * images.weights).T, 1e-30))
    sums = xp.zeros(references.shape, dtype=np.complex64)
    weight, gain = np.zeros(len(references)), np.zeros(energy.shape)
    spread = _Spread(grid, references, images.weights, search.n_psi)
    found = []
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        scores, psi, shift = (to_host(a) for a in search(images.samples[rows[part]], images.shifts))
        scores = np.where(np.isfinite(scores), scores / norms[part], -1.0)
        beta = np.minimum(temperatures(scores, share), power * likelihood_temperatures(scores, images.independent))
        harmonics = images.shifted_harmonics(rows[part])
        best = scores.argmax(axis=1)
        for i, image in enumerate(rows[part]):
            logarithms = beta[i] * (scores[i] - scores[i, best[i]])
            chosen = np.flatnonzero(logarithms > np.log(_NEGLIGIBLE))
            scale = beta[i] / norms[start + i, chosen]
            shifted = harmonics[i][xp.asarray(shift[i, chosen])]
            counts, moved = spread(shifted, chosen, scale)
            sums[xp.asarray(chosen)] += moved
            weight[chosen] += counts
            gain[chosen] += counts[:, None] * images.gain[image]
        places = np.arange(len(best)), best
        uncertainty = entropy(beta[:, None] * (scores - scores[places][:, None]))
        found.append((scores[places], best, psi[places], uncertainty))
    score, direction, turn, uncertainty = (np.concatenate(values) for values in zip(*found))
    gain += _DARK * weight[:, None]
    averages = sums / xp.asarray(np.maximum(gain, 1e-12)[:, :, None], dtype=np.float32)
    return Views(averages, weight, score, direction, turn, float(np.exp(uncertainty.mean())))


class _Spread:
    """Spreads one image over some views: all in-plane angles of each, weighted by their posterior."""

    def __init__(self, grid, references, weights, n_psi):
        xp = array_module(references)
        factors = np.asarray(weights)[:, None] * grid.harmonic_weights
        self._weighted = xp.conj(references) * xp.asarray(factors.astype(np.float32))
        angle = np.outer(np.arange(grid.n_harmonics), np.arange(n_psi) * (2 * np.pi / n_psi))
        self._turns = xp.asarray(np.exp(-1j * angle).astype(np.complex64))  # (Q, Psi)

    def __call__(self, harmonics, chosen, scale):
        """Weights (P,) that sum to 1, and the weighted, aligned image (P, K, Q) in each view.

        Parameters
        ----------
        harmonics : (P, K, Q) complex64 array
            Of the image, shifted as fits each view best.
        chosen : (P,) int array
            Views.
        scale : (P,) float array
            Inverse temperature over the norm of each.
        """
        xp = array_module(harmonics)
        products = (self._weighted[xp.asarray(chosen)] * harmonics).sum(axis=1)
        scores = (products @ self._turns).real * xp.asarray(scale, dtype=np.float32)[:, None]
        weights = xp.exp(scores - scores.max())
        weights /= weights.sum()
        turned = weights @ self._turns.T  # exp(-i q psi) turns the image back onto the view
        return to_host(weights.sum(axis=1)).astype(np.float64), turned[:, None] * harmonics
