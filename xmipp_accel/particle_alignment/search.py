"""Exhaustive comparison of particles with references over in-plane angles and given shifts."""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import array_module, from_host
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.search_kernels import kernel_for


def shift_grid(radius, step) -> np.ndarray:
    """Hexagonal grid of shifts (S, 2), y and x in px, within a disc and nearest to the origin first.

    Parameters
    ----------
    radius, step : float
        Px; a radius of 0 gives the one shift (0, 0).
    """
    rows = math.floor(radius / (step * math.sqrt(0.75)))
    columns = math.floor(radius / step) + 1
    y, x = np.mgrid[-rows : rows + 1, -columns : columns + 1].astype(np.float64)
    points = np.stack([y * math.sqrt(0.75), x + 0.5 * (np.abs(y) % 2)], axis=-1).reshape(-1, 2) * step
    distance = np.hypot(points[:, 0], points[:, 1])
    inside = distance <= radius + 1e-9
    return points[inside][np.argsort(distance[inside], kind="stable")]


def normalize_references(references, grid, weights):
    """References (R, K, Q) scaled to unit norm in ``sum_k w_k E[k]``; empty ones stay zero."""
    xp = array_module(references)
    power = polar.ring_energy(references, grid) @ xp.asarray(weights.astype(np.float32))
    scale = xp.where(power > 1e-20, 1 / xp.sqrt(xp.maximum(power, 1e-20)), 0)
    return (references * scale[:, None, None]).astype(np.complex64)


class PolarSearch:
    """Compares particles with a fixed set of references.

    Parameters
    ----------
    grid : polar.PolarGrid
    references : (R, K, Q) complex64 array
        NumPy or CuPy; decides where the work is done.
    weights : (K,) float array
        w_k of the score.
    memory : float
        Bytes that intermediate arrays may take.
    """

    def __init__(self, grid, references, weights, memory=1e9):
        self.grid, self.memory = grid, float(memory)
        self.n_references = len(references)
        self._xp = array_module(references)
        # Half the spacing that the highest harmonic needs to be found on its flank.
        self.n_psi = 4 * math.ceil(2.0 * grid.n_harmonics / 4)
        self.kernel = kernel_for(grid, references, weights, self.n_psi)

    def __call__(self, samples, shifts, candidates=None):
        """Best in-plane angle and shift of each particle with each of its candidates.

        Parameters
        ----------
        samples : (m, K, Phi / 2) complex64 array
            Ring samples of the particles.
        shifts : (S, 2) or (m, S, 2) float NumPy array
            (y, x) translations to try, px.
        candidates : (m, T) int array of NumPy, optional
            References that each particle is compared with, -1 for none; all of them by default.

        Returns
        -------
        score : (m, T) float32 array
            ``Re sum_q c_q exp(-i q psi) sum_k w_k conj(R[k, q]) P_s[k, q]``; -inf where there is no candidate.
        psi : (m, T) float32 array
            Degrees in [0, 360).
        shift_index : (m, T) int32 array
            Into `shifts`.
        """
        n, grid = len(samples), self.grid
        candidates, found = self._begin(n, candidates)
        per_particle = 8 * shifts.shape[-2] * grid.n_rings * (4 * grid.n_harmonics + grid.n_angles)
        batch = max(1, min(n, self.kernel.largest_batch, int(self.memory / per_particle)))
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            phases = polar.shift_phases(grid, shifts if shifts.ndim == 2 else shifts[part], self._xp)
            harmonics = polar.angular_coefficients(samples[part, None] * phases, grid)
            self._compare(samples[part], harmonics, candidates[part], *(array[part] for array in found))
        return self._in_degrees(*found)

    def of_shifted(self, samples, harmonics):
        """The same with all references, of particles whose harmonics (m, S, K, Q) after every shift are known."""
        candidates, found = self._begin(len(samples))
        self._compare(samples, harmonics, candidates, *found)
        return self._in_degrees(*found)

    def _begin(self, n, candidates=None):
        """Candidates, and arrays for score, place of the angle and that of the shift."""
        xp = self._xp
        if candidates is None:
            candidates = np.broadcast_to(np.arange(self.n_references, dtype=np.int32), (n, self.n_references))
        angle, shift = (xp.zeros(candidates.shape, dtype=np.int32) for _ in range(2))
        return candidates, (xp.full(candidates.shape, -np.inf, dtype=np.float32), angle, shift)

    def _compare(self, samples, harmonics, candidates, *found):
        particles = self.kernel.arranged(samples, harmonics)
        self.kernel(particles, harmonics.shape[1], from_host(candidates, self._xp, np.int32), *found)

    def _in_degrees(self, score, angle, shift):
        return score, angle * np.float32(360.0 / self.n_psi), shift
