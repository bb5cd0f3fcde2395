"""Alignment of movies on one device: files in, files out."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import numpy as np

from xmipp_accel.backend import CPU
from xmipp_accel.errors import ProcessingError
from xmipp_accel.io.frame_groups import read_frame_groups
from xmipp_accel.io.gains import divides, read_dark, read_defects, read_gain
from xmipp_accel.movie_alignment.gain_check import GainCheck, check_gain
from xmipp_accel.movie_alignment.one_movie import OneMovie
from xmipp_accel.movie_alignment.polishing import defects_for_polishing, gain_for_polishing
from xmipp_accel.movie_alignment.prepare import BadPixels
from xmipp_accel.movie_alignment.workers import Workers, movies_at_a_time

logger = logging.getLogger(__name__)


class MovieAlignmentExecutor:
    """Aligns movies; long-lived, bound to one device.

    :meth:`process` may be called from several threads, `IN_FLIGHT` of them at best: some movies are computed while
    others are read and written.

    Parameters
    ----------
    parameters : MovieAlignmentParameters
    device : Device
    gain, dark, defects : path, optional
        Gain reference, dark reference, and defect list or map. They are read when the first movie tells the
        frame's size.
    frame_groups : path, optional
        Which frames of a movie's file are summed, and their exposures; see `xmipp_accel.io.frame_groups`.

    Raises
    ------
    InputFileError
        The frame groups cannot be read.
    """

    IN_FLIGHT = 5

    def __init__(self, parameters, device=CPU, gain=None, dark=None, defects=None, frame_groups=None):
        self.parameters = parameters
        self.device = device
        self.workers = Workers(device, *movies_at_a_time(device))
        self._gain, self._dark, self._defects = gain, dark, defects
        self.frame_groups = read_frame_groups(frame_groups) if frame_groups else None
        self._references = {}
        self._polishing: dict[tuple, tuple[str, str]] = {}
        self._gain_check: GainCheck | None = None
        self._lock = threading.Lock()  # of these three

    def process(self, movie_path, output_folder, name=None, progress=None, alignment=None):
        """Align one movie and write its outputs.

        The averages are means, not sums: ``<name>.mrc`` without and ``<name>_DW.mrc`` with dose weighting,
        ``<name>_EVN.mrc`` and ``<name>_ODD.mrc`` of the frames with even and odd numbers counted from 1, and
        ``<name>_DW_EVN.mrc`` and ``<name>_DW_ODD.mrc`` of these with dose weighting, ``<name>_initial.mrc`` of the
        frames before alignment. Further the corrected frames as ``<name>_aligned.mrcs``, power spectra as
        ``<name>_psd.mrc`` and, before alignment, ``<name>_psd_initial.mrc``, the motion as ``<name>.xmd`` (Xmipp)
        and ``<name>.star`` (RELION), and ``<name>.json``, last of all. The gain or the defects that RELION would
        not read as they were used here are written as ``gain_applied_<digest>`` and ``defects_applied_<digest>``.

        Parameters
        ----------
        movie_path : path
        output_folder : path
            Made if it does not exist.
        name : str, optional
            Stem of the outputs; the movie's own stem otherwise.
        progress : callable, optional
            Called as ``progress(done, total)`` with numbers of steps.
        alignment : path, optional
            The ``.json`` or ``.xmd`` of an earlier alignment of this movie, applied instead of measuring one.

        Returns
        -------
        MovieAlignmentResult

        Raises
        ------
        InputFileError
            The movie or one of the references cannot be used, or `alignment` is of other frames.
        ParameterError
            The parameters do not fit this movie.
        ProcessingError
            The movie holds nothing to average, no frame with contrast or no valid pixels, or does not fit into the
            memory. One that only cannot be aligned gives a result with the status ``"not aligned"`` and the
            averages of its frames as they are.
        """
        with self.device.activate():
            return OneMovie(self, Path(movie_path), Path(output_folder), name, progress, alignment).result()

    def references(self, shape, is_eer=False):
        """Gain and dark on the device, each or None, and `BadPixels`, for frames of this shape."""
        with self._lock:
            if (shape, is_eer) not in self._references:
                self._references = {(shape, is_eer): self._read_references(shape, is_eer)}
                self._gain_check = None
            return self._references[shape, is_eer]

    def _read_references(self, shape, is_eer):
        p = self.parameters
        gain = dark = None
        bad = np.zeros(shape, dtype=bool)
        if self._gain:
            divide = divides(p.gain_mode, self._gain, is_eer)
            gain, zero = read_gain(self._gain, shape, p.gain_rotation, p.gain_flip, divide)
            gain, bad = self.device.asarray(gain, np.float32), bad | zero
        if self._dark:
            dark = self.device.asarray(read_dark(self._dark, shape, p.gain_rotation, p.gain_flip), np.float32)
        if self._defects:
            bad = bad | read_defects(self._defects, shape)
        try:
            return gain, dark, BadPixels(shape, np.flatnonzero(bad))
        except ProcessingError as error:
            raise ProcessingError(f"{' and '.join(filter(None, self.reference_paths))}: {error}") from error

    def polishing_references(self, folder, gain, shape, is_eer):
        """Paths of the gain (as :meth:`references` gave it) and the defects for RELION, empty where there is none.

        They are made when the first movie of a kind asks for them, on the thread that computes.
        """
        kind = str(folder), shape, is_eer
        with self._lock:
            if kind not in self._polishing:
                names = ["", ""]
                if self._gain:
                    path = gain_for_polishing(self._gain, gain, folder, is_eer, self.parameters)
                    names[0] = str(path)
                if self._defects:
                    names[1] = str(defects_for_polishing(self._defects, shape, folder))
                self._polishing[kind] = names[0], names[1]
            return self._polishing[kind]

    def check_gain(self, movie, frames, is_eer):
        """Compare the gain with the raw frames of the first movie, and of others until one is certain.

        Returns
        -------
        dict of str to float
            For the result's quality.
        str
            A warning, if another orientation fits better.
        """
        p = self.parameters
        if movie.gain is None or not p.check_gain:
            return {}, ""
        divided = divides(p.gain_mode, self._gain, is_eer)
        with self._lock:
            check = self._gain_check
            if check is None or not check.certain:
                check = self._gain_check = check_gain(movie, frames, p.gain_rotation, p.gain_flip)
                if check.better:
                    logger.warning("%s: %s", self._gain, check.warning(divided))
        return check.numbers(), check.warning(divided)

    def exposures(self, group_sizes):
        """Exposure (e/A^2) of each frame of a movie, given how many frames of the file each is the sum of."""
        dose = self.parameters.dose_per_frame
        if self.frame_groups is None:
            return np.full(len(group_sizes), dose)
        return self.frame_groups.exposures(group_sizes, dose)

    @property
    def reference_paths(self):
        """Absolute paths of the gain and the defects as text, empty where there is none."""
        return tuple(os.path.abspath(path) if path else "" for path in (self._gain, self._defects))
