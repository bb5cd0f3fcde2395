"""Images as angular harmonics on Fourier rings, where a rotation is a phase and all rotations cost one short DFT.

An image ``I`` of box ``N`` with its origin at ``N // 2`` has the Fourier samples

    F(k, phi) = sum_u I(u) exp(-2 pi i k (cos(phi) u_x + sin(phi) u_y) / N)

on rings of radius k (cycles per box) and their angular harmonics

    F[k, q] = 1/Phi sum_j F(k, phi_j) exp(-i q phi_j),  phi_j = 2 pi j / Phi.

For a real image ``F(k, phi + pi) = conj F(k, phi)``, so half a circle of samples and the harmonics ``0 <= q < Q``
suffice. A particle seen at in-plane angle psi is ``P(k, phi) = R(k, phi + psi)`` of its reference R, thus
``P[k, q] = R[k, q] exp(i q psi)``; mirroring the image along x conjugates every harmonic; a shift by s multiplies
the samples by ``exp(-2 pi i k (cos(phi) s_x + sin(phi) s_y) / N)``. A particle correlates with a reference as

    score(psi, s) = Re sum_q c_q exp(-i q psi) sum_k w_k conj(R[k, q]) P_s[k, q],  c_0 = 1, c_q = 2, w_k = k.

(Joyeux and Penczek 2002; Cong et al. 2003; Barnett, Rangan et al. 2017.) Functions take NumPy or CuPy arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from xmipp_accel.backend import array_module, from_host, good_fft_size, on_all_cores
from xmipp_accel.numerics.filters import fourier_resize

_BLOCK_BYTES = {"numpy": 8 << 20, "cupy": 64 << 20}  # of the Fourier kernel; each core takes a part of it
_ROWS = 4096  # of rings, for a core at a time
_CROP_MARGIN = 16  # px beyond twice the rings, for images that are cropped in Fourier space


@dataclasses.dataclass(frozen=True)
class PolarGrid:
    """Rings and angles at which images of one box are compared.

    Attributes
    ----------
    box : int
        N, px.
    n_rings : int
        K; the radii are 1..K cycles per box.
    n_angles : int
        Phi, samples on a whole circle, a multiple of 4.
    n_harmonics : int
        Q, at most Phi / 2.
    """

    box: int
    n_rings: int
    n_angles: int
    n_harmonics: int

    @property
    def radii(self) -> np.ndarray:
        """(K,) float64, cycles per box."""
        return np.arange(1, self.n_rings + 1, dtype=np.float64)

    @property
    def angles(self) -> np.ndarray:
        """(Phi / 2,) float64 radians: the half circle that is stored."""
        return np.arange(self.n_angles // 2) * (2 * np.pi / self.n_angles)

    @property
    def frequencies(self) -> np.ndarray:
        """(2, K, Phi / 2) float64: y and x component of every sample, cycles per box."""
        return self.radii[:, None] * np.stack([np.sin(self.angles), np.cos(self.angles)])[:, None, :]

    @property
    def harmonic_weights(self) -> np.ndarray:
        """(Q,) float64 c_q: 1 for q = 0, else 2, as -q is not stored."""
        weights = np.full(self.n_harmonics, 2.0)
        weights[0] = 1.0
        return weights


def polar_grid(box, n_rings, radius, max_shift=0.0) -> PolarGrid:
    """Grid for images whose content lies within a radius.

    The harmonics of ring k end where the Bessel functions ``J_q(2 pi k radius / box)`` do; shifted images reach
    further, and enough angles are sampled that this does not fold back.

    Parameters
    ----------
    box : int
    n_rings : int
        At most ``box / 2``.
    radius, max_shift : float
        Px.
    """
    reach = 2 * math.pi * n_rings / box
    argument = reach * radius
    n_harmonics = max(4, math.ceil(argument + 2 * argument ** (1 / 3)))
    n_angles = 4 * math.ceil((2 * n_harmonics + reach * max_shift) / 4)
    return PolarGrid(int(box), int(n_rings), n_angles, n_harmonics)


def soft_circle(box, radius, edge=3.0) -> np.ndarray:
    """(box, box) float32 disc about ``box // 2``; a raised cosine `edge` px wide passes 1/2 at `radius` px."""
    axis = np.arange(box) - box // 2
    distance = np.hypot(axis[:, None], axis[None, :])
    ramp = np.clip((radius - distance) / max(edge, 1e-6) + 0.5, 0.0, 1.0)
    return (0.5 - 0.5 * np.cos(np.pi * ramp)).astype(np.float32)


