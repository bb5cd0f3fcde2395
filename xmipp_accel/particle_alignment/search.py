"""Exhaustive comparison of particles with references over in-plane angles and given shifts."""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import allow_shared_memory, array_module, cuda_kernel, from_host, kernel_turn
from xmipp_accel.kernels.cpu import polar_search as cpu_kernel
from xmipp_accel.kernels.cpu.harmonics import LANES
from xmipp_accel.particle_alignment import polar

_LARGEST_BATCH = {"numpy": 64, "cupy": 512}  # particles at once; more only take memory
# Sizes that kernels/cuda/polar_search.cu is written for.
_TILE_REFERENCES, _TILE_SHIFTS, _TILE_HARMONICS, _THREADS = 16, 12, 4, 192
_SHARED_BESIDES = 12800  # bytes beside the tiles: products, angles and what was found


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


def in_rows(values, harmonics):
    """Harmonics (n, K, Q) in the kernels' order, (n, `harmonics`, K, 2) float32, padded with zeros."""
    table = array_module(values).zeros((len(values), harmonics, values.shape[1], 2), dtype=np.float32)
    used = table[:, : values.shape[2]]
    used[..., 0], used[..., 1] = values.real.transpose(0, 2, 1), values.imag.transpose(0, 2, 1)
    return table


def first_rings(references, harmonics):
    """(`harmonics`,) int32 first ring of references (R, K, Q) that holds each harmonic.

    A harmonic is empty on the inner rings; the particles' content there meets nothing. Further harmonics have no
    ring.
    """
    xp = array_module(references)
    power = xp.abs(references).max(axis=0)
    present = power > 1e-4 * power.max(axis=1, keepdims=True)
    first = xp.where(present.any(axis=0), present.argmax(axis=0), len(power) - 1)
    result = xp.full(harmonics, len(power), dtype=np.int32)
    result[: len(first)] = first
    return result


def turn_table(n_psi, harmonics, xp):
    """Cosines and sines (n_psi / 4 + 1, `harmonics`, 2) float32 of ``q psi_t``."""
    psi = np.arange(n_psi // 4 + 1) * (2 * np.pi / n_psi)
    angle = np.outer(psi, np.arange(harmonics))
    return xp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32))


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
        factors = np.asarray(weights)[:, None] * grid.harmonic_weights
        weighted = references * self._xp.asarray(factors.astype(np.float32))
        self._rings = grid.n_rings
        self._harmonics = _TILE_HARMONICS * math.ceil(grid.n_harmonics / _TILE_HARMONICS)
        self._table = in_rows(weighted, self._harmonics)
        self._first_ring = first_rings(weighted, self._harmonics)
        self._trig = turn_table(self.n_psi, self._harmonics, self._xp)

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
        n, n_shifts = len(samples), shifts.shape[-2]
        candidates, found = self._begin(n, candidates)
        per_particle = 8 * n_shifts * (4 * self._rings * self._harmonics + self.grid.n_rings * self.grid.n_angles)
        batch = max(1, min(n, _LARGEST_BATCH[self._xp.__name__], int(self.memory / per_particle)))
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            phases = polar.shift_phases(self.grid, shifts if shifts.ndim == 2 else shifts[part], self._xp)
            shifted = polar.angular_coefficients(samples[part, None] * phases, self.grid)
            self._compare(shifted, candidates[part], *(array[part] for array in found))
        return self._in_degrees(*found)

    def of_shifted(self, harmonics):
        """The same of particles with all references, from their harmonics (m, S, K, Q) after every shift."""
        candidates, found = self._begin(len(harmonics))
        self._compare(harmonics, candidates, *found)
        return self._in_degrees(*found)

    def _begin(self, n, candidates=None):
        """Candidates, and arrays for score, place of the angle and that of the shift."""
        xp = self._xp
        if candidates is None:
            candidates = np.broadcast_to(np.arange(self.n_references, dtype=np.int32), (n, self.n_references))
        angle, shift = (xp.zeros(candidates.shape, dtype=np.int32) for _ in range(2))
        return candidates, (xp.full(candidates.shape, -np.inf, dtype=np.float32), angle, shift)

    def _in_degrees(self, score, angle, shift):
        return score, angle * np.float32(360.0 / self.n_psi), shift

    def _compare(self, harmonics, candidates, score, angle, shift):
        run, order = (self._on_host, self._lanes) if self._xp is np else (self._on_device, self._tiles)
        particles = order(harmonics.transpose(0, 3, 2, 1))
        run(particles, harmonics.shape[1], from_host(candidates, self._xp, np.int32), score, angle, shift)

    def _on_host(self, particles, n_shifts, candidates, score, psi, shift_index):
        table, trig = self._table.reshape(self.n_references, -1), self._trig.reshape(len(self._trig), -1)
        with kernel_turn:
            cpu_kernel.polar_search(
                table, particles, self._first_ring, trig, n_shifts, candidates, score, psi, shift_index
            )

    def _lanes(self, shifted):
        """Harmonics (m, Q, K, S) in the CPU's order: (m, blocks, Q K 2 LANES), the shifts spread evenly."""
        n, harmonics, rings, n_shifts = shifted.shape
        blocks = math.ceil(n_shifts / LANES)
        lanes = np.zeros((n, blocks, self._harmonics, self._rings, 2, LANES), dtype=np.float32)
        in_block = math.ceil(n_shifts / blocks)
        used = lanes[:, :, :harmonics, :rings]
        for block in range(blocks):
            part = shifted[..., block * in_block : (block + 1) * in_block]
            used[:, block, :, :, 0, : part.shape[-1]] = part.real
            used[:, block, :, :, 1, : part.shape[-1]] = part.imag
        return lanes.reshape(n, blocks, -1)

    def _on_device(self, particles, n_shifts, candidates, score, psi, shift_index):
        kernel = cuda_kernel("polar_search", "polar_search")
        shared = 8 * _TILE_HARMONICS * self._rings * (_TILE_REFERENCES + 2 + _TILE_SHIFTS) + _SHARED_BESIDES
        allow_shared_memory(kernel, shared)
        sizes = candidates.shape[1], self._rings, self._harmonics, n_shifts, particles.shape[3], len(self._trig)
        kernel(
            (math.ceil(candidates.shape[1] / _TILE_REFERENCES), len(particles)),
            (_THREADS,),
            (self._table, particles, self._first_ring, self._trig, candidates)
            + tuple(np.int32(size) for size in sizes)
            + (score, psi, shift_index),
            shared_mem=shared,
        )

    def _tiles(self, shifted):
        """Harmonics (m, Q, K, S) in the GPU's order: the same, padded to whole tiles."""
        n, harmonics, rings, n_shifts = shifted.shape
        padded = _TILE_SHIFTS * math.ceil(n_shifts / _TILE_SHIFTS)
        particles = self._xp.zeros((n, self._harmonics, rings, padded), dtype=np.complex64)
        particles[:, :harmonics, :, :n_shifts] = shifted
        return particles
