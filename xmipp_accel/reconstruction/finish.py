"""From accumulated sums to a map."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module
from xmipp_accel.reconstruction.blob import TABLE_SIZE, blob_apodisation, blob_values
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


def _divide(accumulator, geometry, parameters):
    """Weighted mean of the samples, complex64 (2 c + 1, 2 c + 1, c + 1)."""
    xp = array_module(accumulator)
    transform = xp.empty(accumulator.shape[:3], dtype=xp.complex64)
    like_xmipp = parameters.method != "direct" and parameters.wiener == 0
    means = None if like_xmipp else _shell_means(accumulator)
    for planes in _chunks(accumulator):
        part = accumulator[planes]
        weight = part[..., 2]
        if like_xmipp:
            divisor = xp.maximum(weight, XMIPP_LEAST_WEIGHT)
            used = weight > XMIPP_LEAST_WEIGHT
        else:
            squares = _squares(accumulator, planes)
            mean = means[_shells(squares)]
            divisor = xp.maximum(weight + parameters.wiener * mean, FLOOR * mean)
            used = (divisor > 0) & (squares <= geometry.limit + 0.5)
            divisor = divisor + ~used
        gain = used / divisor
        transform.real[planes] = part[..., 0] * gain
        transform.imag[planes] = part[..., 1] * gain
    return transform


def _chunks(accumulator):
    """Slices of planes small enough to stay in a processor's cache, and few enough for a GPU."""
    plane = accumulator[0].size // 4
    budget = 1 << 17 if array_module(accumulator) is np else 1 << 24
    step = max(1, budget // plane)
    return [slice(first, first + step) for first in range(0, len(accumulator), step)]


def _squares(accumulator, planes):
    """Squared radius of the voxels of some planes, float32."""
    xp = array_module(accumulator)
    centre = accumulator.shape[2] - 1
    full = (xp.arange(2 * centre + 1) - centre).astype(xp.float32) ** 2
    half = xp.arange(centre + 1).astype(xp.float32) ** 2
    return full[planes, None, None] + full[None, :, None] + half[None, None, :]


def _shells(squares):
    xp = array_module(squares)
    return xp.rint(xp.sqrt(squares)).astype(xp.int64)


def _shell_means(accumulator):
    """Mean weight of each rounded radius, float32."""
    xp = array_module(accumulator)
    size = 2 * accumulator.shape[2] + 1
    total, count = xp.zeros(size), xp.zeros(size)
    for planes in _chunks(accumulator):
        shells = _shells(_squares(accumulator, planes)).ravel()
        total += xp.bincount(shells, accumulator[planes][..., 2].ravel(), size)
        count += xp.bincount(shells, minlength=size)
    return (total / xp.maximum(count, 1)).astype(xp.float32)


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
        total[to_z, to_y, to_x] += float(factor) * accumulator[from_z, from_y, from_x]
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
        transform = xp.take(fft.ifft(spectrum, axis=axis, overwrite_x=True), kept, axis=axis)
    return xp.take(fft.irfft(transform, n=padded, axis=2), kept, axis=2).astype(xp.float32)


def _apodisation(geometry, parameters, xp):
    """By how much the insertion damps the map, (box, box, box) float32."""
    box, padded = geometry.box, geometry.padded
    axis = np.arange(box) - box // 2
    if parameters.method == "direct":
        line = xp.asarray(np.sinc(axis / padded) ** 2, dtype=xp.float32)
        return line[:, None, None] * line[None, :, None] * line[None, None, :]
    squares = xp.asarray(axis.astype(np.float32) ** 2)
    radii = xp.sqrt(squares[:, None, None] + squares[None, :, None] + squares[None, None, :])
    # Xmipp also divides by sinc^2 and multiplies by its mean.
    sinc2 = xp.sinc(radii / (2 * box)) ** 2
    farthest = np.sqrt(3) * (box // 2)
    table = blob_apodisation(
        np.linspace(0, farthest, TABLE_SIZE),
        padded,
        parameters.blob_radius,
        parameters.blob_order,
        parameters.blob_alpha,
    )
    entries = xp.rint(radii * ((TABLE_SIZE - 1) / farthest)).astype(xp.int32)
    return xp.asarray(table, dtype=xp.float32)[entries] * sinc2 / sinc2.mean()
