"""Measured against true: the numbers by which a result on simulated data is judged."""

from __future__ import annotations

import numpy as np

from xmipp_accel.numerics.fsc import fourier_shell_correlation, frequencies, resolution_at
from xmipp_accel.numerics.rotations import euler_to_matrix, viewing_directions
from xmipp_accel.numerics.symmetry import symmetry_matrices


def shift_rmse(measured, true) -> float:
    """Root mean square length of the error vectors, after removing the constant offset of each location.

    Parameters
    ----------
    measured, true : (n_frames, ..., 2) array
        Translations in px; only their change from frame to frame can be known.
    """
    error = np.asarray(measured, dtype=float) - np.asarray(true, dtype=float)
    error = error - error.mean(axis=0, keepdims=True)
    return float(np.sqrt((error**2).sum(axis=-1).mean()))


def direction_errors(rot, tilt, true_rot, true_tilt, symmetry="c1") -> np.ndarray:
    """Angles (n,) in degrees between viewing directions, over the equivalent ones of the symmetry."""
    measured, true = viewing_directions(rot, tilt), viewing_directions(true_rot, true_tilt)
    cosines = [np.einsum("ni,ij,nj->n", measured, matrix, true) for matrix in symmetry_matrices(symmetry)]
    return np.rad2deg(np.arccos(np.clip(np.max(cosines, axis=0), -1, 1)))


def rotation_errors(angles, true_angles, symmetry="c1") -> np.ndarray:
    """Angles (n,) in degrees of the rotations between whole poses, over the equivalent ones of the symmetry.

    Parameters
    ----------
    angles, true_angles : (n, 3) array
        rot, tilt, psi in degrees.
    """
    measured, true = (euler_to_matrix(*np.asarray(a, dtype=float).T) for a in (angles, true_angles))
    traces = [np.einsum("nij,nik,jk->n", measured, true, matrix.T) for matrix in symmetry_matrices(symmetry)]
    return np.rad2deg(np.arccos(np.clip((np.max(traces, axis=0) - 1) / 2, -1, 1)))


def class_purity(classes, true_classes) -> float:
    """Share of the particles that belong to the most frequent true class of their class; unassigned ones count."""
    classes, true_classes = np.asarray(classes), np.asarray(true_classes)
    right = sum(
        np.unique(true_classes[classes == c], return_counts=True)[1].max() for c in np.unique(classes) if c
    )
    return right / len(classes)


def fsc_to_truth(volume, truth, sampling_rate, threshold=0.5):
    """Compare a map with the true one.

    Returns
    -------
    frequency, curve : (n // 2 + 1,) arrays
        Frequencies in 1/A.
    resolution : float
        A, where the curve falls below `threshold`; Nyquist if it never does.
    """
    curve = fourier_shell_correlation(volume, truth)
    box = len(volume)
    return frequencies(box, sampling_rate), curve, resolution_at(curve, threshold, sampling_rate, box)
