"""Sums over rings and over harmonics, in vectors that stay in registers.

Numba vectorises a loop over lanes, but keeps in memory what the loop around it sums, which takes three times as
long. The two innermost loops are therefore built from LLVM's vectors.
"""

from __future__ import annotations

import os
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

LANES = 64  # of a row; as many as are used, a multiple of 16, are computed
_AVX512 = "+avx512f" in (os.environ.get("NUMBA_CPU_FEATURES") or get_host_cpu_features())
WIDTH = 16 if _AVX512 else 8  # of a vector
TOGETHER = 2 if _AVX512 else 1  # vectors for which two angles' sums fit into the registers
LOWEST = np.float32(-3e38)
_FAST = ("fast",)


class _Vectors:
    """Builds instructions on vectors of `WIDTH` numbers."""

    kind = ir.VectorType(ir.FloatType(), WIDTH)

    def __init__(self, builder):
        self.builder = builder

    def variable(self, number):
        """A variable that LLVM keeps in a register, filled with a number; set where it is built, in loops too."""
        value = ir.Constant(self.kind, [float(number)] * WIDTH)
        variable = cgutils.alloca_once(self.builder, self.kind)
        self.builder.store(value, variable)
        return variable

    def constant(self, number):
        return ir.Constant(cgutils.intp_t, number)

    def at(self, first, *more):
        """An index, from parts that are numbers or indices."""
        for part in more:
            first = self.builder.add(first, self.constant(part) if isinstance(part, int) else part)
        return first

    def times(self, index, number):
        return self.builder.mul(index, self.constant(number))

    def _place(self, data, index):
        return self.builder.bitcast(self.builder.gep(data, [index]), self.kind.as_pointer())

    def load(self, data, index):
        return self.builder.load(self._place(data, index), align=4)

    def store(self, vector, data, index):
        self.builder.store(vector, self._place(data, index), align=4)

    def fill(self, number):
        """A vector of one number."""
        word = ir.IntType(32)
        vector = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), number, ir.Constant(word, 0))
        return self.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(word, WIDTH), [0] * WIDTH))

    def spread(self, data, index):
        """A vector of the number at an index."""
        return self.fill(self.builder.load(self.builder.gep(data, [index])))

    def add_product(self, total, a, b, sign=1):
        """``total += sign * a * b``."""
        product = self.builder.fmul(a, b, flags=_FAST)
        combine = self.builder.fadd if sign > 0 else self.builder.fsub
        self.builder.store(combine(self.builder.load(total), product, flags=_FAST), total)

    def larger(self, a, b):
        return self.builder.select(self.builder.fcmp_ordered(">", a, b, flags=_FAST), a, b)

    def absolute(self, a):
        return self.larger(a, self.builder.fsub(ir.Constant(self.kind, [0.0] * WIDTH), a, flags=_FAST))


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _correlate(typing_context, rows, first, second, vectors, start, count, lane, out, first_out, second_out):
    """Sums over `count` rings of ``conj(row) * vector``, for two rows and the lanes from `lane` on.

    Rows have pairs of real and imaginary parts from `first` and `second` on, `vectors` rows of lanes in pairs from
    `start` on. The sums go to rows of lanes in pairs at `first_out` and `second_out` of `out`.
    """

    def build(context, builder, signature, arguments):
        rows, first, second, vectors, start, count, lane, out, first_out, second_out = arguments
        rows, vectors, out = (_data(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 7))
        v = _Vectors(builder)
        totals = [[v.variable(0.0) for _ in range(2)] for _ in range(2)]
        with cgutils.for_range(builder, count) as loop:
            real, imaginary = (
                v.load(vectors, v.at(start, lane, v.times(loop.index, 2 * LANES), part)) for part in (0, LANES)
            )
            for (re, im), row in zip(totals, (first, second)):
                a, b = (v.spread(rows, v.at(row, v.times(loop.index, 2), part)) for part in (0, 1))
                v.add_product(re, a, real)
                v.add_product(re, b, imaginary)
                v.add_product(im, a, imaginary)
                v.add_product(im, b, real, sign=-1)
        for parts, at in zip(totals, (first_out, second_out)):
            for part, total in enumerate(parts):
                v.store(builder.load(total), out, v.at(at, lane, part * LANES))
        return context.get_dummy_value()

    index = types.intp
    return types.void(rows, index, index, vectors, index, index, index, out, index, index), build


def _best_angle(blocks):
    """Function that finds the best angle of so many vectors of lanes, from `lane` on."""

    def found(typing_context, products, start, trig, angles, pairs, lane, top):
        def build(context, builder, signature, arguments):
            _, start, _, angles, pairs, lane, _ = arguments
            products, trig, top = (_data(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 6))
            v = _Vectors(builder)
            scores, numbers = ([v.variable(value) for _ in range(blocks)] for value in (LOWEST, 0.0))
            first, last = v.at(start, lane), v.at(angles, -2)
            with cgutils.for_range(builder, builder.sdiv(v.at(angles, 1), v.constant(2))) as loop:
                even = v.times(loop.index, 2)
                t = builder.select(builder.icmp_signed("<", even, last), even, last)
                totals = _turned(v, blocks, products, first, trig, t, pairs)
                for angle, parts in enumerate(totals):
                    number = v.fill(builder.sitofp(v.at(t, angle), ir.FloatType()))
                    for score, kept, own in zip(scores, numbers, parts):
                        value = _best_of_four(v, [builder.load(part) for part in own])
                        higher = builder.fcmp_ordered(">", value, builder.load(score), flags=_FAST)
                        builder.store(builder.select(higher, value, builder.load(score)), score)
                        builder.store(builder.select(higher, number, builder.load(kept)), kept)
            for block in range(blocks):
                v.store(builder.load(scores[block]), top, v.at(lane, block * WIDTH))
                v.store(builder.load(numbers[block]), top, v.at(lane, block * WIDTH + LANES))
            return context.get_dummy_value()

        index = types.intp
        return types.void(products, index, trig, index, index, index, top), build

    return found


