"""Coordinates of particles in micrographs, from RELION's and Xmipp's tables."""

from __future__ import annotations

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.columns import Columns
from xmipp_accel.io.tables import read_blocks

# Labels of x, y and the micrograph's name.
_DIALECTS = (("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"), ("xcoor", "ycoor", "micrograph"))


def read_coordinates(path):
    """Read positions of particles from a STAR file of RELION or an ``.xmd`` or ``.pos`` file of Xmipp.

    Returns
    -------
    positions : ndarray, shape (n, 2)
        (y, x) in px of the micrographs.
    micrographs : list of str or None
        Name of each particle's micrograph, if the table has them.

    Raises
    ------
    InputFileError
        There is not exactly one table with coordinates, or one of them is no number.
    """
    blocks = read_blocks(path)
    found = [
        (Columns(path, block), labels) for block in blocks.values() for labels in _DIALECTS if labels[0] in block
    ]
    if len(found) != 1:
        expected = "one table with rlnCoordinateX or xcoor"
        raise InputFileError(path, expected, f"{len(found)} in the blocks {', '.join(blocks)}")
    columns, (x, y, name) = found[0]
    columns.together(x, y)
    positions = np.stack([columns.numbers(y), columns.numbers(x)], axis=1)
    return positions, columns.texts(name) if name in columns else None
