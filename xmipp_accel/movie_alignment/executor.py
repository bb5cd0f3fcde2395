"""Alignment of movies on one device: files in, files out."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

import numpy as np

from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io import eer
from xmipp_accel.io.gains import read_dark, read_defects, read_gain
from xmipp_accel.io.ifd import DirectoryReader
from xmipp_accel.io.images import stack_writer, write_image
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.publish import write_json
from xmipp_accel.movie_alignment import metadata, quality
from xmipp_accel.movie_alignment.correct import MotionCorrector, binned_shape, corrected_averages
from xmipp_accel.movie_alignment.magnification import Magnification
from xmipp_accel.movie_alignment.motion import find_motion
from xmipp_accel.movie_alignment.prepare import PreparedMovie, blank_frames, non_finite_pixels, outlier_pixels
from xmipp_accel.movie_alignment.reapply import saved_motion
from xmipp_accel.movie_alignment.result import MovieAlignmentResult

logger = logging.getLogger(__name__)

STEPS = 4
SUFFIXES = {
    "unweighted": ".mrc",
    "dose_weighted": "_DW.mrc",
    "even": "_EVN.mrc",
    "odd": "_ODD.mrc",
    "dose_weighted_even": "_DW_EVN.mrc",
    "dose_weighted_odd": "_DW_ODD.mrc",
    "initial": "_initial.mrc",
    "aligned_movie": "_aligned.mrcs",
    "power_spectrum": "_psd.mrc",
    "power_spectrum_initial": "_psd_initial.mrc",
}


class MovieAlignmentExecutor:
    """Aligns movies one after the other; long-lived, bound to one device.

    Parameters
    ----------
    parameters : MovieAlignmentParameters
    device : Device
    gain, dark, defects : path, optional
        Gain reference, dark reference, and defect list or map. They are read when the first movie tells the
        frame's size.
    """

    def __init__(self, parameters, device=CPU, gain=None, dark=None, defects=None):
        self.parameters = parameters
        self.device = device
        self._gain, self._dark, self._defects = gain, dark, defects
        self._references = {}

    def process(self, movie_path, output_folder, name=None, progress=None, alignment=None):
        """Align one movie and write its outputs.

        The averages are means, not sums: ``<name>.mrc`` without and ``<name>_DW.mrc`` with dose weighting,
        ``<name>_EVN.mrc`` and ``<name>_ODD.mrc`` of the frames with even and odd numbers counted from 1, and
        ``<name>_DW_EVN.mrc`` and ``<name>_DW_ODD.mrc`` of these with dose weighting, ``<name>_initial.mrc`` of the
        frames before alignment. Further the corrected frames as ``<name>_aligned.mrcs``, power spectra as
        ``<name>_psd.mrc`` and, before alignment, ``<name>_psd_initial.mrc``, the motion as ``<name>.xmd`` (Xmipp)
        and ``<name>.star`` (RELION), and ``<name>.json``, last of all.

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
            The movie holds nothing that can be aligned: fewer than two frames with contrast, or no valid pixels.
        """
        with self.device.activate():
            return _Run(self, Path(movie_path), Path(output_folder), name, progress, alignment).result()

    def references(self, shape):
        """Gain and dark on the device, and defects on the host, for frames of this shape; each may be None."""
        if shape not in self._references:
            p = self.parameters
            gain = dark = None
            bad = np.zeros(shape, dtype=bool)
            if self._gain:
                gain, zero = read_gain(self._gain, shape, p.gain_rotation, p.gain_flip, p.gain_divide)
                gain, bad = self.device.asarray(gain, np.float32), bad | zero
            if self._dark:
                dark = self.device.asarray(read_dark(self._dark, shape, p.gain_rotation, p.gain_flip), np.float32)
            if self._defects:
                bad = bad | read_defects(self._defects, shape)
            self._references = {shape: (gain, dark, bad)}
        return self._references[shape]

    @property
    def reference_paths(self):
        """Absolute paths of the gain and the defects as text, empty where there is none."""
        return tuple(os.path.abspath(path) if path else "" for path in (self._gain, self._defects))


class _Run:
    """One movie's way through the executor."""

    def __init__(self, executor, movie_path, folder, name, progress, alignment):
        self.executor, self.parameters, self.device = executor, executor.parameters, executor.device
        self.path, self.folder = movie_path, folder
        self.name = name or movie_path.stem
        self.progress, self.alignment = progress, alignment
        self.timings = {}

    @contextlib.contextmanager
    def _stage(self, name, done):
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start
        if self.progress is not None:
            self.progress(done, STEPS)

    def result(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._stage("read", 1):
            movie, blank = self._read()
        with self._stage("align", 2):
            valid = [t for t in range(movie.shape[0]) if t not in set(blank)]
            motion = self._motion(movie, valid)
        with self._stage("correct", 3):
            averages = self._averages(movie, blank, motion)
        with self._stage("write", 4):
            result = self._write(movie, blank, motion, averages)
        write_json(self.folder / f"{self.name}.json", result.to_json())
        logger.info("%s: %s, %.1f s", self.path.name, result.status, sum(self.timings.values()))
        return result

    def _read(self):
        p = self.parameters
        with open_movie(self.path, p.eer_frames, p.eer_upsampling) as reader:
            self.n_frames = reader.shape[0]
            self.sampling_rate = p.sampling_rate or reader.sampling_rate
            if not self.sampling_rate > 0:
                raise ParameterError(f"{self.path}: its header has no pixel size; set sampling_rate")
            self.first, self.last = self._range(p.first_frame, p.last_frame, 1, self.n_frames)
            self.sum_first, self.sum_last = self._range(
                max(p.sum_first_frame, self.first), p.sum_last_frame, self.first, self.last
            )
            raw = self.device.asarray(reader.read(self.first - 1, self.last))
        gain, dark, bad = self.executor.references(tuple(raw.shape[1:]))
        movie = PreparedMovie(raw, gain, dark)
        self._repair(movie, bad | non_finite_pixels(raw))
        blank = blank_frames(movie)
        if movie.shape[0] - len(blank) < 2:
            raise ProcessingError(
                f"{self.path}: {movie.shape[0] - len(blank)} of {movie.shape[0]} frames have any contrast; "
                "an alignment needs two"
            )
        return movie, blank

    def _motion(self, movie, valid):
        if self.alignment is not None:
            return saved_motion(self.alignment, self.n_frames, self.first, self.last, movie.shape[1:])
        return find_motion(movie, valid, self.parameters, self.sampling_rate).relative_to_reference()

    def _eer_grouping(self):
        directories = DirectoryReader(self.path) if self.path.suffix.lower() == ".eer" else None
        if directories is None:
            return 0
        return eer.read_header(directories, self.parameters.eer_frames, self.parameters.eer_upsampling).group

    def _range(self, first, last, lowest, highest):
        if first > highest or (last or highest) > highest or first > (last or highest):
            found = f"frames {first} to {last or 'the last'}"
            raise ParameterError(
                f"{self.path}: expected a range within frames {lowest} to {highest}, found {found}"
            )
        return first, last or highest

    def _repair(self, movie, bad):
        p = self.parameters
        if not p.repair_bad_pixels:
            if non_finite_pixels(movie.raw).any():
                raise InputFileError(self.path, "finite pixels, or repair_bad_pixels", "NaN or infinity")
            return
        try:
            movie.repair(bad)
            if p.hot_pixel_sigma > 0:
                average = movie.mean_frame(range(movie.shape[0]))
                movie.repair(bad | outlier_pixels(average, bad, p.hot_pixel_sigma))
        except ProcessingError as error:
            raise ProcessingError(f"{self.path}: {error}") from error

    def _averages(self, movie, blank, motion):
        p, shape = self.parameters, movie.shape[1:]
        frames = range(self.sum_first - self.first, self.sum_last - self.first + 1)
        if set(frames) <= set(blank):
            raise ProcessingError(f"{self.path}: no frame to be summed has any contrast")
        magnification = Magnification.from_parameters(p, shape)
        corrector = MotionCorrector(motion.shifts, motion.control_points, shape, magnification)
        with self._aligned_movie(shape) as append:
            return corrected_averages(
                movie, frames, corrector, p, self.sampling_rate, self.first - 1, blank, append
            )

    @contextlib.contextmanager
    def _aligned_movie(self, shape):
        """Function that appends a frame to the aligned movie; None if it is not wanted."""
        if not self.parameters.save_aligned_movie:
            yield None
            return
        with stack_writer(self._output("aligned_movie"), self._output_rate(shape), self._dtype) as append:
            yield append

    @property
    def _dtype(self):
        return np.float16 if self.parameters.float16 else np.float32

    def _output(self, key):
        return self.folder / f"{self.name}{SUFFIXES[key]}"

    def _output_rate(self, shape):
        return self.sampling_rate * shape[1] / binned_shape(shape, self.parameters.bin_factor)[1]

    def _write(self, movie, blank, motion, averages):
        p = self.parameters
        shape = int(movie.shape[1]), int(movie.shape[2])
        images, frc = averages
        out_rate = self._output_rate(shape)
        outputs = self._write_images(images, out_rate)
        bad = np.argwhere(movie.bad)
        outputs |= {"xmd": f"{self.name}.xmd", "star": f"{self.name}.star"}
        numbers = dict(motion.quality, bad_pixels=float(len(bad)), blank_frames=float(len(blank)))
        exposures = np.full(len(motion.shifts), p.dose_per_frame)
        received = p.pre_exposure + (self.first - 1) * p.dose_per_frame
        numbers |= frc | quality.motion_summary(motion.shifts, self.sampling_rate, exposures, received)
        reason = motion.reason
        if blank:
            left_out = f"frames without contrast left out: {', '.join(str(t + self.first) for t in blank)}"
            if left_out not in reason:  # as the reason of an alignment that is applied again has it
                reason = "; ".join(filter(None, [reason, left_out]))
        result = MovieAlignmentResult(
            name=self.name, movie=os.path.abspath(self.path), status=motion.status, reason=reason,
            n_frames=self.n_frames, first_frame=self.first - 1, shape=shape, sampling_rate=self.sampling_rate,
            output_sampling_rate=out_rate, reference_frame=motion.reference + self.first - 1,
            shifts=motion.shifts, shift_errors=motion.errors, control_points=motion.control_points,
            quality=numbers, outputs=outputs, timings=self.timings, parameters=p.to_dict(),
            alignment="" if self.alignment is None else os.path.abspath(self.alignment),
        )  # fmt: skip
        numbers |= quality.local_summary(result.field, result.shifts, shape, result.n_aligned)
        metadata.write_xmd(self.folder / outputs["xmd"], result, blank)
        gain, defects = self.executor.reference_paths
        numbers["relion_model_rms"] = metadata.write_relion_star(
            self.folder / outputs["star"], result, gain, defects, bad, self._eer_grouping()
        )
        return result

    def _write_images(self, images, sampling_rate):
        for key, image in images.items():
            dtype = np.float32 if key.startswith("power_spectrum") else self._dtype
            write_image(self._output(key), image, sampling_rate, dtype)
        written = [*images, *(["aligned_movie"] if self.parameters.save_aligned_movie else [])]
        return {key: self._output(key).name for key in written}
