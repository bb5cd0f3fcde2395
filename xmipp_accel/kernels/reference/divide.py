"""Division of a Fourier volume's sums by their weights, in float64 NumPy: the oracle of the other twins.

Sums are those of :mod:`xmipp_accel.kernels.reference.insert`, all planes of them.
"""

from __future__ import annotations

import numpy as np


def shell_weights(sums, limit):
    """Weights by rounded distance from the origin, of voxels of squared distance up to `limit`.

    Returns
    -------
    (2, 2 c + 3) float64 array
        Total weight and number of voxels.
    """
    shells, squares = _shells(sums, slice(None))
    size, inside = 2 * sums.shape[2] + 1, squares <= limit
    weights = np.where(inside, sums[..., 2], 0.0).astype(np.float64)
    return np.stack([np.bincount(shells.ravel(), part.ravel(), size) for part in (weights, inside)])


def divide(spectrum, sums, first, added, floor, least, limit):
    """Put means of samples into an FFT's order along z.

    Parameters
    ----------
    spectrum : (p, rows, c + 1) complex array
        Zero before; what lies beyond its edge `p` is left out.
    first : int
        Row of the volume that is row 0 of `spectrum`.
    added, floor : (2 c + 3,) arrays
        By shell: the divisor is the weight plus `added`, or `floor` where that is less.
    least : float
        Where the divisor is not above it, the mean is zero,
    limit : float
        and so it is beyond this squared distance from the origin.
    """
    rows = slice(first, first + spectrum.shape[1])
    shells, squares = _shells(sums, rows)
    divisor = np.maximum(sums[:, rows, :, 2].astype(np.float64) + added[shells], floor[shells])
    used = (divisor > least) & (squares <= limit)
    value = sums[:, rows, :, 0] + 1j * sums[:, rows, :, 1].astype(np.float64)
    mean = np.where(used, value / np.where(used, divisor, 1.0), 0.0)
    centre, padded = sums.shape[1] // 2, len(spectrum)
    for plane, kz in enumerate(range(-centre, centre + 1)):
        if -((padded - 1) // 2) <= kz <= padded // 2:
            spectrum[kz % padded] = mean[plane]


def _shells(sums, rows):
    centre = sums.shape[1] // 2
    full, half = (np.arange(2 * centre + 1) - centre) ** 2, np.arange(centre + 1) ** 2
    squares = full[:, None, None] + full[None, rows, None] + half[None, None, :]
    return np.rint(np.sqrt(squares)).astype(np.int64), squares
