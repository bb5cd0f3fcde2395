"""Least-squares maps by conjugate gradients.

The map x minimises ``sum_j w_j |F_j - (A x)_j|^2 + x* L x`` over the samples j of all images, where ``(A x)_j`` is
the transform of x at the sample's frequency k_j, so that ``(A* W A + L) x = A* W F``. The right side brings the
samples to the voxels of the map. ``A* W A`` depends on the difference of two voxels alone: it is the convolution
with ``h(r) = sum_j w_j exp(2 pi i k_j r)``, applied by FFT in twice the box without looking at a sample again
(Fessler et al., IEEE Trans. Signal Process. 53 (2005), 3393; for projections Wang, Shkolnisky and Singer,
arXiv:1307.5824). L is a filter.

Both sums over scattered frequencies are inverse FFTs of a grid onto which the samples were spread with a blob,
divided by the blob's transform: the values on the accumulator's grid, the weights on one twice as fine, since h is
wanted in twice the box. Nothing is divided by weights, which is what limits direct maps.
"""

from __future__ import annotations

import math

import numpy as np

from xmipp_accel.backend import array_module, chunks, fft_module, good_fft_size, to_host
from xmipp_accel.numerics.fsc import shell_numbers
from xmipp_accel.reconstruction.blob import blob_apodisation

BLOB = 1.9, 0, 8.5  # radius, order, alpha: little aliasing within half of the period
FLOOR = 0.5  # of a shell's mean eigenvalue, in the preconditioner
STAGNATION = 1e-8  # of what the objective fell by so far


def weights_shape(radius: float) -> tuple[int, int, int]:
    """Shape of the sums of weights for samples up to `radius` voxels of the values' grid."""
    centre = math.ceil(2 * radius - 1e-6 + BLOB[0])
    return (2 * centre + 1, 2 * centre + 1, centre + 1)


def adjoint_image(value_sums, box: int, period: int):
    """Samples brought to the voxels, ``A* W F``.

    Parameters
    ----------
    value_sums : (2 c + 1, 2 c + 1, c + 1, 4) float32 array
        Records spread with `BLOB`, opposite sides and symmetry joined.
    box : int
        Edge of the map, px.
    period : int
        Voxels of the sums in a cycle/px, even and at least twice the box.

    Returns
    -------
    (box, box, box) float32 array, the origin at ``box // 2``
    """
    values = value_sums.view(array_module(value_sums).complex64)[..., 0]
    return _to_voxels(values, box, period)


def toeplitz_spectrum(weight_sums, box: int, period: int):
    """Spectrum of the convolution ``A* W A``.

    The sums take 128 n^3 bytes for a box of n px, their transform 100 n^3 for a while, the spectrum 16 n^3.

    Parameters
    ----------
    weight_sums : float32 array of :func:`weights_shape`
        Weights spread with `BLOB` at twice the positions of the values, opposite sides and symmetry joined.
    box, period : int
        As for :func:`adjoint_image`; the grid of the weights has twice that period.

    Returns
    -------
    (m, m, m // 2 + 1) float32 array
        At the frequencies of an ``rfftn`` of edge m, the first good FFT size from twice the box on.
    """
    size = good_fft_size(2 * box)
    kernel = _to_voxels(weight_sums, size, 2 * period)
    fft = fft_module(kernel)
    # An even kernel has a real spectrum.
    return array_module(kernel).ascontiguousarray(fft.rfftn(fft.ifftshift(kernel), overwrite_x=True).real)


