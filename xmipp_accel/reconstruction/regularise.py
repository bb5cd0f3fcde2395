"""Wiener regularisation: what is added to the weights before sums are divided by them."""

from __future__ import annotations

import numpy as np

FSC_RANGE = 0.001, 0.999  # as RELION has it: no shell is given up for good, and none trusted without end


def signal_to_noise(fsc) -> np.ndarray:
    """Spectral signal-to-noise ratio of a full map from the FSC of its half maps.

    Two maps of all particles would correlate by ``FSC' = 2 FSC / (1 + FSC)`` (Rosenthal and Henderson, J. Mol.
    Biol. 333 (2003), 721), so that ``SSNR = FSC' / (1 - FSC') = 2 FSC / (1 - FSC)``.
    """
    fsc = np.clip(np.asarray(fsc, dtype=np.float64), *FSC_RANGE)
    return 2 * fsc / (1 - fsc)


def added_weights(means, fsc, shells_per_voxel) -> np.ndarray:
    """Weight that the Wiener filter adds to every voxel of each rounded radius: mean weight over SSNR.

    It is ``1 / tau2`` of Scheres, J. Struct. Biol. 180 (2012), 519, with ``tau2 = SSNR sigma2``, the noise power
    sigma2 of a voxel of mean weight W being 1 / W in the units of the weights. A voxel of mean weight is
    multiplied by ``SSNR / (SSNR + 1)``, one in a poorly covered direction by less.

    Parameters
    ----------
    means : (r,) array_like
        Mean weight of each rounded radius of the padded volume.
    fsc : (n // 2 + 1,) array_like
        Of the half maps; interpolated between its shells.
    shells_per_voxel : float
        Edge of the box over the edge of the padded volume.
    """
    means = np.asarray(means, dtype=np.float64)
    ratio = np.interp(np.arange(len(means)) * shells_per_voxel, np.arange(len(fsc)), signal_to_noise(fsc))
    return means / ratio
