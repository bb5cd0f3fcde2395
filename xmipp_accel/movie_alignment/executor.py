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
from xmipp_accel.io.frame_groups import read_frame_groups
from xmipp_accel.io.gains import divides, read_dark, read_defects, read_gain
from xmipp_accel.io.images import stack_writer, write_image
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.publish import write_json
from xmipp_accel.movie_alignment import metadata, quality
from xmipp_accel.movie_alignment.correct import MotionCorrector, binned_shape, corrected_averages
from xmipp_accel.movie_alignment.gain_check import GainCheck, check_gain
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
    frame_groups : path, optional
        Which frames of a movie's file are summed, and their exposures; see `xmipp_accel.io.frame_groups`.

    Raises
    ------
    InputFileError
        The frame groups cannot be read.
    """

    def __init__(self, parameters, device=CPU, gain=None, dark=None, defects=None, frame_groups=None):
        self.parameters = parameters
        self.device = device
        self._gain, self._dark, self._defects = gain, dark, defects
        self.frame_groups = read_frame_groups(frame_groups) if frame_groups else None
        self._references = {}
        self._gain_check: GainCheck | None = None

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
            The movie holds nothing to average: no frame with contrast, or no valid pixels. One that only cannot be
            aligned gives a result with the status ``"not aligned"`` and the averages of its frames as they are.
        """
        with self.device.activate():
            return _Run(self, Path(movie_path), Path(output_folder), name, progress, alignment).result()

    def references(self, shape, is_eer=False):
        """Gain and dark on the device, each or None, and defects on the host, for frames of this shape."""
        if (shape, is_eer) not in self._references:
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
            self._references = {(shape, is_eer): (gain, dark, bad)}
            self._gain_check = None
        return self._references[shape, is_eer]

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
        check = self._gain_check
        divided = divides(p.gain_mode, self._gain, is_eer)
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
        """Paths of the gain and the defects as text, empty where there is none."""
        return str(self._gain or ""), str(self._defects or "")


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
            self.gain_numbers, self.gain_warning = self.executor.check_gain(movie, valid, self.is_eer)
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
        with open_movie(self.path, p.eer_frames, p.eer_upsampling, self.executor.frame_groups) as reader:
            self.n_frames, self.group_sizes, self.is_eer = reader.shape[0], reader.group_sizes, reader.is_eer
            self.exposures = self.executor.exposures(reader.group_sizes)
            self.sampling_rate = p.sampling_rate or reader.sampling_rate
            if not self.sampling_rate > 0:
                raise ParameterError(f"{self.path}: its header has no pixel size; set sampling_rate")
            # A movie may have ended early; what it has is used, and the result says so.
            last, sum_last = min(p.last_frame, self.n_frames), min(p.sum_last_frame, self.n_frames)
            self.first, self.last = self._range(p.first_frame, last, 1, self.n_frames)
            self.sum_first, self.sum_last = self._range(
                max(p.sum_first_frame, self.first), sum_last, self.first, self.last
            )
            raw = self.device.asarray(reader.read(self.first - 1, self.last))
        gain, dark, bad = self.executor.references(tuple(raw.shape[1:]), self.is_eer)
        movie = PreparedMovie(raw, gain, dark)
        self._repair(movie, bad | non_finite_pixels(raw))
        blank = blank_frames(movie)
        if len(blank) == movie.shape[0]:
            raise ProcessingError(f"{self.path}: none of its {len(blank)} frames has any contrast")
        return movie, blank

    def _motion(self, movie, valid):
        if self.alignment is not None:
            return saved_motion(self.alignment, self.n_frames, self.first, self.last, movie.shape[1:])
        return find_motion(movie, valid, self.parameters, self.sampling_rate).relative_to_reference()

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
        exposures = self.exposures[self.first - 1 : self.last]
        with self._aligned_movie(shape) as append:
            return corrected_averages(
                movie, frames, corrector, p, self.sampling_rate, exposures, self.first - 1, blank, append
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
        exposures = self.exposures[self.first - 1 : self.last]
        received = p.pre_exposure + self.exposures[: self.first - 1].sum()
        numbers |= self.gain_numbers
        numbers |= frc | quality.motion_summary(motion.shifts, self.sampling_rate, exposures, received)
        result = MovieAlignmentResult(
            name=self.name, movie=os.path.abspath(self.path), status=motion.status,
            reason=self._reason(motion, blank), n_frames=self.n_frames, first_frame=self.first - 1, shape=shape,
            sampling_rate=self.sampling_rate, output_sampling_rate=out_rate,
            reference_frame=motion.reference + self.first - 1,
            shifts=motion.shifts, shift_errors=motion.errors, control_points=motion.control_points,
            quality=numbers, outputs=outputs, timings=self.timings, parameters=p.to_dict(),
            exposures=self.exposures, group_sizes=self.group_sizes,
            alignment="" if self.alignment is None else os.path.abspath(self.alignment),
        )  # fmt: skip
        numbers |= quality.local_summary(result.field, result.shifts, shape, result.n_aligned)
        metadata.write_xmd(self.folder / outputs["xmd"], result, blank)
        gain, defects = self.executor.reference_paths
        numbers["relion_model_rms"] = metadata.write_relion_star(
            self.folder / outputs["star"], result, gain, defects, bad, self.is_eer
        )
        return result

    def _reason(self, motion, blank):
        wanted = max(self.parameters.last_frame, self.parameters.sum_last_frame)
        short = f"the movie has {self.n_frames} frames, not {wanted}" if wanted > self.n_frames else ""
        listed = ", ".join(str(t + self.first) for t in blank)
        left_out = f"frames without contrast left out: {listed}" if blank else ""
        # The reason of an alignment that is applied again may have told the same.
        remarks = [text for text in (short, left_out, self.gain_warning) if text not in motion.reason]
        return "; ".join(filter(None, [motion.reason, *remarks]))

    def _write_images(self, images, sampling_rate):
        for key, image in images.items():
            dtype = np.float32 if key.startswith("power_spectrum") else self._dtype
            write_image(self._output(key), image, sampling_rate, dtype)
        written = [*images, *(["aligned_movie"] if self.parameters.save_aligned_movie else [])]
        return {key: self._output(key).name for key in written}
