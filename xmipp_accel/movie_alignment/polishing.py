"""References as RELION's polishing reads them.

It multiplies movies by the gain file as it is, and those of electron events by the inverse of one that is not a
``.gain`` file. What is given otherwise is written anew, under a name that tells its content, since runs may share
a folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from xmipp_accel.backend import to_host
from xmipp_accel.io.files import read_text
from xmipp_accel.io.gains import divides, read_defects, read_reference
from xmipp_accel.io.images import TIFF_SUFFIXES, write_image

MRC_SUFFIXES = (".mrc", ".mrcs")
IMAGE_SUFFIXES = (*MRC_SUFFIXES, *TIFF_SUFFIXES)


def gain_for_polishing(given, applied, folder, is_eer, parameters):
    """Path of a gain file by which RELION does to the frames what was done here.

    Parameters
    ----------
    given : path
        What the user gave.
    applied : array, shape (ny, nx)
        Factors of the frames, 0 at defects.
    folder : path
        Where another file is written, if that must be.
    is_eer : bool
        Whether the movie holds electron events.
    parameters : MovieAlignmentParameters

    Returns
    -------
    Path
        Absolute.
    """
    given = Path(given).absolute()
    if is_eer:
        turned = parameters.gain_rotation or parameters.gain_flip != "none"
        multiplied = not divides(parameters.gain_mode, given, is_eer)
        known = given.suffix == ".gain" if multiplied else given.suffix in MRC_SUFFIXES
        if known and not turned:
            return given
        factors = to_host(applied)
        response = np.divide(1, factors, out=np.zeros_like(factors), where=factors > 0)
        return _published(response, folder, "gain")
    applied = to_host(applied)
    if given.suffix in IMAGE_SUFFIXES and np.array_equal(read_reference(given), applied):
        return given
    return _published(applied, folder, "gain")


def defects_for_polishing(given, shape, folder):
    """Path of a file of defects that RELION understands, as :func:`gain_for_polishing`; `shape` is the frames'."""
    given = Path(given).absolute()
    if given.suffix in IMAGE_SUFFIXES or (given.suffix == ".txt" and _has_boxes_only(given)):
        return given
    return _published(read_defects(given, shape).astype(np.float32), folder, "defects")


def _has_boxes_only(path):
    """Whether all lines of the file are four numbers; RELION knows no comments."""
    return all(len(line.split()) == 4 and "#" not in line for line in read_text(path).splitlines() if line.strip())


def _published(image, folder, what):
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=6).hexdigest()
    path = Path(folder).absolute() / f"{what}_applied_{digest}.mrc"
    if not path.exists():
        write_image(path, image, 0.0)
    return path