def add_prior(spectrum, box: int, band: float, fractions):
    """Add the filter L, given by shell as fractions of the mean of ``A* W A`` there; in place.

    Parameters
    ----------
    spectrum : (m, m, m // 2 + 1) float32 array
        Of :func:`toeplitz_spectrum`.
    box : int
        Edge of the map, px.
    band : float
        Radius up to which there are samples, in steps of ``1 / box`` cycles/px. What lies beyond gets the prior
        of the last whole shell within.
    fractions : float or (s,) array_like
        Of shells 0, 1, ... of the map, the last one also for those beyond. The reciprocal of a signal-to-noise
        ratio makes a Wiener filter; one number damps alike what few samples support.
    """
    xp = array_module(spectrum)
    size = spectrum.shape[0]
    fractions = np.atleast_1d(np.asarray(fractions, dtype=np.float64))
    means = _shell_means(_eigenvalues(spectrum, box), shell_numbers(box, 3, xp))
    radii = np.minimum(np.arange(size) * (box / size), max(band - 1, 0))
    prior = np.interp(radii, np.arange(len(fractions)), fractions) * np.interp(radii, np.arange(len(means)), means)
    spectrum += xp.asarray(prior, dtype=xp.float32)[shell_numbers(size, 3, xp)]


def solve(right, spectrum, band: float, iterations: int, support=None):
    """Map by preconditioned conjugate gradients.

    An iteration takes ``70 n^3 log2(2 n)`` operations in the convolution and a fifth of that in the
    preconditioner, and moves about 200 n^3 bytes. The memory is 64 n^3 bytes beside the arguments while the
    preconditioner is made, less afterwards. Arrays are float32, scalar products float64.

    Parameters
    ----------
    right : (n, n, n) float32 array
        Of :func:`adjoint_image`.
    spectrum : (m, m, m // 2 + 1) float32 array
        Of :func:`toeplitz_spectrum`, with its prior.
    band : float
        As for :func:`add_prior`; the map has nothing beyond.
    iterations : int
        At most; fewer where they no longer lower the objective.
    support : (n, n, n) float32 array, optional
        The map is this mask times what is sought. Fills gaps between few views.

    Returns
    -------
    map : (n, n, n) float32 array
    residuals : list of float
        ``|A* W F - (A* W A + L) x| / |A* W F|`` after each iteration.
    """
    xp = array_module(right)
    inverse, within = _preconditioner(spectrum, right.shape[0], band)
    residual = _masked(right, support)
    found, direction = xp.zeros_like(right), xp.zeros_like(right)
    first, previous, gained, residuals = _dot(residual, residual), 1.0, 0.0, []
    for _ in range(iterations):
        ahead = _masked(_filter(residual, inverse), support)
        slope = _dot(residual, ahead)
        direction = ahead + xp.float32(slope / previous) * direction
        image = _masked(_convolve(_masked(direction, support), spectrum), support)
        bend = _dot(direction, image)
        if not bend > 0:
            break
        found += xp.float32(slope / bend) * direction
        residual = residual - xp.float32(slope / bend) * image
        previous = slope
        residuals.append((_dot(residual, residual) / first) ** 0.5)
        gained += slope * slope / bend
        if slope * slope / bend < STAGNATION * gained:
            break
    return _filter(_masked(found, support), within), residuals


def _masked(x, support):
    return x if support is None else x * support


def _eigenvalues(spectrum, box):
    """Of the circulant matrix nearest to the convolution in a box (T. Chan, SIAM J. Sci. Stat. Comput. 9, 766).

    They are means of the convolution over the waves of the box, so never below its smallest eigenvalue.

    Returns
    -------
    (box, box, box // 2 + 1) float32 array
    """
    xp, fft = array_module(spectrum), fft_module(spectrum)
    kernel = fft.irfftn(spectrum, s=(spectrum.shape[0],) * 3)
    share = xp.arange(box, dtype=xp.float32) / box
    for axis in range(3):
        lines = xp.moveaxis(kernel, axis, -1)
        kernel = xp.moveaxis((1 - share) * lines[..., :box] + share * lines[..., -box:], -1, axis)
    return fft.rfftn(kernel).real


