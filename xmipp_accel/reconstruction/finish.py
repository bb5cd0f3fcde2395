"""From accumulated sums to a map."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module
from xmipp_accel.reconstruction.blob import blob_apodisation, blob_values
from xmipp_accel.reconstruction.geometry import Geometry
from xmipp_accel.reconstruction.symmetry import apply_permutations, complete_plane

FLOOR = 1e-3  # of a shell's mean weight: what has less is damped, as in RELION
XMIPP_LEAST_WEIGHT = 1e-3


def finish(accumulator, geometry: Geometry, parameters, permutations):
    """Map from the sums of one half or of all particles.

    Parameters
    ----------
    accumulator : float32 array of ``geometry.accumulator_shape``
        Changed in place.
    permutations : (h, 3, 3) int64 array
        Symmetry operators still to be applied.

    Returns
    -------
    (box, box, box) float32 array on the same device
    """
    if parameters.method == "xmipp_fast":
        accumulator = _spread(accumulator, parameters)
    complete_plane(accumulator)
    accumulator = apply_permutations(accumulator, permutations)
    transform = _divide(accumulator, geometry, parameters)
    volume = _to_real_space(transform, geometry)
    return volume / _apodisation(geometry, parameters, array_module(volume))


def _radii(centre, xp):
    full = (xp.arange(2 * centre + 1) - centre).astype(xp.float32) ** 2
    half = xp.arange(centre + 1).astype(xp.float32) ** 2
    return xp.sqrt(full[:, None, None] + full[None, :, None] + half[None, None, :])


def _divide(accumulator, geometry, parameters):
    """Weighted mean of the samples, complex64 (2 c + 1, 2 c + 1, c + 1)."""
    xp = array_module(accumulator)
    weight = accumulator[..., 2]
    value = accumulator[..., 0] + xp.complex64(1j) * accumulator[..., 1]
    radii = _radii(geometry.centre, xp)
    if parameters.method != "direct" and parameters.wiener == 0:
        return value * xp.where(weight > XMIPP_LEAST_WEIGHT, 1 / xp.maximum(weight, XMIPP_LEAST_WEIGHT), 0)
    shells = xp.rint(radii).astype(xp.int32)
    count = xp.bincount(shells.ravel())
    mean = (xp.bincount(shells.ravel(), weight.ravel()) / xp.maximum(count, 1)).astype(xp.float32)[shells]
    divisor = xp.maximum(weight + parameters.wiener * mean, FLOOR * mean)
    used = (divisor > 0) & (radii**2 <= geometry.limit + 0.5)
    return value * xp.where(used, 1 / xp.where(used, divisor, 1), 0).astype(xp.float32)


def _spread(accumulator, parameters):
    """Convolve with the blob taken at whole voxels, which is what ``--fast`` does instead of spreading samples.

    As in Xmipp, the side ``kx < 0`` does not reach across the plane ``kx = 0``.
    """
    total = array_module(accumulator).zeros_like(accumulator)
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = np.sqrt((offsets**2).sum(axis=1))
    kernel = blob_values(distances, parameters.blob_radius, parameters.blob_order, parameters.blob_alpha)
    planes, columns = accumulator.shape[0], accumulator.shape[2]
    for (dz, dy, dx), factor in zip(offsets, kernel):
        if factor == 0:
            continue
        to_z, from_z = _overlap(int(dz), planes)
        to_y, from_y = _overlap(int(dy), planes)
        to_x, from_x = _overlap(int(dx), columns)
        total[to_z, to_y, to_x] += np.float32(factor) * accumulator[from_z, from_y, from_x]
    return total


def _overlap(step, size):
    """Slices (of the target, of the source) for a shift by `step` without wrap-around."""
    return slice(max(-step, 0), size - max(step, 0)), slice(max(step, 0), size - max(-step, 0))


def _to_real_space(transform, geometry):
    """Inverse FFT of the centred half transform, cut to the box; the origin moves to ``box // 2``."""
    xp, fft = array_module(transform), fft_module(transform)
    box, padded, centre = geometry.box, geometry.padded, geometry.centre
    kept = xp.asarray((np.arange(box) - box // 2) % padded)
    for axis in (0, 1):
        shape = list(transform.shape)
        shape[axis] = padded
        spectrum = xp.zeros(shape, dtype=xp.complex64)
        moved, source = xp.moveaxis(spectrum, axis, 0), xp.moveaxis(transform, axis, 0)
        positive = min(centre, padded // 2)
        negative = min(centre, (padded - 1) // 2)
        moved[: positive + 1] = source[centre : centre + positive + 1]
        if negative:
            moved[-negative:] = source[centre - negative : centre]
        transform = xp.take(fft.ifft(spectrum, axis=axis), kept, axis=axis)
    return xp.take(fft.irfft(transform, n=padded, axis=2), kept, axis=2).astype(xp.float32)


def _apodisation(geometry, parameters, xp):
    """By how much the insertion damps the map, (box, box, box) float32."""
    box, padded = geometry.box, geometry.padded
    axis = np.arange(box) - box // 2
    if parameters.method == "direct":
        line = xp.asarray(np.sinc(axis / padded) ** 2, dtype=xp.float32)
        return line[:, None, None] * line[None, :, None] * line[None, None, :]
    squares = axis.astype(np.float64) ** 2
    radii = np.sqrt(squares[:, None, None] + squares[None, :, None] + squares[None, None, :])
    # Xmipp also divides by sinc^2 and multiplies by its mean.
    sinc2 = np.sinc(radii / (2 * box)) ** 2
    blob = blob_apodisation(radii, padded, parameters.blob_radius, parameters.blob_order, parameters.blob_alpha)
    return xp.asarray(blob * sinc2 / sinc2.mean(), dtype=xp.float32)