def mask_images(images, mask):
    """Subtract each image's mean under the mask and multiply by it.

    Parameters
    ----------
    images : (n, N, N) float32 array
    mask : (N, N) float32 array of the same module
    """
    mean = (images * mask).sum(axis=(1, 2), keepdims=True) / mask.sum()
    return (images - mean) * mask


def polar_samples(images, grid):
    """Exact Fourier samples of images on the rings of a grid, by one matrix product with the Fourier kernel.

    Parameters
    ----------
    images : (n, N, N) float32 array
    grid : PolarGrid
        Its box is N.

    Returns
    -------
    (n, K, Phi / 2) complex64 array
    """
    xp = array_module(images)
    n, box = len(images), grid.box
    pixels = xp.ascontiguousarray(images, dtype=np.float32).reshape(n, box * box)
    ky, kx = xp.asarray(grid.frequencies.reshape(2, -1))
    axis = (xp.arange(box, dtype=np.float64) - box // 2)[:, None] * (-2j * math.pi / box)
    samples = xp.empty((n, ky.size), dtype=np.complex64)

    def fill(part):
        row = xp.exp(axis * ky[None, part]).astype(np.complex64)
        column = xp.exp(axis * kx[None, part]).astype(np.complex64)
        kernel = (row[:, None, :] * column[None, :, :]).reshape(box * box, -1)
        # The images are real: a real product with the interleaved kernel is half the work.
        samples[:, part] = (pixels @ kernel.view(np.float32)).view(np.complex64)

    block = max(16, _BLOCK_BYTES[xp.__name__] // (8 * box * box))
    parts = [slice(first, min(first + block, ky.size)) for first in range(0, ky.size, block)]
    _fill_parts(fill, parts, xp)
    return samples.reshape(n, grid.n_rings, grid.n_angles // 2)


def cropped_samples(images, grid):
    """As :func:`polar_samples`, of images that are cropped in Fourier space first.

    The cost of the samples grows with the number of pixels, and the rings do not need them all.
    """
    small = min(grid.box, good_fft_size(2 * grid.n_rings + _CROP_MARGIN))
    samples = polar_samples(fourier_resize(images, small), dataclasses.replace(grid, box=small))
    samples *= np.float32((grid.box / small) ** 2)
    return samples


def images_from_samples(samples, grid):
    """Band-limited images (n, N, N) float32 with the given spectrum on the rings.

    A quadrature of the inverse transform: approximates the inverse of :func:`polar_samples` for zero means.

    Parameters
    ----------
    samples : (n, K, Phi / 2) complex64 array
    grid : PolarGrid
    """
    xp = array_module(samples)
    n, box = len(samples), grid.box
    ky, kx = xp.asarray(grid.frequencies.reshape(2, -1))
    area = xp.asarray(np.repeat(grid.radii, grid.n_angles // 2) * (4 * math.pi / grid.n_angles) / box**2)
    weighted = xp.conj(samples.reshape(n, -1) * area.astype(np.float32)).astype(np.complex64)
    axis = (xp.arange(box, dtype=np.float64) - box // 2)[:, None] * (-2j * math.pi / box)
    images = xp.zeros((n, box * box), dtype=np.float32)
    block = max(16, _BLOCK_BYTES[xp.__name__] // (8 * box * box))
    for first in range(0, ky.size, block):
        part = slice(first, min(first + block, ky.size))
        row = xp.exp(axis * ky[None, part]).astype(np.complex64)
        column = xp.exp(axis * kx[None, part]).astype(np.complex64)
        kernel = (row[:, None, :] * column[None, :, :]).reshape(box * box, -1)
        # Re(conj(z) K) is the dot product of z and conj(K) as pairs of reals.
        images += xp.ascontiguousarray(weighted[:, part]).view(np.float32) @ xp.conj(kernel).view(np.float32).T
    return images.reshape(n, box, box)


def angular_coefficients(samples, grid):
    """Harmonics of ring samples.

    Parameters
    ----------
    samples : (..., K, Phi / 2) complex64 array
    grid : PolarGrid

    Returns
    -------
    (..., K, Q) complex64 array
        ``F[k, q]``. The other half circle is the conjugate: even q take the real part, odd q the imaginary one.
    """
    xp = array_module(samples)
    even, odd = (from_host(matrix, xp) for matrix in _harmonic_kernels(grid))
    rings = samples.reshape(-1, samples.shape[-1])  # one large matrix product instead of many small ones
    result = xp.empty((len(rings), grid.n_harmonics), dtype=np.complex64)

    def fill(part):
        result[part, 0::2] = (xp.ascontiguousarray(rings[part].real) @ even).view(np.complex64)
        result[part, 1::2] = (xp.ascontiguousarray(rings[part].imag) @ odd).view(np.complex64)

    _by_rows(fill, len(rings), xp)
    return result.reshape(samples.shape[:-1] + (grid.n_harmonics,))


@functools.lru_cache(maxsize=16)
def _harmonic_kernels(grid):
    """Real matrices (Phi / 2, 2 Q_even) and (Phi / 2, 2 Q_odd), interleaved real and imaginary columns."""
    q = np.arange(grid.n_harmonics)
    kernel = np.exp(-1j * np.outer(grid.angles, q)) * (2.0 / grid.n_angles)
    even = np.ascontiguousarray(kernel[:, 0::2].astype(np.complex64)).view(np.float32)
    odd = np.ascontiguousarray((1j * kernel[:, 1::2]).astype(np.complex64)).view(np.float32)
    return even, odd


def samples_from_coefficients(coefficients, grid):
    """Ring samples (..., K, Phi / 2) of harmonics (..., K, Q), complex64: undoes :func:`angular_coefficients`."""
    xp = array_module(coefficients)
    even, odd = (from_host(matrix, xp) for matrix in _sample_kernels(grid))
    rings = coefficients.reshape(-1, grid.n_harmonics)
    samples = xp.empty((len(rings), len(grid.angles)), dtype=np.complex64)
    samples.real = _pairs(rings[:, 0::2]) @ even
    samples.imag = _pairs(rings[:, 1::2]) @ odd
    return samples.reshape(coefficients.shape[:-1] + (len(grid.angles),))


@functools.lru_cache(maxsize=16)
def _sample_kernels(grid):
    """Real matrices (2 Q_even, Phi / 2) and (2 Q_odd, Phi / 2), interleaved real and imaginary rows."""
    kernel = np.exp(1j * np.outer(np.arange(grid.n_harmonics), grid.angles)) * grid.harmonic_weights[:, None]
    # F[k, -q] = (-1)^q conj F[k, q]: even harmonics add up to a real part, odd ones to an imaginary one.
    even = np.stack([kernel.real, -kernel.imag], axis=1)[0::2].reshape(-1, len(grid.angles))
    odd = np.stack([kernel.imag, kernel.real], axis=1)[1::2].reshape(-1, len(grid.angles))
    return even.astype(np.float32), odd.astype(np.float32)


def samples_with_derivatives(coefficients, grid):
    """Ring samples and their first two derivatives by the angle, (..., K, 3, Phi / 2), of harmonics (..., K, Q).

    One product for all of them, though half of what it multiplies is zero: taking even and odd harmonics apart
    costs more on the CPU.
    """
    xp = array_module(coefficients)
    kernels = from_host(_derivative_kernels(grid), xp)
    rings = _pairs(coefficients).reshape(-1, 2 * grid.n_harmonics)
    samples = xp.empty((len(rings), kernels.shape[1]), dtype=np.float32)

    def fill(part):
        xp.matmul(rings[part], kernels, out=samples[part])

    _by_rows(fill, len(rings), xp)
    return samples.view(np.complex64).reshape(coefficients.shape[:-1] + (3, len(grid.angles)))


@functools.lru_cache(maxsize=16)
def _derivative_kernels(grid):
    """Real matrix (2 Q, 3 Phi), rows and columns with real and imaginary parts interleaved."""
    even, odd = _sample_kernels(grid)
    pairs = np.zeros((grid.n_harmonics, 2, 3, len(grid.angles), 2), dtype=np.float32)
    pairs[0::2, :, 0, :, 0] = even.reshape(-1, 2, len(grid.angles))
    pairs[1::2, :, 0, :, 1] = odd.reshape(-1, 2, len(grid.angles))
    for order in (1, 2):  # i q times a harmonic a + i b is -q b + i q a
        q = np.arange(grid.n_harmonics, dtype=np.float32)[:, None, None]
        pairs[:, 0, order], pairs[:, 1, order] = q * pairs[:, 1, order - 1], -q * pairs[:, 0, order - 1]
    return pairs.reshape(2 * grid.n_harmonics, -1)


def _by_rows(fill, count, xp):
    """Call `fill` with slices of `count` rows: on the host with parts of one size, for all cores.

    BLAS would share the rows in another way with each number of cores, and its last digits with them.
    """
    step = _ROWS if xp is np else max(1, count)
    _fill_parts(fill, [slice(first, first + step) for first in range(0, count, step)], xp)


def _fill_parts(fill, parts, xp):
    if xp is np:
        on_all_cores(fill, parts)
    else:
        for part in parts:
            fill(part)


def _pairs(values):
    """Real and imaginary parts interleaved along the last axis, which doubles."""
    return array_module(values).ascontiguousarray(values, dtype=np.complex64).view(np.float32)


def shift_phases(grid, shifts, xp=np):
    """Factors that shift an image, for its ring samples.

    Parameters
    ----------
    grid : PolarGrid
    shifts : (..., 2) float array
        (y, x) translation to apply, px.
    xp : module

    Returns
    -------
    (..., K, Phi / 2) complex64 array
    """
    ky, kx = xp.asarray(grid.frequencies[:, 0] * (-2 * math.pi / grid.box))
    shifts = xp.asarray(shifts, dtype=np.float64)[..., None]
    base = xp.exp(1j * (ky * shifts[..., 0, :] + kx * shifts[..., 1, :])).astype(np.complex64)
    phases = xp.empty(base.shape[:-1] + (grid.n_rings, base.shape[-1]), dtype=np.complex64)
    phases[..., 0, :] = base
    known = 1
    while known < grid.n_rings:  # the radii are 1..K, so the phases are powers of the first ring's
        more = min(known, grid.n_rings - known)
        last = phases[..., known - 1 : known, :]
        phases[..., known : known + more, :] = phases[..., :more, :] * last
        known += more
    return phases


def shift_samples(samples, shifts, grid):
    """Ring samples (p, K, Phi / 2) of images shifted by `shifts` (p, 2), (y, x) px."""
    return samples * shift_phases(grid, shifts, array_module(samples))


def rotate_coefficients(coefficients, psi):
    """Harmonics (..., K, Q) of references seen at in-plane angles `psi` (...), degrees; -psi turns back."""
    xp = array_module(coefficients)
    q = xp.arange(coefficients.shape[-1], dtype=np.float64)
    angle = xp.deg2rad(xp.asarray(psi, dtype=np.float64))[..., None]
    return (coefficients * xp.exp(1j * angle * q)[..., None, :]).astype(np.complex64)


def mirror_coefficients(coefficients):
    """Harmonics of the images mirrored along x."""
    return array_module(coefficients).conj(coefficients)


def ring_energy(coefficients, grid):
    """(..., K) float32 ``E[k] = sum_q c_q |F[k, q]|^2``: mean power on each ring."""
    xp = array_module(coefficients)
    weights = xp.asarray(grid.harmonic_weights.astype(np.float32))
    return ((coefficients.real**2 + coefficients.imag**2) * weights).sum(axis=-1)


def ring_weights(grid, noise_power=None):
    """(K,) float64 weights w_k of the score: the ring's length, divided by the noise power there if it is given.

    Scaled to a sum of 1.
    """
    weights = grid.radii.copy()
    if noise_power is not None:
        weights = weights / np.maximum(np.asarray(noise_power, dtype=np.float64), 1e-30)
    return weights / weights.sum()
