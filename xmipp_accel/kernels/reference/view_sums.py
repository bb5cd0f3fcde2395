"""Images times the views that they count in, and sums of images over views, in float64 NumPy: the oracle."""

from __future__ import annotations

import numpy as np


def view_products(weighted, shifted, pairs):
    """Products of images with views, summed over the rings.

    Parameters
    ----------
    weighted : (R, K, Q) complex array
        Harmonics of the views.
    shifted : (m, S, K, Q) complex array
        Harmonics of the images after every shift.
    pairs : (P, 3) int array
        View, image and shift.

    Returns
    -------
    (P, Q) complex128 array
    """
    view, image, shift = np.asarray(pairs).T
    return (weighted[view].astype(np.complex128) * shifted[image, shift]).sum(axis=1)


def add_to_views(sums, shifted, pairs, factors):
    """Add images to views, each harmonic with a factor.

    Parameters
    ----------
    sums : (R, K, Q) complex array
        Grows.
    shifted, pairs
        As in :func:`view_products`.
    factors : (P, Q) complex array
    """
    view, image, shift = np.asarray(pairs).T
    np.add.at(sums, view, np.asarray(factors)[:, None, :] * shifted[image, shift])
