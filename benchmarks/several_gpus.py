"""The same work on more GPUs than one: how many, how many times faster, and whether the result is the same."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import Device
from xmipp_accel.backend.devices import cuda_status

NUMBERS = 2, 4


def add_option(parser):
    parser.add_argument(
        "--more-devices",
        type=int,
        nargs="*",
        help="how many devices to measure beside one, 0 for none: 2 and 4 by default, as far as there are so many "
        "GPUs; without GPUs the CPU counts as several, by default as 2",
    )


def device_sets(device, numbers=None):
    """Tuples of devices that are measured beside the one `device`."""
    if device.kind == "cpu":
        return [(device,) * number for number in numbers or NUMBERS[:1] if number > 1]
    gpus, _ = cuda_status()
    wanted = [number for number in numbers or NUMBERS if 1 < number <= gpus]
    return [tuple(Device("cuda", index) for index in range(number)) for number in wanted]


def alignment_difference(one, several):
    """How far the best rows of two alignments of the same particles are apart.

    Parameters
    ----------
    one, several : Particles
        One row a particle, with ``imageIndex`` and ``maxCC``; particles may be missing.

    Returns
    -------
    dict
        Share of the particles in either that have the same reference in both; and for these the largest
        differences of psi, of the shift's vector and of the correlation, None if there are none.
    """
    numbers, *places = np.intersect1d(one.extra["imageIndex"], several.extra["imageIndex"], return_indices=True)
    one, several, count = one.take(places[0]), several.take(places[1]), len(one) + len(several) - len(numbers)
    same = one.class_id == several.class_id
    one, several = one.take(same), several.take(same)
    psi = (several.psi - one.psi + 180) % 360 - 180
    shift = np.hypot(several.shift_y - one.shift_y, several.shift_x - one.shift_x)
    return {
        "same reference": float(same.sum() / count),
        "psi, deg": _largest(psi),
        "shift, px": _largest(shift),
        "CC": _largest(several.extra["maxCC"] - one.extra["maxCC"]),
    }


def classification_difference(one, several):
    """How far two classifications of the same particles are apart.

    Parameters
    ----------
    one, several
        With the classes ``label`` (n,) of the particles and ``averages`` (C, N, N).

    Returns
    -------
    dict
        Share of the particles in the same class, and the largest difference of the averages, over the standard
        deviation of the first ones.
    """
    difference = np.abs(several.averages - one.averages).max() / one.averages.std()
    return {"same class": float(np.mean(one.label == several.label)), "averages, std": float(difference)}


def _largest(differences):
    return float(np.abs(differences).max()) if len(differences) else None
