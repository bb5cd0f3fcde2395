"""Scores of particles with shifted class averages at all turns of a grid: what the exhaustive search looks at."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, kernel_turn
from xmipp_accel.kernels.cpu import class_search as cpu_kernel
from xmipp_accel.kernels.cpu.harmonics import LANES
from xmipp_accel.particle_alignment.classify2d_refine import aligned_harmonics
from xmipp_accel.particle_alignment.polar import samples_from_coefficients
from xmipp_accel.particle_alignment.search_kernels import first_rings, in_rows, turn_table

_TEMPLATE_BYTES = 64 << 20  # for arrays between averages and their shifted harmonics


def make_scan(templates, space):
    """Scan of particles for the best of `templates`, as :func:`shifted_templates` returns them, on a `SearchGrid`.

    Its method ``best(rings, offsets, count)`` finds the `count` best classes of particles, whose harmonics are
    `rings` (m, K, Q); `offsets` (m, C) are added to the scores of the classes. It returns arrays (m, count), best
    first: class, whether it is mirrored, numbers of the shift and of the turn, and score. ``bytes_for_one`` is
    the memory that a particle takes in it.
    """
    return (_KernelScan if array_module(templates) is np else _ArrayScan)(templates, space)


class _KernelScan:
    """With the CPU's kernel."""

    def __init__(self, templates, space):
        self._space, self._count = space, templates.shape[2]
        self._rings, self._harmonics = space.n_rings, 2 * -(-space.n_harmonics // 2)
        rows = templates.reshape((-1,) + templates.shape[3:])
        self._first_ring = first_rings(rows, self._harmonics)
        self._n_templates = len(rows) // len(space.shifts)
        self._templates = self._in_lanes(templates)
        self._turns = turn_table(space.n_turns, self._harmonics, np).reshape(space.n_turns // 4 + 1, -1)
        self.bytes_for_one = 32 * self._rings * self._harmonics

    def _in_lanes(self, templates):
        """Templates in blocks of columns, as the kernel takes them."""
        rings, harmonics = templates.shape[3:]
        columns = templates.transpose(4, 3, 0, 2, 1).reshape(harmonics, rings, -1)
        blocks = -(-columns.shape[2] // LANES)
        in_block = -(-columns.shape[2] // blocks)
        lanes = np.zeros((blocks, self._harmonics, self._rings, 2, LANES), dtype=np.float32)
        for block in range(blocks):
            part = columns[..., block * in_block : (block + 1) * in_block]
            lanes[block, :harmonics, :rings, 0, : part.shape[2]] = part.real
            lanes[block, :harmonics, :rings, 1, : part.shape[2]] = part.imag
        return lanes.reshape(blocks, -1)

    def best(self, rings, offsets, count):
        particles = in_rows(rings, self._harmonics).reshape(len(rings), -1)
        shape = len(rings), self._n_templates
        score, turn, shift = (np.empty(shape, dtype) for dtype in (np.float32, np.int32, np.int32))
        with kernel_turn:
            cpu_kernel.class_search(
                particles,
                self._templates,
                self._first_ring,
                self._turns,
                len(self._space.shifts),
                score,
                turn,
                shift,
            )
        score, turn, shift = (array.reshape(len(rings), -1, self._count) for array in (score, turn, shift))
        mirrored = score.argmax(axis=1)
        score, turn, shift = (np.take_along_axis(a, mirrored[:, None], 1)[:, 0] for a in (score, turn, shift))
        score = score + offsets
        label = np.argsort(-score, axis=1, kind="stable")[:, :count]
        mirrored, shift, turn, score = (np.take_along_axis(a, label, 1) for a in (mirrored, shift, turn, score))
        return label, mirrored > 0, shift, turn, score


class _ArrayScan:
    """With matrix products, which GPUs are fast with."""

    def __init__(self, templates, space):
        xp = array_module(templates)
        self._space, self._count = space, templates.shape[2]
        rows = templates.reshape((-1,) + templates.shape[3:]).conj().transpose(2, 1, 0)
        # The copy to C order matters: matmul is slow with others. Real parts of all rings precede imaginary ones.
        self._templates = xp.ascontiguousarray(xp.concatenate([rows.real, rows.imag], axis=1))
        self._turns = _turn_matrices(space, xp)
        self.bytes_for_one = 8 * space.n_harmonics * self._templates.shape[-1]

    def best(self, rings, offsets, count):
        xp, space, n_shifts = array_module(rings), self._space, len(self._space.shifts)
        cosine, sine = self._turns
        rings = xp.ascontiguousarray(rings.transpose(2, 0, 1))
        real_rows = xp.concatenate([rings.real, -rings.imag], axis=2)
        imaginary_rows = xp.concatenate([rings.imag, rings.real], axis=2)
        # Real products: a strided real part of a complex one would miss the fast matrix product below.
        even = cosine @ xp.matmul(real_rows, self._templates).reshape(space.n_harmonics, -1)
        odd = sine @ xp.matmul(imaginary_rows, self._templates).reshape(space.n_harmonics, -1)
        # The turns theta and -theta share both products: their scores are even - odd and even + odd.
        peak = (even + xp.abs(odd)).max(axis=0).reshape(rings.shape[1], -1, self._count).transpose(0, 2, 1)
        place = peak.argmax(axis=2)
        score = xp.take_along_axis(peak, place[..., None], 2)[..., 0] + offsets
        label = xp.argsort(-score, axis=1)[:, :count]
        place, score = xp.take_along_axis(place, label, 1), xp.take_along_axis(score, label, 1)
        column = xp.arange(rings.shape[1])[:, None] * self._templates.shape[-1] + place * self._count + label
        turn = xp.concatenate([even[:, column] - odd[:, column], even[:, column] + odd[:, column]]).argmax(axis=0)
        half = space.n_turns // 2 + 1
        turn = xp.where(turn < half, turn, half - turn)
        return label, place >= n_shifts, place % n_shifts, turn, score


def shifted_templates(model, space, mirrors):
    """Templates shifted back, times the harmonics' weights, (1 or 2, S, C, K, Q) complex64."""
    xp, grid, count = array_module(model.averages), model.grid, len(model)
    samples = samples_from_coefficients(model.averages * model.weights[:, :, None], grid)[:, : space.n_rings]
    rows = xp.tile(xp.arange(count), len(space.shifts))
    shift = xp.asarray(np.repeat(-space.shifts, count, axis=0).astype(np.float32))
    zero = xp.zeros(len(rows), dtype=np.float32)
    shifted = aligned_harmonics(samples, rows, zero, shift, zero > 0, space.inner(grid), _TEMPLATE_BYTES)
    shifted *= xp.asarray(grid.harmonic_weights[: space.n_harmonics].astype(np.float32))
    # The shift is applied after mirroring, so a mirrored template is the conjugate of a shifted one.
    sets = [shifted, shifted.conj()] if mirrors else [shifted]
    return xp.stack(sets).reshape((len(sets), -1, count) + shifted.shape[1:])


def _turn_matrices(space, xp):
    """(half, Q) float32 cosines and sines of q theta for the turns 0 <= theta <= pi."""
    turns = np.arange(space.n_turns // 2 + 1) * (2 * np.pi / space.n_turns)
    angle = np.outer(turns, np.arange(space.n_harmonics))
    return xp.asarray(np.cos(angle).astype(np.float32)), xp.asarray(np.sin(angle).astype(np.float32))
