"""The kernels of the polar search, each with the order in which it takes references and particles."""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import (
    allow_shared_memory,
    array_module,
    cuda_kernel,
    from_host,
    gpu_limits,
    kernel_turn,
    to_host,
)
from xmipp_accel.kernels.cpu import polar_search as cpu_kernel
from xmipp_accel.kernels.cpu.harmonics import LANES
from xmipp_accel.particle_alignment import polar


def kernel_for(grid, references, weights, n_psi):
    """The fastest kernel that runs where the references are; parameters as those of :class:`HostKernel`."""
    if array_module(references) is np:
        return HostKernel(grid, references, weights, n_psi)
    kind = TensorKernel if TensorKernel.fits(grid.n_harmonics) else PlainKernel
    return kind(grid, references, weights, n_psi)


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


class HostKernel:
    """``kernels/cpu/polar_search.py``.

    Parameters
    ----------
    grid : polar.PolarGrid
    references : (R, K, Q) complex64 array
    weights : (K,) float array
    n_psi : int
        A multiple of 4.

    Attributes
    ----------
    largest_batch : int
        Particles at once; more would only take memory.
    """

    largest_batch, tile = 64, 4  # harmonics

    def __init__(self, grid, references, weights, n_psi):
        xp = array_module(references)
        factors = np.asarray(weights)[:, None] * grid.harmonic_weights
        weighted = references * from_host(factors, xp, np.float32)
        self._rings, self._harmonics = grid.n_rings, self.tile * math.ceil(grid.n_harmonics / self.tile)
        self._table = in_rows(weighted, self._harmonics)
        self._first_ring = first_rings(weighted, self._harmonics)
        self._turns = turn_table(n_psi, self._harmonics, xp)

    def arranged(self, samples, harmonics):
        """Particles as a call takes them.

        Parameters
        ----------
        samples : (m, K, Phi / 2) complex64 array
            Ring samples of the particles.
        harmonics : (m, S, K, Q) complex64 array
            Their harmonics after every shift.
        """
        n, n_shifts, rings, n_harmonics = harmonics.shape
        blocks = math.ceil(n_shifts / LANES)
        lanes = np.zeros((n, blocks, self._harmonics, rings, 2, LANES), dtype=np.float32)
        in_block = math.ceil(n_shifts / blocks)  # the shifts are spread evenly
        used = lanes[:, :, :n_harmonics]
        for block in range(blocks):
            part = harmonics[:, block * in_block : (block + 1) * in_block].transpose(0, 3, 2, 1)
            used[:, block, :, :, 0, : part.shape[-1]] = part.real
            used[:, block, :, :, 1, : part.shape[-1]] = part.imag
        return lanes.reshape(n, blocks, -1)

    def __call__(self, particles, n_shifts, candidates, score, angle, shift):
        """Write score, place of the angle and of the shift for all `candidates` (m, T) but those that are -1."""
        table, turns = self._table.reshape(len(self._table), -1), self._turns.reshape(len(self._turns), -1)
        with kernel_turn:
            cpu_kernel.polar_search(
                table, particles, self._first_ring, turns, n_shifts, candidates, score, angle, shift
            )


class PlainKernel(HostKernel):
    """``kernels/cuda/polar_search.cu``."""

    largest_batch = 512
    # What the file is written for.
    tile, _references, _shifts, _threads = 4, 16, 12, 192
    _besides = 12800  # bytes of shared memory beside the tiles: products, angles and what was found

    def arranged(self, samples, harmonics):
        """As :meth:`HostKernel.arranged`: (m, Q, K, S) complex64, padded to whole tiles."""
        n, n_shifts, rings, n_harmonics = harmonics.shape
        padded = self._shifts * math.ceil(n_shifts / self._shifts)
        particles = array_module(harmonics).zeros((n, self._harmonics, rings, padded), dtype=np.complex64)
        particles[:, :n_harmonics, :, :n_shifts] = harmonics.transpose(0, 3, 2, 1)
        return particles

    def __call__(self, particles, n_shifts, candidates, score, angle, shift):
        """As :class:`HostKernel`."""
        kernel = cuda_kernel("polar_search", "polar_search")
        shared = 8 * self.tile * self._rings * (self._references + 2 + self._shifts) + self._besides
        allow_shared_memory(kernel, shared)
        sizes = candidates.shape[1], self._rings, self._harmonics, n_shifts, particles.shape[3], len(self._turns)
        kernel(
            (math.ceil(candidates.shape[1] / self._references), len(particles)),
            (self._threads,),
            (self._table, particles, self._first_ring, self._turns, candidates)
            + tuple(np.int32(size) for size in sizes)
            + (score, angle, shift),
            shared_mem=shared,
        )


