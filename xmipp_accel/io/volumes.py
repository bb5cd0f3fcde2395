"""Volumes: MRC (.mrc, .map) and, for reading, SPIDER (.vol)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import mrc, spider
from xmipp_accel.io.images import SPIDER_SUFFIXES

SPACING_TOLERANCE = 0.01
PART_BYTES = 32 << 20  # of a volume on its way to disk: page-locked memory for more takes longer than it saves


def read_volume(path) -> tuple[np.ndarray, float]:
    """Read a volume.

    Returns
    -------
    (z, y, x) float32 array
        Whatever the order of the axes in the file. The header's origin and start indices are not used: the centre
        is at n // 2.
    float
        Sampling rate in A/px, 0 if the file does not tell.

    Raises
    ------
    InputFileError
        The file is damaged, has voxels that are not cubes, or values that are not finite.
    """
    if Path(path).suffix.lower() in SPIDER_SUFFIXES:
        header = spider.read_header(path)
        volume, sampling_rate = spider.read_section_list(header, range(header.shape[0])), 0.0
    else:
        volume, sampling_rate = _read_mrc(path)
    bad = volume.size - np.count_nonzero(np.isfinite(volume))
    if bad:
        raise InputFileError(path, "finite values", f"{bad} that are not")
    return volume, sampling_rate


def _read_mrc(path):
    header = mrc.read_header(path)
    known = [spacing for spacing in header.spacing if spacing > 0]
    if known and max(known) > (1 + SPACING_TOLERANCE) * min(known):
        found = " x ".join(f"{spacing:g}" for spacing in header.spacing)
        raise InputFileError(path, "voxels that are cubes", f"voxels of {found} A (z, y, x)")
    volume = mrc.read_sections(header).astype(np.float32, copy=False)
    stored = header.axes[::-1]
    volume = np.ascontiguousarray(volume.transpose([stored.index(axis) for axis in (3, 2, 1)]))
    return volume, header.sampling_rate


def write_volume(path, array, sampling_rate):
    """Publish a volume as MRC, space group 1.

    Parameters
    ----------
    path : str or os.PathLike
    array : (z, y, x) array
        On the host or a GPU, whose device must be current; written as float32.
    sampling_rate : float
        A/px; 0 if unknown.
    """
    if array.ndim != 3 or not array.size:
        raise ParameterError(f"{path}: expected a volume (z, y, x), found shape {array.shape}")
    if Path(path).suffix.lower() not in (".mrc", ".map"):
        raise ParameterError(f"{path}: expected a name that ends in .mrc or .map")
    planes = max(1, PART_BYTES // (4 * array[0].size))
    with mrc.section_writer(path, sampling_rate, volume=True) as append:
        for first in range(0, len(array), planes):
            append(array[first : first + planes].astype(np.float32, copy=False))