def _preconditioner(spectrum, box, band):
    """Inverse of the circulant matrix, and the band, as factors of an ``rfftn`` of edge `box`."""
    xp = array_module(spectrum)
    eigenvalues = _eigenvalues(spectrum, box)
    shells = shell_numbers(box, 3, xp)
    # Beyond the band the matrix is nearly singular, and steps must not grow with its inverse.
    least = xp.asarray(FLOOR * _shell_means(eigenvalues, shells), dtype=xp.float32)
    least = least[xp.minimum(shells, max(int(band) - 1, 0))]
    return 1 / xp.maximum(eigenvalues, least), shells <= band


def _dot(a, b):
    return float((a * b).sum(dtype=np.float64))


def _convolve(x, spectrum):
    """Product of a cube with a convolution in twice its edge; the zeros beyond the cube are not transformed."""
    xp, fft = array_module(x), fft_module(x)
    edge, size = x.shape[0], spectrum.shape[0]
    lines = fft.fft(fft.rfft(x, n=size, axis=2), n=size, axis=1)
    for rows in chunks(xp, size, size * lines.shape[2]):
        columns = fft.fft(lines[:, rows], n=size, axis=0)
        columns *= spectrum[:, rows]
        lines[:, rows] = fft.ifft(columns, axis=0, overwrite_x=True)[:edge]
    lines = fft.ifft(lines, axis=1, overwrite_x=True)[:, :edge]
    return xp.ascontiguousarray(fft.irfft(lines, n=size, axis=2)[..., :edge])


def _filter(x, factors):
    fft = fft_module(x)
    return fft.irfftn(fft.rfftn(x) * factors, s=x.shape)


def _to_voxels(sums, size, period):
    """Cube of `size` px: the deconvolved inverse transform of half a grid, without a factor."""
    xp, fft = array_module(sums), fft_module(sums)
    centre = sums.shape[2] - 1
    lines = xp.empty((size, size, centre + 1), dtype=xp.complex64)
    for columns in chunks(xp, centre + 1, period * size):
        lines[..., columns] = _inverse(_inverse(sums[..., columns], 0, size, period), 1, size, period)
    axis = xp.arange(size) - size // 2
    across = axis[:, None] ** 2 + axis[None, :] ** 2
    # Every squared distance that there is has its own entry.
    table = blob_apodisation(np.sqrt(np.arange(3 * (size // 2) ** 2 + 1)), period, *BLOB)
    table = xp.asarray(table, dtype=xp.float32)
    volume = xp.empty((size,) * 3, dtype=xp.float32)
    for planes in chunks(xp, size, period * size):
        half = xp.zeros((*lines[planes].shape[:2], period // 2 + 1), dtype=xp.complex64)
        stored = min(centre, period // 2) + 1
        half[..., :stored] = lines[planes, :, :stored]
        # From half a cycle/px on, a sample is also the mate of one within.
        for kx in range(period // 2, centre + 1):
            half[..., period - kx] += lines[planes, :, kx].conj()
        values = xp.take(fft.irfft(half, n=period, axis=2, norm="forward"), axis % period, axis=2)
        volume[planes] = values / table[axis[planes, None, None] ** 2 + across]
    return volume


def _inverse(sums, axis, size, period):
    """Inverse FFT along a centred `axis`, without a factor, cut to `size` px with the origin at ``size // 2``."""
    xp, fft = array_module(sums), fft_module(sums)
    centre = sums.shape[axis] // 2
    shape = list(sums.shape)
    shape[axis] = period
    spectrum = xp.zeros(shape, dtype=xp.complex64)
    folded, source = xp.moveaxis(spectrum, axis, 0), xp.moveaxis(sums, axis, 0)
    folded[: centre + 1] = source[centre:]
    folded[period - centre :] += source[:centre]
    lines = fft.ifft(spectrum, axis=axis, overwrite_x=True, norm="forward")
    return xp.take(lines, (xp.arange(size) - size // 2) % period, axis=axis)


def _shell_means(spectrum, shells):
    """Mean of a half spectrum in each shell, float64 on the host."""
    xp = array_module(spectrum)
    shells = shells.ravel()
    return to_host(xp.bincount(shells, spectrum.ravel()) / xp.maximum(xp.bincount(shells), 1))