class TensorKernel:
    """``kernels/cuda/polar_search_tensor.cu``; parameters and methods are those of :class:`HostKernel`."""

    largest_batch = 512
    # What the file is written for.
    _references, _shifts, _chunk, _angles, _lanes, _threads = 8, 16, 32, 32, 32, 256
    _scale = 128.0  # of vectors of norm 1: their products, scaled so twice, stay below the largest half, 65504

    @classmethod
    def fits(cls, n_harmonics) -> bool:
        """Whether the current GPU can run it with so many harmonics."""
        capability, most = gpu_limits()
        return capability >= 80 and cls._shared(n_harmonics) <= most

    @classmethod
    def _shared(cls, n_harmonics):
        """Bytes of the products, 8 for each harmonic of a pair."""
        return 8 * cls._chunk * math.ceil(n_harmonics / cls._chunk) * cls._references * cls._shifts

    def __init__(self, grid, references, weights, n_psi):
        xp = array_module(references)
        factors = np.asarray(weights)[:, None] * grid.harmonic_weights
        self._grid, self._weights = grid, weights
        self._units, self._steps = 2 * math.ceil(grid.n_harmonics / 8), math.ceil(grid.n_rings / 8)
        self._factors = from_host(np.sqrt(factors) * self._scale, xp, np.float32)
        norms = xp.sqrt((polar.ring_energy(references, grid) * from_host(weights, xp, np.float32)).sum(axis=1))
        self._table = self._split("split_references", references, norms, (self._units, self._steps, 4, 4), 1)
        self._reference_scale = norms * np.float32(self._scale**-2)
        self._first_step = from_host(self._first_steps(references), xp)
        self._turns = from_host(self._turn_splits(n_psi), xp)
        self._quarter = n_psi // 4 + 1

    def _split(self, kernel, harmonics, norms, shape, each):
        """Vectors of norm 1, or 0, times the scale, in halves, (n, *shape, 8) float16; `each` 8 by one thread."""
        xp = array_module(harmonics)
        table = xp.empty((len(harmonics), *shape, 8), dtype=np.float16)
        inverse = xp.where(norms > 0, 1 / xp.where(norms > 0, norms, 1), 0).astype(np.float32)
        threads = table.size // (8 * each)
        sizes = (np.int32(size) for size in (*harmonics.shape[1:], self._units, self._steps))
        arguments = xp.ascontiguousarray(harmonics), self._factors, inverse, *sizes, np.int64(threads), table
        blocks = (math.ceil(threads / self._threads),)
        cuda_kernel("polar_search_tensor", kernel)(blocks, (self._threads,), arguments)
        return table

    def _first_steps(self, references):
        """(units,) int32: each unit is four harmonics of one parity."""
        first = to_host(first_rings(references * self._factors, 4 * self._units)).reshape(-1, 4, 2).min(axis=1)
        return np.minimum(first // 8, self._steps).astype(np.int32).ravel()

    def _turn_splits(self, n_psi):
        """Cosines and sines in halves, (quarter / 32, chunks, 4, 4, 32, 8) float16; 0 beyond the last harmonic."""
        groups = math.ceil((n_psi // 4 + 1) / self._angles)
        chunks = math.ceil(self._grid.n_harmonics / self._chunk)
        t = np.minimum(np.arange(self._angles * groups), n_psi // 4)[:, None]
        q = np.arange(self._chunk * chunks)
        angle = q * t * (2 * np.pi / n_psi)
        values = np.where(q < self._grid.n_harmonics, [np.cos(angle), np.sin(angle)], 0).astype(np.float32)
        # (cosine or sine, group, tile, t, chunk, four, i, parity) to
        # (group, chunk, parity, cosine or sine, tile, t, four, i)
        values = values.reshape(2, groups, 4, 8, chunks, 4, 4, 2).transpose(1, 4, 7, 0, 2, 3, 5, 6)
        high = values.astype(np.float16)
        splits = np.concatenate([high, (values - high).astype(np.float16)], axis=-1)
        return np.ascontiguousarray(splits.reshape(groups, chunks, 4, 4, self._lanes, 8))

    def arranged(self, samples, harmonics):
        """As :meth:`HostKernel.arranged`: splits, and the norms that they are divided by."""
        xp = array_module(harmonics)
        power = (samples.real**2 + samples.imag**2).mean(axis=2)  # not less than that of the harmonics
        norms = xp.sqrt((power * from_host(self._weights, xp, np.float32)).sum(axis=1))
        shape = math.ceil(harmonics.shape[1] / self._shifts), self._units, self._steps, 4, 2, self._lanes
        return self._split("split_particles", harmonics, norms, shape, 2), norms

    def __call__(self, particles, n_shifts, candidates, score, angle, shift):
        """As :class:`HostKernel`."""
        table, scale = particles
        n_harmonics = self._grid.n_harmonics
        kernel, shared = cuda_kernel("polar_search_tensor", "polar_search_tensor"), self._shared(n_harmonics)
        allow_shared_memory(kernel, shared)
        sizes = candidates.shape[1], n_harmonics, self._steps, n_shifts, self._quarter
        kernel(
            (math.ceil(candidates.shape[1] / self._references), len(table)),
            (self._threads,),
            (self._table, table, self._first_step, self._turns, candidates, self._reference_scale, scale)
            + tuple(np.int32(size) for size in sizes)
            + (score, angle, shift),
            shared_mem=shared,
        )