def _turned(v, blocks, products, first, trig, t, pairs):
    """Sums over the harmonics at the angles t and t + 1, four for each vector, as :func:`_best_of_four` takes."""
    totals = [[[v.variable(0.0) for _ in range(4)] for _ in range(blocks)] for _ in range(2)]
    turn = v.builder.mul(t, v.times(pairs, 4))
    turns = turn, v.at(turn, v.times(pairs, 4))
    with cgutils.for_range(v.builder, pairs) as loop:
        here = v.at(first, v.times(loop.index, 4 * LANES))
        # Even harmonics' real and imaginary part, and those of the odd.
        parts = [
            [v.load(products, v.at(here, part * LANES + block * WIDTH)) for part in range(4)]
            for block in range(blocks)
        ]
        for total, turn in zip(totals, turns):
            for part in range(4):
                factor = v.spread(trig, v.at(turn, v.times(loop.index, 4), part))
                for block in range(blocks):
                    v.add_product(total[block][part], factor, parts[block][part])
    return totals


def _best_of_four(v, parts):
    """Best score at psi, -psi, pi + psi and pi - psi, from cosine and sine part of even and of odd harmonics."""
    ce, se, co, so = parts
    add, subtract = v.builder.fadd, v.builder.fsub
    one = add(add(ce, co, flags=_FAST), v.absolute(add(se, so, flags=_FAST)), flags=_FAST)
    other = add(subtract(ce, co, flags=_FAST), v.absolute(subtract(se, so, flags=_FAST)), flags=_FAST)
    return v.larger(one, other)


correlate: Any = intrinsic(_correlate)
best_angle: Any = intrinsic(_best_angle(1))
best_angle_together: Any = intrinsic(_best_angle(TOGETHER))


@numba.njit(cache=True, forceinline=True)
def sum_rings(rows, first, second, vectors, first_ring, n_rings, products, lanes):
    """``sum_k conj(row[q, k]) * vectors[q, k]`` of two rows for each harmonic q and lane.

    Parameters
    ----------
    rows : float32 array
        Harmonics in the order (q, k, real | imaginary), from `first` and from `second` on.
    vectors : (Q * K * 2 * LANES,) float32 array
        In the order (q, k, real | imaginary, lane).
    first_ring : (Q,) int32 array
        First ring that holds harmonic q.
    products : (2 * Q * 2 * LANES,) float32 array
        Receives them in the order (row, q, real | imaginary, lane).
    """
    size = len(first_ring) * 2 * LANES
    for q in range(len(first_ring)):
        offset, out = 2 * (q * n_rings + first_ring[q]), q * 2 * LANES
        for lane in range(0, lanes, WIDTH):
            correlate(
                rows, first + offset, second + offset, vectors, offset * LANES, n_rings - first_ring[q],
                lane, products, out, size + out,
            )  # fmt: skip


@numba.njit(cache=True, forceinline=True)
def best_angles(products, start, trig, n_harmonics, top, lanes):
    """Best score of each lane over all in-plane angles (`top` row 0), and t of that angle (row 1).

    Parameters
    ----------
    products : float32 array
        As of :func:`sum_rings`, from `start` on.
    trig : ((n_psi / 4 + 1) * Q * 2,) float32 array
        Cosine and sine of ``q psi_t``; Q is even.
    top : (2 * LANES,) float32 array
    """
    angles, pairs, step = len(trig) // (2 * n_harmonics), n_harmonics // 2, TOGETHER * WIDTH
    for lane in range(0, lanes - step + 1, step):
        best_angle_together(products, start, trig, angles, pairs, lane, top)
    for lane in range(lanes // step * step, lanes, WIDTH):
        best_angle(products, start, trig, angles, pairs, lane, top)


@numba.njit(cache=True, fastmath=True, forceinline=True)
def angle_index(products, lane, trig, t, n_harmonics, quarter):
    """Which of the four angles of t, whose cosines and sines are `trig`, reached the best score of a lane."""
    ce = se = co = so = np.float32(0)
    for q in range(0, n_harmonics, 2):
        ce += trig[2 * q] * products[2 * LANES * q + lane]
        se += trig[2 * q + 1] * products[2 * LANES * q + LANES + lane]
        co += trig[2 * q + 2] * products[2 * LANES * (q + 1) + lane]
        so += trig[2 * q + 3] * products[2 * LANES * (q + 1) + LANES + lane]
    n_psi = 4 * quarter
    if ce + co + abs(se + so) >= ce - co + abs(se - so):
        return t if se + so >= 0 else (n_psi - t) % n_psi
    return (2 * quarter + t) % n_psi if se - so >= 0 else 2 * quarter - t
