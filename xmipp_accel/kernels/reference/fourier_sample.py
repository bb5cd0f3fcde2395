"""Float64 oracle of :mod:`xmipp_accel.kernels.cpu.fourier_sample`."""

from __future__ import annotations

import numpy as np


def fourier_sample(volume, points):
    """Discrete-space Fourier transform of a volume at arbitrary frequencies, by its definition.

    Parameters
    ----------
    volume : (n, n, n) array
        Its origin is at ``n // 2``; axes z, y, x.
    points : (m, 3) array
        Frequencies (x, y, z), cycles per box.

    Returns
    -------
    (m,) complex128 array
    """
    n = len(volume)
    axis = np.arange(n) - n // 2
    x, y, z = (np.exp(-2j * np.pi / n * np.outer(component, axis)) for component in np.asarray(points).T)
    return np.einsum("zyx,mz,my,mx->m", np.asarray(volume, dtype=np.float64), z, y, x, optimize=True)
