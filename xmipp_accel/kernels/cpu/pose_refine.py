"""Particles in given poses, and the refinement of these, on the CPU, one pair after the other on each core.

Whatever belongs to a pair stays in the cache from its samples to its score. Angles or harmonics lie along the
vector lanes; those of even and of odd order, cosine and sine parts are summed apart, as a real image's samples on
opposite sides of a ring are conjugates.
"""

from __future__ import annotations

import math

import numba
import numpy as np

LANES = 96  # a constant, or the compiler cannot tell the rows of one array apart and does not vectorise
_ROWS = 16  # of a matrix that are added at once, so that the sums are loaded and stored less often
_PAIRS = 16  # that one thread takes at a time


@numba.njit(cache=True)
def lanes_of(columns):
    """How many columns each tile holds: a multiple of 16, and about as many in each."""
    tiles = -(-columns // LANES)
    return 16 * -(-columns // (16 * tiles))


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _multiply(values, rows, matrix, height, lanes, columns, sums):
    """First `columns` of ``values @ matrix`` from the first `rows`; the matrix (tiles, height, LANES) is flat."""
    sums[:columns] = 0
    for start in range(0, columns, lanes):
        out = sums[start : min(start + lanes, columns)]
        for row in range(0, rows, _ROWS):
            m, v = matrix[(start // lanes * height + row) * LANES :], values[row : row + _ROWS]
            v0, v1, v2, v3, v4, v5, v6, v7 = v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]
            v8, v9, v10, v11, v12, v13, v14, v15 = v[8], v[9], v[10], v[11], v[12], v[13], v[14], v[15]
            for i in range(len(out)):
                one = v0 * m[i] + v1 * m[i + LANES] + v2 * m[i + 2 * LANES] + v3 * m[i + 3 * LANES]
                two = v4 * m[i + 4 * LANES] + v5 * m[i + 5 * LANES] + v6 * m[i + 6 * LANES] + v7 * m[i + 7 * LANES]
                three = v8 * m[i + 8 * LANES] + v9 * m[i + 9 * LANES] + v10 * m[i + 10 * LANES]
                four = v11 * m[i + 11 * LANES] + v12 * m[i + 12 * LANES] + v13 * m[i + 13 * LANES]
                five = v14 * m[i + 14 * LANES] + v15 * m[i + 15 * LANES]
                out[i] += (one + two) + (three + four) + five


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _move(samples, waves, shift_y, shift_x, base, phase, moved):
    """Samples (K, P) of a particle shifted, into `moved` (2, K, W)."""
    n_rings, n_angles = samples.shape
    for j in range(n_angles):
        angle = np.float32(waves[0, j] * shift_y + waves[1, j] * shift_x)
        base[0, j] = phase[0, j] = math.cos(angle)
        base[1, j] = phase[1, j] = math.sin(angle)
    for k in range(n_rings):
        source, real, imaginary = samples[k], moved[0, k], moved[1, k]
        for j in range(n_angles):
            x, y, c, s = source[j].real, source[j].imag, phase[0, j], phase[1, j]
            real[j] = x * c - y * s
            imaginary[j] = x * s + y * c
            phase[0, j] = c * base[0, j] - s * base[1, j]
            phase[1, j] = c * base[1, j] + s * base[0, j]


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _powers(theta, turn):
    """``exp(i q theta)``, into `turn` (even | odd q, H)."""
    factor, power = complex(math.cos(theta), math.sin(theta)), complex(1.0, 0.0)
    for q in range(2 * turn.shape[1]):
        turn[q % 2, q // 2] = power
        power *= factor


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _product(template, sign, present, turn, synthesis, lanes, values, moved, product):
    """Moved samples times the conjugate of the turned template's, into `product` (2, K, W)."""
    width = product.shape[2]
    for parity in range(2):
        for k in range(len(present)):
            source, turns = template[parity, k], turn[parity]
            for i in range(present[k]):
                x, y, c, s = source[i].real, sign * source[i].imag, turns[i].real, turns[i].imag
                values[2 * i] = x * c + y * s
                values[2 * i + 1] = y * c - x * s
            _multiply(values, 2 * present[k], synthesis[parity], len(values), lanes, width, product[parity, k])
    for k in range(len(present)):
        first, second, real, imaginary = product[0, k], product[1, k], moved[0, k], moved[1, k]
        for j in range(width):
            x, y, a, b = real[j], imaginary[j], first[j], second[j]
            first[j] = x * a + y * b
            second[j] = y * a - x * b


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _spectrum(template, sign, present, turn, analysis, lanes, weights, values, moved, spectrum):
    """Harmonics of the moved samples times the conjugate of the turned template's, summed over rings."""
    width = moved.shape[2]
    for parity in range(2):
        first, second = spectrum[0, parity], spectrum[1, parity]
        first[:] = 0
        second[:] = 0
        for k in range(len(present)):
            _multiply(moved[parity, k], width, analysis[parity], width, lanes, 2 * present[k], values)
            source = template[parity, k]
            for i in range(present[k]):
                x, y, a, b = values[2 * i], values[2 * i + 1], source[i].real, sign * source[i].imag
                first[i] += x * a + y * b
                second[i] += y * a - x * b
        for i in range(len(first)):
            x, y, c, s = first[i], second[i], turn[parity, i].real, turn[parity, i].imag
            first[i] = weights[parity, i] * (x * c - y * s)
            second[i] = weights[parity, i] * (x * s + y * c)


@numba.njit(cache=True, fastmath=True, forceinline=True)
def _scores(first, second, waves, scores):
    """Scores of the middle and, on both sides of it, of the moves that `waves` (n, 2, ...) hold.

    ``Re sum (first + i second) exp(i a)``: the cosine part is the same at ``a`` and ``-a``, the sine part not.
    """
    middle = len(scores) // 2
    for move in range(len(waves)):
        cosine, sine = waves[move, 0], waves[move, 1]
        even = odd = np.float32(0)
        for i in range(len(first)):
            even += first[i] * cosine[i]
            odd += second[i] * sine[i]
        scores[middle + move], scores[middle - move] = even - odd, even + odd


@numba.njit(cache=True)
def _peak(scores, middle, stride, count):
    """Place and height of the maximum of a line of scores, by a parabola through the three at the middle."""
    middle = min(max(middle, 1), count - 2)
    left, peak, right = scores[(middle - 1) * stride], scores[middle * stride], scores[(middle + 1) * stride]
    bend = min(left - 2 * peak + right, np.float32(-1e-6))
    move = min(max(np.float32(0.5) * (left - right) / bend, np.float32(-1)), np.float32(1))
    return middle + move, peak - np.float32(0.25) * (left - right) * move


@numba.njit(parallel=True, cache=True, fastmath=True)
def refine_pairs(
    samples, rows, templates, present, labels, mirrored, waves, synthesis, analysis, weights, planes, turns, steps,
    theta, shift, score,
):  # fmt: skip
    """Refine poses of pairs of a particle and a class as :mod:`xmipp_accel.kernels.reference.pose_refine` does.

    H stands for the even or the odd ones of the Q harmonics, and W for the P angles: multiples of 8 and of 16, of
    which the last ones are zero. Columns of matrices lie in tiles of LANES, of which the first :func:`lanes_of`
    are used.

    Parameters
    ----------
    samples : (m, K, P) complex64 array
    rows, labels, mirrored : (p,) arrays
        Particle and class of each pair, and whether the template is mirrored.
    templates : (C, 2, K, H) complex64 array
        Even and odd harmonics.
    present : (K,) int64 array
        How many of the even and of the odd harmonics of a ring take part; multiples of 8.
    waves : (2, P) float32 array
        Phase of the first ring for a shift of 1 px along y and x.
    synthesis : (2, tiles * 2 H * LANES) float32 array
        Samples of the real and the imaginary part of each harmonic, row by row.
    analysis : (2, tiles * W * LANES) float32 array
        Real and imaginary part of the harmonics of each sample, likewise.
    weights : (2, H) float32 array
        Of the harmonics in the score.
    planes : (rounds, 13, 2, K * W) float32 array
        Cosine and sine of the moves from the middle of the plane of 5 x 5 shifts on, in their order.
    turns : (rounds, 7, 2, 2 * H) float32 array
        Cosine and sine of the moves from the middle of the line of 13 turns on, even harmonics first.
    steps : (4,) float tuple
        Between shifts (px) and between turns (radians) of the first round, the divisor of both for each further
        round, and the largest shift, px.
    theta, shift, score : (p,), (p, 2) and (p,) float32 arrays
        Poses, which are replaced by refined ones, and what receives their scores.
    """
    n_rings, half = len(present), weights.shape[1]
    width = planes.shape[3] // n_rings
    angles, harmonics = lanes_of(width), lanes_of(2 * half)
    for job in numba.prange((len(rows) + _PAIRS - 1) // _PAIRS):
        base, phase = np.zeros((2, width), np.float32), np.zeros((2, width), np.float32)
        moved, product = np.zeros((2, n_rings, width), np.float32), np.empty((2, n_rings, width), np.float32)
        turn, spectrum = np.empty((2, half), np.complex64), np.empty((2, 2, half), np.float32)
        values = np.empty(2 * half, np.float32)
        plane, line = np.empty(25, np.float32), np.empty(13, np.float32)
        for pair in range(job * _PAIRS, min((job + 1) * _PAIRS, len(rows))):
            template, sign = templates[labels[pair]], np.float32(-1 if mirrored[pair] else 1)
            step, turn_step, divisor, largest = steps
            _move(samples[rows[pair]], waves, shift[pair, 0], shift[pair, 1], base, phase, moved)
            for number in range(len(planes)):
                _powers(float(theta[pair]), turn)
                _product(template, sign, present, turn, synthesis, angles, values, moved, product)
                _scores(product[0].reshape(-1), product[1].reshape(-1), planes[number], plane)
                place = plane.argmax()
                y, _ = _peak(plane[place % 5 :], place // 5, 5, 5)
                x, _ = _peak(plane[place // 5 * 5 :], place % 5, 1, 5)
                y, x = shift[pair, 0] + (y - 2) * step, shift[pair, 1] + (x - 2) * step
                scale = min(largest / max(math.sqrt(y * y + x * x), 1e-6), 1.0)
                shift[pair, 0], shift[pair, 1] = y * scale, x * scale
                _move(samples[rows[pair]], waves, shift[pair, 0], shift[pair, 1], base, phase, moved)
                _spectrum(template, sign, present, turn, analysis, harmonics, weights, values, moved, spectrum)
                _scores(spectrum[0].reshape(-1), spectrum[1].reshape(-1), turns[number], line)
                at, score[pair] = _peak(line, line.argmax(), 1, 13)
                theta[pair] += (at - 6) * turn_step
                step, turn_step = step / divisor, turn_step / divisor


@numba.njit(parallel=True, cache=True, fastmath=True)
def align_pairs(samples, rows, mirrored, theta, shift, waves, analysis, aligned):
    """Harmonics of shifted, turned and then mirrored particles; arguments are those of :func:`refine_pairs`.

    Parameters
    ----------
    samples : (m, K, P) complex64 array
    rows, mirrored, theta, shift : (p,), (p,), (p,) and (p, 2) arrays
    waves, analysis : float32 arrays
    aligned : (p, K, Q) complex64 array
        Receives them.
    """
    n_rings, n_harmonics = aligned.shape[1:]
    half, width = 8 * ((n_harmonics + 15) // 16), 16 * ((samples.shape[2] + 15) // 16)
    lanes = lanes_of(2 * half)
    for job in numba.prange((len(rows) + _PAIRS - 1) // _PAIRS):
        base, phase = np.zeros((2, width), np.float32), np.zeros((2, width), np.float32)
        moved, turn = np.zeros((2, n_rings, width), np.float32), np.empty((2, half), np.complex64)
        values = np.empty(2 * half, np.float32)
        for pair in range(job * _PAIRS, min((job + 1) * _PAIRS, len(rows))):
            _move(samples[rows[pair]], waves, shift[pair, 0], shift[pair, 1], base, phase, moved)
            _powers(float(theta[pair]), turn)
            sign = np.float32(-1 if mirrored[pair] else 1)
            for parity in range(2):
                for k in range(n_rings):
                    _multiply(moved[parity, k], width, analysis[parity], width, lanes, 2 * half, values)
                    result, turns = aligned[pair, k], turn[parity]
                    for i in range((n_harmonics - parity + 1) // 2):
                        x, y, c, s = values[2 * i], values[2 * i + 1], turns[i].real, turns[i].imag
                        result[2 * i + parity] = complex(x * c - y * s, sign * (x * s + y * c))
