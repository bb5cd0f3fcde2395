"""From accumulated sums to a map."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module
from xmipp_accel.reconstruction.blob import TABLE_SIZE, blob_values
from xmipp_accel.reconstruction.geometry import VolumeGrid
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.symmetry import apply_permutations, complete_plane

FLOOR = 1e-3  # of a shell's mean weight: what has less is damped, as in RELION
XMIPP_LEAST_WEIGHT = 1e-3


def join_sides(sums, gridding: Gridding, permutations):
    """Sums that count each sample and each symmetry operator.

    Linear in the sums, so that those of the halves may be added afterwards.

    Parameters
    ----------
    sums : float32 array of ``VolumeGrid.shape``
        Changed in place.
    permutations : (h, 3, 3) int64 array
        Symmetry operators still to be applied.

    Returns
    -------
    array like `sums`
    """
    if gridding.spreads_at_the_end:
        sums = _spread(sums, gridding)
    complete_plane(sums)
    return apply_permutations(sums, permutations)


def make_map(sums, grid: VolumeGrid, gridding: Gridding, wiener=0.0):
    """Map of joined sums.

    The transform is divided by its weights and brought to real space in chunks, since a padded map of a large box
    would take several times the memory of the sums.

    Returns
    -------
    (box, box, box) float32 array on the same device
    """
    xp = array_module(sums)
    means = None if gridding.as_xmipp and wiener == 0 else _shell_means(sums)
    slabs = xp.empty((grid.box,) + sums.shape[1:3], dtype=xp.complex64)
    for rows in _chunks(xp, sums.shape[1], sums.shape[0] * sums.shape[2]):
        mean = _divide(sums[:, rows], _squares(sums, slice(None), rows), means, grid, wiener)
        slabs[:, rows] = _cut_inverse(mean, 0, grid)
    fft, kept = fft_module(sums), _kept(grid, xp)
    volume = xp.empty((grid.box,) * 3, dtype=xp.float32)
    for planes in _chunks(xp, grid.box, slabs[0].size):
        lines = _cut_inverse(slabs[planes], 1, grid)
        volume[planes] = xp.take(fft.irfft(lines, n=grid.padded, axis=2), kept, axis=2)
    volume /= _apodisation(grid, gridding, xp)
    return volume


def _chunks(xp, length, size):
    """Slices of `length` items of `size` voxels: few voxels for a processor's cache, many for a GPU."""
    step = max(1, (1 << 19 if xp is np else 1 << 25) // size)
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]


def _squares(sums, planes, rows):
    """Squared radius of the voxels of some planes and rows, float32."""
    xp = array_module(sums)
    centre = sums.shape[2] - 1
    full = (xp.arange(2 * centre + 1) - centre).astype(xp.float32) ** 2
    half = xp.arange(centre + 1).astype(xp.float32) ** 2
    return full[planes, None, None] + full[None, rows, None] + half[None, None, :]


def _shells(squares):
    xp = array_module(squares)
    return xp.rint(xp.sqrt(squares)).astype(xp.int64)


def _shell_means(sums):
    """Mean weight of each rounded radius, float32."""
    xp = array_module(sums)
    size = 2 * sums.shape[2] + 1
    total, count = xp.zeros(size), xp.zeros(size)
    for planes in _chunks(xp, sums.shape[0], sums.shape[1] * sums.shape[2]):
        shells = _shells(_squares(sums, planes, slice(None))).ravel()
        total += xp.bincount(shells, sums[planes][..., 2].ravel(), size)
        count += xp.bincount(shells, minlength=size)
    return (total / xp.maximum(count, 1)).astype(xp.float32)


def _divide(sums, squares, means, grid, wiener):
    """Weighted mean of the samples in part of a volume, complex64."""
    xp = array_module(sums)
    weight = sums[..., 2]
    if means is None:
        divisor = xp.maximum(weight, XMIPP_LEAST_WEIGHT)
        used = weight > XMIPP_LEAST_WEIGHT
    else:
        mean = means[_shells(squares)]
        divisor = xp.maximum(weight + wiener * mean, FLOOR * mean)
        used = (divisor > 0) & (squares <= grid.radius**2 + 0.5)
        divisor = divisor + ~used
    return (sums[..., 0] + xp.complex64(1j) * sums[..., 1]) * (used / divisor)


def _spread(accumulator, gridding):
    """Convolve with the blob taken at whole voxels, which is what ``--fast`` does instead of spreading samples.

    As in Xmipp, the side ``kx < 0`` does not reach across the plane ``kx = 0``.
    """
    total = array_module(accumulator).zeros_like(accumulator)
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    distances = np.sqrt((offsets**2).sum(axis=1))
    kernel = blob_values(distances, gridding.radius, gridding.order, gridding.alpha)
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


def _kept(grid, xp):
    """Where the box lies along an axis of the padded map, whose origin is sample 0."""
    return xp.asarray((np.arange(grid.box) - grid.box // 2) % grid.padded)


def _cut_inverse(transform, axis, grid):
    """Inverse FFT along a centred `axis` on the padded grid, cut to the box with the origin at ``box // 2``."""
    xp, fft = array_module(transform), fft_module(transform)
    padded, centre = grid.padded, grid.centre
    shape = list(transform.shape)
    shape[axis] = padded
    spectrum = xp.zeros(shape, dtype=xp.complex64)
    moved, source = xp.moveaxis(spectrum, axis, 0), xp.moveaxis(transform, axis, 0)
    positive, negative = min(centre, padded // 2), min(centre, (padded - 1) // 2)
    moved[: positive + 1] = source[centre : centre + positive + 1]
    moved[padded - negative :] = source[centre - negative : centre]
    return xp.take(fft.ifft(spectrum, axis=axis, overwrite_x=True), _kept(grid, xp), axis=axis)


def _apodisation(grid, gridding, xp):
    """By how much the insertion damps the map, (box, box, box) float32."""
    axis = np.arange(grid.box) - grid.box // 2
    if gridding.is_separable:
        line = xp.asarray(gridding.apodisation(axis, grid.padded), dtype=xp.float32)
        return line[:, None, None] * line[None, :, None] * line[None, None, :]
    squares = xp.asarray(axis.astype(np.float32) ** 2)
    radii = xp.sqrt(squares[:, None, None] + squares[None, :, None] + squares[None, None, :])
    farthest = np.sqrt(3) * (grid.box // 2)
    table = gridding.apodisation(np.linspace(0, farthest, TABLE_SIZE), grid.padded)
    entries = xp.rint(radii * ((TABLE_SIZE - 1) / farthest)).astype(xp.int32)
    apodisation = xp.asarray(table, dtype=xp.float32)[entries]
    if gridding.as_xmipp:
        sinc2 = xp.sinc(radii / (2 * grid.box)) ** 2
        apodisation *= sinc2 / sinc2.mean()
    return apodisation
