"""The way of each particle through the frames of its movie."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.coordinates import read_coordinates
from xmipp_accel.io.tables import write_blocks
from xmipp_accel.movie_alignment.correct import binned_shape
from xmipp_accel.movie_alignment.magnification import Magnification
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters


def particle_tracks(result, positions):
    """Follow particles through the aligned frames.

    The shifts of whole frames and the B-spline of the local motion are evaluated at the particle itself, without
    the grid that the correction of whole frames uses.

    Parameters
    ----------
    result : MovieAlignmentResult
    positions : array_like, shape (n, 2)
        (y, x) in px of the average, as it was written.

    Returns
    -------
    places : ndarray of float64, shape (n, n_aligned, 2)
        (y, x) of each particle in each frame, px of the movie.
    displacements : ndarray of float64, shape (n, n_aligned, 2)
        What of `places` is due to motion: minus the translation to apply; px of the movie, times
        `MovieAlignmentResult.sampling_rate` for A.
    """
    parameters = MovieAlignmentParameters.from_dict(result.parameters)
    positions = np.asarray(positions, dtype=np.float64).reshape(-1, 2)
    unbinned = positions * np.divide(result.shape, binned_shape(result.shape, parameters.bin_factor))
    at_rest = Magnification.from_parameters(parameters, result.shape).in_frame(unbinned)[:, None]
    # The spline ends with the frame; particles at its border may lie beyond, by a stretch.
    y, x = (np.clip(at_rest[..., axis], 0, result.shape[axis]) for axis in (0, 1))
    displacements = -result.field(y, x, np.arange(result.n_aligned))
    return at_rest + displacements, displacements


def read_particles_of(result, path):
    """Read the positions (n, 2) of a result's particles, and their rows (n,) in the table, counted from 1.

    A table that names micrographs may hold particles of many. Those are taken whose micrograph has the file name,
    up to its suffix, of one of the result's images or of the movie.

    Raises
    ------
    InputFileError
        The table cannot be used, or names micrographs, none of which is of this movie.
    """
    positions, micrographs = read_coordinates(path)
    rows = np.arange(1, len(positions) + 1)
    if micrographs is None:
        return positions, rows
    stems = {PurePath(name).stem for name in [*result.outputs.values(), result.movie]}
    own = np.array([PurePath(name).stem in stems for name in micrographs], dtype=bool)
    if len(rows) and not own.any():
        raise InputFileError(path, f"particles of {result.name}", f"those of {micrographs[0]} and others")
    return positions[own], rows[own]


def write_tracks(path, result, positions, particles):
    """Publish the tracks as a STAR file.

    The block ``general`` has the movie's name and pixel size, the sizes of its frames, and by how much its
    particles' micrograph is binned. The block ``tracks`` has a row for each particle and each aligned frame:

    * ``rlnImageId``, the particle;
    * ``rlnMicrographFrameNumber``, from 1;
    * ``rlnCoordinateX`` and ``Y``, where the particle lies in this frame, px of the movie;
    * ``rlnMicrographShiftX`` and ``Y``, the translation to apply, px of the movie, in the sense of the file that
      goes to RELION's polishing.

    Parameters
    ----------
    path : path
    result : MovieAlignmentResult
    positions : array_like, shape (n, 2)
        As for :func:`particle_tracks`.
    particles : array_like of int, shape (n,)
        Number of each particle.
    """
    places, displacements = particle_tracks(result, positions)
    n, frames = places.shape[:2]
    binning = result.output_sampling_rate / result.sampling_rate
    general: dict[str, Any] = {
        "rlnMicrographMovieName": [result.movie],
        "rlnImageSizeX": [result.shape[1]],
        "rlnImageSizeY": [result.shape[0]],
        "rlnMicrographOriginalPixelSize": [result.sampling_rate],
        "rlnMicrographBinning": [binning],
    }
    tracks: dict[str, Any] = {
        "rlnImageId": np.repeat(particles, frames),
        "rlnMicrographFrameNumber": np.tile(np.arange(frames) + result.first_frame + 1, n),
        "rlnCoordinateX": places[..., 1].ravel(),
        "rlnCoordinateY": places[..., 0].ravel(),
        "rlnMicrographShiftX": -displacements[..., 1].ravel(),
        "rlnMicrographShiftY": -displacements[..., 0].ravel(),
    }
    write_blocks(path, {"general": general, "tracks": tracks})
