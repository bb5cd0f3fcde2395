"""From accumulated sums to a map."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, chunks, cuda_kernel, fft_module, from_host, on_all_cores, to_host
from xmipp_accel.reconstruction.blob import TABLE_SIZE, blob_values
from xmipp_accel.reconstruction.geometry import VolumeGrid
from xmipp_accel.reconstruction.gridding import Gridding
from xmipp_accel.reconstruction.regularise import added_weights
from xmipp_accel.reconstruction.symmetry import apply_permutations, complete_plane

FLOOR = 1e-3  # of a shell's mean weight: what has less is damped, as in RELION
XMIPP_LEAST_WEIGHT = 1e-3
THREADS, ROWS = 256, 64  # of the CUDA kernels' blocks


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


def make_map(sums, grid: VolumeGrid, gridding: Gridding, wiener=0.0, fsc=None):
    """Map of joined sums.

    Half maps are made without `fsc` even where the full map is regularised by it: later programs sharpen and weigh
    them by their own FSC, which must be that of unfiltered maps.

    The transform is divided by its weights and brought to real space in chunks, since a padded map of a large box
    would take several times the memory of the sums.

    Parameters
    ----------
    wiener : float
        Share of a shell's mean weight that is added to its weights.
    fsc : (box // 2 + 1,) array_like, optional
        Of the half maps; if given, the map is regularised by it instead.

    Returns
    -------
    (box, box, box) float32 array on the same device
    """
    xp, added = array_module(sums), None
    if not gridding.as_xmipp or wiener or fsc is not None:
        added = _added_weights(sums, grid, wiener, fsc)
    slabs = xp.empty((grid.box,) + sums.shape[1:3], dtype=xp.complex64)
    volume, kept = xp.empty((grid.box,) * 3, dtype=xp.float32), _kept(grid, xp)

    def along_z(rows):
        shape = grid.padded, min(rows.stop, sums.shape[1]) - rows.start, sums.shape[2]
        spectrum = xp.zeros(shape, dtype=xp.complex64)
        _divide(spectrum, sums, rows.start, added, grid)
        slabs[:, rows] = xp.take(_fft(xp).ifft(spectrum, axis=0, overwrite_x=True), kept, axis=0)

    def across(planes):
        lines = _rows_to_box(slabs[planes], grid)
        volume[planes] = xp.take(_fft(xp).irfft(lines, n=grid.padded, axis=2), kept, axis=2)

    _in_chunks(along_z, xp, sums.shape[1], sums.shape[0] * sums.shape[2])
    _in_chunks(across, xp, grid.box, slabs[0].size)
    volume /= _apodisation(grid, gridding, xp)
    return volume


def _in_chunks(visit, xp, length, size):
    parts = chunks(xp, length, size)
    if xp is np:
        on_all_cores(visit, parts)
    else:
        for part in parts:
            visit(part)


def _fft(xp):
    """On the CPU for one thread, since every core has chunks of its own."""
    return fft_module(xp.empty(0), workers=1)


def _added_weights(sums, grid, wiener, fsc):
    """(added weight, least divisor) of each rounded radius, float32."""
    total, count = shell_weights(sums, grid.radius**2 + 0.5)
    means = total / np.maximum(count, 1)
    added = wiener * means if fsc is None else added_weights(means, fsc, grid.box / grid.padded)
    return added.astype(np.float32), (FLOOR * means).astype(np.float32)


def shell_weights(sums, limit):
    """See :func:`xmipp_accel.kernels.reference.divide.shell_weights`; on the host."""
    xp = array_module(sums)
    if xp is np:
        from xmipp_accel.kernels.cpu import divide as cpu  # Numba takes a while to load

        return cpu.shell_weights(sums, limit)
    out = xp.zeros((2, 2 * sums.shape[2] + 1))
    blocks = -(-sums.shape[1] // ROWS), sums.shape[0]
    arguments = sums, out, np.int32(sums.shape[2] - 1), np.float32(limit)
    cuda_kernel("divide", "shell_weights")(blocks, (THREADS,), arguments, shared_mem=out.nbytes)
    return to_host(out)


def _divide(spectrum, sums, first, added, grid):
    """Means of samples into part of an FFT's order; without `added` by Xmipp's rule."""
    xp = array_module(sums)
    least, limit = 0.0, grid.radius**2 + 0.5
    if added is None:
        nothing = np.zeros(2 * sums.shape[2] + 1, np.float32)
        added, least, limit = (nothing, nothing), XMIPP_LEAST_WEIGHT, np.inf
    extra, floor = (from_host(weights, xp) for weights in added)
    divide(spectrum, sums, first, extra, floor, least, limit)


def divide(spectrum, sums, first, added, floor, least, limit):
    """See :func:`xmipp_accel.kernels.reference.divide.divide`."""
    if array_module(sums) is np:
        from xmipp_accel.kernels.cpu import divide as cpu

        cpu.divide(spectrum, sums, first, added, floor, least, limit)
        return
    padded, rows, columns = spectrum.shape
    sizes = map(np.int32, (columns - 1, padded, rows, first))
    blocks = -(-columns // THREADS), rows, sums.shape[0]
    arguments = (spectrum, sums, added, floor, *sizes, np.float32(least), np.float32(limit))
    cuda_kernel("divide", "divide")(blocks, (THREADS,), arguments)


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


def _rows_to_box(transform, grid):
    """Inverse FFT along the centred axis 1 on the padded grid, cut to the box with the origin at ``box // 2``."""
    xp, padded, centre = array_module(transform), grid.padded, grid.centre
    spectrum = xp.zeros((len(transform), padded, transform.shape[2]), dtype=xp.complex64)
    positive, negative = min(centre, padded // 2), min(centre, (padded - 1) // 2)
    spectrum[:, : positive + 1] = transform[:, centre : centre + positive + 1]
    spectrum[:, padded - negative :] = transform[:, centre - negative : centre]
    return xp.take(_fft(xp).ifft(spectrum, axis=1, overwrite_x=True), _kept(grid, xp), axis=1)


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
