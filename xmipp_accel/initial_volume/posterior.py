"""How much an image counts in each view of a volume, and the averages of the views."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, from_host, kernel_turn, rows_on_all_cores, to_host
from xmipp_accel.kernels.cpu import view_sums
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.search import PolarSearch, normalize_references
from xmipp_accel.particle_alignment.significance import entropy

_NEGLIGIBLE = 1e-3  # of an image's largest weight
_DARK = 0.05  # CTF^2 on a ring; dividing by less would bring up noise
_BISECTIONS = 40
_ROWS = 256  # of scores, for a core at a time: with fewer, threads wait for Python more than they compute
_BATCH_BYTES = {"numpy": 32 << 20, "cupy": 512 << 20}  # of intermediate arrays; more would only take memory
_THREADS = 128


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

    def of_rows(scores):
        below = scores - scores.max(axis=1, keepdims=True)
        target = np.log(np.clip(share * scores.shape[1], 1.05, 0.999 * scores.shape[1]))
        low, high = np.full(len(scores), 1e-3), np.full(len(scores), 1e6)
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            wide = entropy(middle[:, None] * below) > target
            low, high = np.where(wide, middle, low), np.where(wide, high, middle)
        return middle

    return rows_on_all_cores(of_rows, np.asarray(scores, dtype=np.float64), _ROWS)


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
    grid = images.grid
    references = normalize_references(references, grid, images.weights)
    search = PolarSearch(grid, references, images.weights)
    energy = to_host(polar.ring_energy(references, grid)).astype(np.float64)
    norms = np.sqrt(np.maximum(images.gain[rows] @ (energy * images.weights).T, 1e-30))
    weight, gain = np.zeros(len(references)), np.zeros(energy.shape)
    spread = _Spread(grid, references, images.weights, search.n_psi)
    batch = _batch(images, len(references), search.n_psi)
    found = []
    for start in range(0, len(rows), batch):
        part, norm = rows[start : start + batch], norms[start : start + batch]
        shifted = images.shifted_harmonics(part)
        scores, psi, shift = (to_host(array) for array in search.of_shifted(images.samples[part], shifted))
        scores = np.where(np.isfinite(scores), scores / norm, -1.0)
        beta = np.minimum(temperatures(scores, share), power * likelihood_temperatures(scores, images.independent))
        places = np.arange(len(part)), scores.argmax(axis=1)
        top = scores[places]
        logarithms = beta[:, None] * (scores - top[:, None])
        shares = spread(shifted, shift, logarithms > np.log(_NEGLIGIBLE), beta[:, None] / norm, beta * top)
        weight += shares.sum(axis=0)
        gain += shares.T @ images.gain[part]
        found.append((top, places[1], psi[places], entropy(logarithms)))
    score, direction, turn, uncertainty = (np.concatenate(values) for values in zip(*found))
    gain += _DARK * weight[:, None]
    scale = from_host(1 / np.maximum(gain, 1e-12)[:, :, None], array_module(references), np.float32)
    return Views(spread.sums * scale, weight, score, direction, turn, float(np.exp(uncertainty.mean())))


def _batch(images, n_views, n_psi) -> int:
    """Images at once. The last digits of their sums hang on it, and thus not on what memory is free."""
    grid = images.grid
    shifted = 8 * len(images.shifts) * grid.n_rings * max(grid.n_harmonics, grid.n_angles // 2)
    per_image = 2 * shifted + 8 * n_views * (n_psi + 2 * grid.n_harmonics)
    return max(1, _BATCH_BYTES[array_module(images.samples).__name__] // per_image)


class _Spread:
    """Sums of images over views: over all in-plane angles of each, weighted by their posterior.

    Attributes
    ----------
    sums : (R, K, Q) complex64 array
    """

    def __init__(self, grid, references, weights, n_psi):
        self._xp = array_module(references)
        factors = np.asarray(weights)[:, None] * grid.harmonic_weights
        self._weighted = self._xp.conj(references) * from_host(factors, self._xp, np.float32)
        angle = np.outer(np.arange(n_psi) * (2 * np.pi / n_psi), np.arange(grid.n_harmonics))
        turns = np.stack([np.cos(angle), -np.sin(angle)], axis=-1).reshape(n_psi, -1)
        self._turns = from_host(turns, self._xp, np.float32)  # (Psi, 2 Q), exp(-i q psi)
        self.sums = self._xp.zeros(references.shape, dtype=np.complex64)

    def __call__(self, shifted, shift, chosen, scale, top):
        """Share (m, R) of each image in each view, float64 on the host; each image's add up to 1.

        Parameters
        ----------
        shifted : (m, S, K, Q) complex64 array
            Harmonics of the images after every shift.
        shift : (m, R) int array
            The one that fits each view best.
        chosen : (m, R) bool array
            Views that count.
        scale : (m, R) array
            What a product with a view is multiplied by for its logarithm.
        top : (m,) array
            The largest of these.
        """
        xp = self._xp
        view, image = np.nonzero(chosen.T)  # in the order of the views
        pairs = np.stack([view, image, shift[image, view]], axis=1)
        pairs, scales = from_host(pairs, xp, np.int32), from_host(scale[image, view, None], xp, np.float32)
        weights = _products(self._weighted, shifted, pairs).conj().view(np.float32) @ self._turns.T
        weights *= scales
        weights -= from_host(top[image, None], xp, np.float32)
        xp.exp(weights, out=weights)
        shares = np.zeros(chosen.shape)
        shares[image, view] = to_host(weights.sum(axis=1))
        total = shares.sum(axis=1, keepdims=True)
        factors = weights @ self._turns  # exp(-i q psi) turns the image back onto the view
        factors *= from_host(1 / total[image], xp, np.float32)
        first = from_host(np.searchsorted(view, np.arange(chosen.shape[1] + 1)), xp, np.int32)
        _add(self.sums, shifted, pairs, first, factors.view(np.complex64))
        return shares / total


def _products(weighted, shifted, pairs):
    """:func:`xmipp_accel.kernels.reference.view_sums.view_products`, where the arrays lie."""
    xp = array_module(shifted)
    out = xp.empty((len(pairs), shifted.shape[-1]), dtype=np.complex64)
    if xp is np:
        with kernel_turn:
            view_sums.view_products(weighted, shifted, pairs, out)
    elif out.size:
        sizes = (np.int32(size) for size in (len(pairs), *shifted.shape[1:]))
        kernel = cuda_kernel("view_sums", "view_products")
        kernel((math.ceil(out.size / _THREADS),), (_THREADS,), (weighted, shifted, pairs, *sizes, out))
    return out


def _add(sums, shifted, pairs, first, factors):
    """:func:`xmipp_accel.kernels.reference.view_sums.add_to_views`, where the arrays lie.

    Pairs ``first[v]`` to ``first[v + 1]`` are those of view v.
    """
    if array_module(sums) is np:
        with kernel_turn:
            view_sums.add_to_views(sums, shifted, pairs, first, factors)
        return
    sizes = (np.int32(size) for size in shifted.shape[1:])
    blocks = len(sums), math.ceil(sums[0].size / _THREADS)
    cuda_kernel("view_sums", "add_to_views")(blocks, (_THREADS,), (sums, shifted, pairs, first, factors, *sizes))
