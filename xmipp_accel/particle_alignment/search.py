"""Exhaustive comparison of particles with references over in-plane angles and a grid of shifts, then a polish."""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, to_host
from xmipp_accel.kernels.cpu import polar_search as cpu_kernel
from xmipp_accel.particle_alignment import polar

_THREADS = 128
_LARGEST_BATCH = 64  # particles at once; more only take memory
_NEWTON_STEPS = 4
_MAX_ANGLE_STEP = math.radians(3.0)


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
    shifts : (S, 2) float array
        (y, x) translations to try, px.
    memory : float
        Bytes that intermediate arrays may take.
    """

    def __init__(self, grid, references, weights, shifts, memory=1e9):
        self.grid, self.shifts, self.memory = grid, np.asarray(shifts, dtype=np.float64), float(memory)
        self.n_references = len(references)
        # Half the spacing that the highest harmonic needs to be found on its flank.
        self.n_psi = 4 * math.ceil(2.0 * grid.n_harmonics / 4)
        xp = array_module(references)
        factors = np.asarray(weights)[:, None] * grid.harmonic_weights
        weighted = references * xp.asarray(factors.astype(np.float32))
        self._trig = self._trigonometry()
        prepare = self._prepare_cpu if xp is np else self._prepare_gpu
        prepare(weighted)

    def _trigonometry(self):
        psi = np.arange(self.n_psi // 4 + 1) * (2 * np.pi / self.n_psi)
        angle = np.outer(psi, np.arange(self.grid.n_harmonics))
        return np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)  # (T/4+1, Q, 2)

    def __call__(self, samples, allowed=None):
        """Best in-plane angle and shift of every pair.

        Parameters
        ----------
        samples : (m, K, Phi / 2) complex64 array
            Ring samples of the particles.
        allowed : (m, R) bool array of NumPy, optional
            Pairs to compare.

        Returns
        -------
        score : (m, R) float32 NumPy array
            ``Re sum_q c_q exp(-i q psi) sum_k w_k conj(R[k, q]) P_s[k, q]``; -inf for excluded pairs.
        psi : (m, R) float32 NumPy array
            Degrees in [0, 360).
        shift_index : (m, R) int32 NumPy array
            Into `shifts`.
        """
        run = self._search_cpu if array_module(samples) is np else self._search_gpu
        score, psi, shift = run(samples, allowed)
        if allowed is not None:
            score = np.where(allowed, score, np.float32(-np.inf))
        return score, psi * np.float32(360.0 / self.n_psi), shift

    def _shifted(self, samples):
        """Harmonics (m, S, K, Q) of the particles after every shift."""
        xp = array_module(samples)
        phases = polar.shift_phases(self.grid, self.shifts, xp)
        return polar.angular_coefficients(samples[:, None] * phases[None], self.grid)

    # CPU

    def _prepare_cpu(self, weighted):
        references, rings, harmonics = weighted.shape
        self._padded = 4 * math.ceil(rings / 4), 8 * math.ceil(harmonics / 8)
        table = np.zeros((references, self._padded[1], self._padded[0], 2), dtype=np.float32)
        table[:, :harmonics, :rings, 0] = weighted.real.transpose(0, 2, 1)
        table[:, :harmonics, :rings, 1] = weighted.imag.transpose(0, 2, 1)
        self._table = table.reshape(references, -1)
        power = np.abs(weighted).max(axis=0)
        # A harmonic is empty on the inner rings; the particles' content there meets nothing.
        present = power > 1e-4 * power.max(axis=1, keepdims=True)
        first = np.where(present.any(axis=0), present.argmax(axis=0), rings - 1)
        self._first_ring = np.full(self._padded[1], self._padded[0], dtype=np.int64)
        self._first_ring[:harmonics] = first // 4 * 4
        trig = np.zeros((len(self._trig), self._padded[1], 2), dtype=np.float32)
        trig[:, :harmonics] = self._trig
        self._padded_trig = trig.reshape(len(trig), -1)

    def _search_cpu(self, samples, allowed):
        n, n_shifts = len(samples), len(self.shifts)
        best = np.full((n, self.n_references), -np.inf, dtype=np.float32)
        psi = np.zeros((n, self.n_references), dtype=np.int32)
        shift = np.zeros((n, self.n_references), dtype=np.int32)
        blocks = math.ceil(n_shifts / cpu_kernel.LANES)
        per_particle = 8 * self._padded[0] * self._padded[1] * (cpu_kernel.LANES * blocks + 3 * n_shifts)
        batch = max(1, min(n, _LARGEST_BATCH, int(self.memory / per_particle)))
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            mask = np.zeros((0, 0), bool) if allowed is None else np.ascontiguousarray(allowed[part])
            cpu_kernel.polar_search(
                self._table,
                self._lanes(samples[part], blocks),
                self._first_ring,
                self._padded_trig,
                n_shifts,
                mask,
                best[part],
                psi[part],
                shift[part],
            )
        return best, psi, shift

    def _lanes(self, samples, blocks):
        """Shifted particles in the kernel's order: (m, blocks, Q K 2 LANES)."""
        n, n_shifts = len(samples), len(self.shifts)
        rings, harmonics = self._padded
        lanes = np.zeros((n, blocks, harmonics, rings, 2, cpu_kernel.LANES), dtype=np.float32)
        in_block = math.ceil(n_shifts / blocks)
        shifted = self._shifted(samples).transpose(0, 3, 2, 1)  # (m, Q, K, S)
        used = lanes[:, :, : self.grid.n_harmonics, : self.grid.n_rings]
        for block in range(blocks):
            part = shifted[..., block * in_block : (block + 1) * in_block]
            used[:, block, :, :, 0, : part.shape[-1]] = part.real
            used[:, block, :, :, 1, : part.shape[-1]] = part.imag
        return lanes.reshape(n, blocks, -1)

    # GPU

    def _prepare_gpu(self, weighted):
        xp = array_module(weighted)
        by_harmonic = weighted.transpose(2, 0, 1)  # (Q, R, K)
        real, imaginary = by_harmonic.real, by_harmonic.imag
        # conj(R) P = (Rr Pr + Ri Pi) + i (Rr Pi - Ri Pr), with the particle stacked as [Pr; Pi].
        cosine = xp.concatenate([real, imaginary], axis=2)
        sine = xp.concatenate([-imaginary, real], axis=2)
        parity = (slice(0, None, 2), slice(1, None, 2))
        self._operands = [xp.ascontiguousarray(part[p]) for p in parity for part in (cosine, sine)]
        turns = [self._trig[:, p, part] for p in parity for part in (0, 1)]
        self._turns = [xp.asarray(np.ascontiguousarray(turn)) for turn in turns]

    def _search_gpu(self, samples, allowed):
        xp = array_module(samples)
        n, n_shifts, quarter = len(samples), len(self.shifts), len(self._trig)
        results = [xp.empty((self.n_references, n), dtype=kind) for kind in (np.float32, np.int32, np.int32)]
        per_pair = 4 * n_shifts * (2 * self.grid.n_harmonics + 4 * quarter)
        per_particle = 8 * n_shifts * self.grid.n_rings * (4 * self.grid.n_harmonics + self.grid.n_angles)
        batch = max(1, min(n, _LARGEST_BATCH, int(0.4 * self.memory / per_particle)))
        tile = max(1, min(self.n_references, int(0.5 * self.memory / (per_pair * batch))))
        for start in range(0, n, batch):
            stop = min(start + batch, n)
            shifted = self._shifted(samples[start:stop]).transpose(3, 2, 1, 0)  # (Q, K, S, m)
            shape = (shifted.shape[0], self.grid.n_rings, -1)
            stacked = xp.concatenate([shifted.real.reshape(shape), shifted.imag.reshape(shape)], axis=1)
            stacked = [xp.ascontiguousarray(stacked[0::2]), xp.ascontiguousarray(stacked[1::2])]
            for first in range(0, self.n_references, tile):
                last = min(first + tile, self.n_references)
                found = self._search_tile(stacked, slice(first, last), stop - start)
                for result, values in zip(results, found):
                    result[first:last, start:stop] = values
        return tuple(np.ascontiguousarray(to_host(result).T) for result in results)

    def _search_tile(self, stacked, part, n):
        xp = array_module(stacked[0])
        count, n_shifts = part.stop - part.start, len(self.shifts)
        sums = []
        for i, (operand, turn) in enumerate(zip(self._operands, self._turns)):
            products = operand[:, part] @ stacked[i // 2]  # (Q / 2, R, S m)
            sums.append(turn @ products.reshape(len(products), -1))  # (T / 4 + 1, R S m)
        found = [xp.empty((count, n), dtype=kind) for kind in (np.float32, np.int32, np.int32)]
        kernel = cuda_kernel("polar_search", "polar_best<float>")
        sizes = [np.int32(value) for value in (len(self._trig), count, n_shifts, n)]
        kernel((math.ceil(count * n / _THREADS),), (_THREADS,), (*sums, *sizes, *found))
        return found


def refine_poses(grid, references, weights, samples, psi, shifts, max_shift):
    """Newton polish of in-plane angles and shifts on the exact score.

    Parameters
    ----------
    grid : polar.PolarGrid
    references, samples : (b, K, Q) and (b, K, Phi / 2) complex64 arrays
        One reference and one particle for each of b pairs.
    weights : (K,) float array
    psi : (b,) float NumPy array
        Degrees.
    shifts : (b, 2) float NumPy array
        (y, x) px.
    max_shift : float
        Shifts are kept within this disc, px.

    Returns
    -------
    score : (b,), psi : (b,), shifts : (b, 2) float64 NumPy arrays
        Never worse than the input poses, once their shifts are within the disc.
    """
    pose = _within(np.column_stack([np.deg2rad(psi), shifts]).astype(np.float64), max_shift)
    value, gradient, hessian = _derivatives(grid, references, weights, samples, pose)
    quarter_period = grid.box / (4.0 * grid.n_rings)
    limit = np.array([_MAX_ANGLE_STEP, quarter_period, quarter_period])
    damping = np.ones(len(pose))
    for _ in range(_NEWTON_STEPS):
        trial = _within(pose + damping[:, None] * _newton_step(gradient, hessian, limit), max_shift)
        new_value, new_gradient, new_hessian = _derivatives(grid, references, weights, samples, trial)
        better = new_value > value
        value = np.where(better, new_value, value)
        pose[better], gradient[better], hessian[better] = trial[better], new_gradient[better], new_hessian[better]
        damping = np.where(better, 1.0, damping * 0.3)
    return value, np.rad2deg(pose[:, 0]) % 360.0, pose[:, 1:]


def _within(pose, max_shift):
    length = np.hypot(pose[:, 1], pose[:, 2])
    pose[:, 1:] *= np.minimum(1.0, max_shift / np.maximum(length, 1e-12))[:, None]
    return pose


def _newton_step(gradient, hessian, limit):
    """Ascent steps (b, 3), bounded; curvatures of the wrong sign are turned round."""
    scaled = hessian * limit[:, None] * limit
    values, vectors = np.linalg.eigh(scaled)
    floor = 1e-3 * np.abs(values).max(axis=1, keepdims=True) + 1e-30
    values = np.maximum(np.abs(values), floor)
    along = np.einsum("bij,bi->bj", vectors, gradient * limit) / values
    step = np.einsum("bij,bj->bi", vectors, along)
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step / np.maximum(longest, 1.0) * limit


def _derivatives(grid, references, weights, samples, pose):
    """Score, gradient and Hessian with respect to (psi in radians, shift y, shift x).

    By Parseval the score is ``sum_k w_k 2 / Phi sum_j Re(conj R(k, phi_j + psi) P_s(k, phi_j))`` over the half
    circle.
    """
    xp = array_module(samples)
    b = len(pose)
    q = xp.arange(grid.n_harmonics, dtype=np.float64)
    turned = references * xp.exp(1j * xp.asarray(pose[:, :1]) * q).astype(np.complex64)[:, None, :]
    factors = xp.asarray(np.asarray(weights)[:, None] * (2.0 / grid.n_angles), dtype=np.float32)
    particle = samples * polar.shift_phases(grid, pose[:, 1:], xp) * factors
    iq = (1j * q).astype(np.complex64)
    orders = xp.stack([turned, turned * iq, turned * iq * iq])
    r0, r1, r2 = polar.samples_from_coefficients(orders, grid)
    ky, kx = xp.asarray(grid.frequencies * (-2 * math.pi / grid.box), dtype=np.float32)

    def total(array):
        return to_host(array.reshape(b, -1).sum(axis=1, dtype=np.float64))

    product = xp.conj(r0) * particle
    turning = xp.conj(r1) * particle
    real, imaginary, slope = product.real, product.imag, -turning.imag
    value = total(real)
    gradient = np.stack([total(turning.real), total(-imaginary * ky), total(-imaginary * kx)], axis=1)
    hessian = np.empty((b, 3, 3))
    hessian[:, 0, 0] = total((xp.conj(r2) * particle).real)
    hessian[:, 0, 1] = hessian[:, 1, 0] = total(slope * ky)
    hessian[:, 0, 2] = hessian[:, 2, 0] = total(slope * kx)
    hessian[:, 1, 1] = -total(real * ky * ky)
    hessian[:, 2, 2] = -total(real * kx * kx)
    hessian[:, 1, 2] = hessian[:, 2, 1] = -total(real * ky * kx)
    return value, gradient, hessian
