"""One movie's way through the executor: read, align, correct, write."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xmipp_accel.backend import one_blas_thread
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
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


class OneMovie:
    """What :meth:`MovieAlignmentExecutor.process` does; see there."""

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
        """Process the movie."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with one_blas_thread():
            computed = self._computed()
            with self._stage("write", 4):
                result = self._write(*computed)
            write_json(self.folder / f"{self.name}.json", result.to_json())
        logger.info("%s: %s, %.1f s", self.path.name, result.status, sum(self.timings.values()))
        return result

    def _computed(self):
        try:
            return self.executor.workers.run(self._read, self._compute)
        except MemoryError as error:
            raise ProcessingError(f"{self.path}: too large for the memory of {self.device}: {error}") from error

    def _compute(self, raw):
        with self._stage("align", 2):
            movie, blank = self._prepare(raw)
            motion = self._motion(movie, blank)
        with self._stage("correct", 3):
            images, frc = self._averages(movie, blank, motion)
        shape = tuple(int(length) for length in movie.shape[1:])
        return images, frc, motion, blank, movie.bad.positions, shape

    def _read(self):
        p = self.parameters
        with (
            self._stage("read", 1),
            open_movie(self.path, p.eer_frames, p.eer_upsampling, self.executor.frame_groups) as reader,
        ):
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
            return reader.read_to(self.device, self.first - 1, self.last)

    def _range(self, first, last, lowest, highest):
        if first > highest or (last or highest) > highest or first > (last or highest):
            found = f"frames {first} to {last or 'the last'}"
            raise ParameterError(
                f"{self.path}: expected a range within frames {lowest} to {highest}, found {found}"
            )
        return first, last or highest

    def _prepare(self, raw):
        shape = tuple(raw.shape[1:])
        gain, dark, bad = self.executor.references(shape, self.is_eer)
        self.polishing = self.executor.polishing_references(self.folder, gain, shape, self.is_eer)
        movie = PreparedMovie(raw, gain, dark, bad if self.parameters.repair_bad_pixels else None)
        self._repair(movie, non_finite_pixels(raw))
        blank = blank_frames(movie)
        if len(blank) == movie.shape[0]:
            raise ProcessingError(f"{self.path}: none of its {len(blank)} frames has any contrast")
        return movie, blank

    def _repair(self, movie, non_finite):
        p = self.parameters
        if not p.repair_bad_pixels:
            if len(non_finite):
                raise InputFileError(self.path, "finite pixels, or repair_bad_pixels", "NaN or infinity")
            return
        try:
            movie.repair(movie.bad.with_others(non_finite))
            if p.hot_pixel_sigma > 0:
                outliers = outlier_pixels(movie.mean_frame(), movie.bad.index, p.hot_pixel_sigma)
                movie.repair(movie.bad.with_others(outliers))
        except ProcessingError as error:
            raise ProcessingError(f"{self.path}: {error}") from error

    def _motion(self, movie, blank):
        valid = [t for t in range(movie.shape[0]) if t not in set(blank)]
        self.gain_numbers, self.gain_warning = self.executor.check_gain(movie, valid, self.is_eer)
        if self.alignment is not None:
            return saved_motion(self.alignment, self.n_frames, self.first, self.last, movie.shape[1:])
        return find_motion(movie, valid, self.parameters, self.sampling_rate).relative_to_reference()

    def _averages(self, movie, blank, motion):
        p, shape = self.parameters, movie.shape[1:]
        frames = range(self.sum_first - self.first, self.sum_last - self.first + 1)
        if set(frames) <= set(blank):
            raise ProcessingError(f"{self.path}: no frame to be summed has any contrast")
        magnification = Magnification.from_parameters(p, shape)
        corrector = MotionCorrector(motion.shifts, motion.control_points, shape, magnification, movie.xp)
        with self._aligned_movie(shape) as append:
            return corrected_averages(
                movie, frames, corrector, p, self.sampling_rate, self._aligned_exposures(), self.first - 1, blank,
                append,
            )  # fmt: skip

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

    def _aligned_exposures(self):
        return self.exposures[self.first - 1 : self.last]

    def _write(self, images, frc, motion, blank, bad, shape):
        p = self.parameters
        outputs = self._write_images(images, self._output_rate(shape))
        outputs |= {"xmd": f"{self.name}.xmd", "star": f"{self.name}.star"}
        numbers = dict(motion.quality, bad_pixels=float(len(bad)), blank_frames=float(len(blank)))
        received = p.pre_exposure + float(self.exposures[: self.first - 1].sum())
        exposures = self._aligned_exposures()
        numbers |= self.gain_numbers | frc
        numbers |= quality.motion_summary(motion.shifts, self.sampling_rate, exposures, received)
        result = MovieAlignmentResult(
            name=self.name, movie=os.path.abspath(self.path), status=motion.status,
            reason=self._reason(motion, blank), n_frames=self.n_frames, first_frame=self.first - 1, shape=shape,
            sampling_rate=self.sampling_rate, output_sampling_rate=self._output_rate(shape),
            reference_frame=motion.reference + self.first - 1,
            shifts=motion.shifts, shift_errors=motion.errors, control_points=motion.control_points,
            quality=numbers, outputs=outputs, timings=self.timings, parameters=p.to_dict(),
            exposures=self.exposures, group_sizes=self.group_sizes,
            alignment="" if self.alignment is None else os.path.abspath(self.alignment),
        )  # fmt: skip
        numbers |= quality.local_summary(result.field, result.shifts, shape, result.n_aligned)
        metadata.write_xmd(self.folder / outputs["xmd"], result, blank)
        numbers["relion_model_rms"] = metadata.write_relion_star(
            self.folder / outputs["star"], result, self.polishing[0], self.polishing[1], bad, self.is_eer
        )
        return result

    def _reason(self, motion, blank):
        wanted = max(self.parameters.last_frame, self.parameters.sum_last_frame)
        listed, lost = (", ".join(str(t + self.first) for t in frames) for frames in (blank, motion.lost))
        reasons = {
            f"the movie has {self.n_frames} frames, not {wanted}": wanted > self.n_frames,
            f"frames without contrast left out: {listed}": bool(blank),
            f"frames that fit nowhere were placed between their neighbours: {lost}": bool(motion.lost),
            # A gain that is turned leaves a pattern.
            self.gain_warning or motion.warning: True,
        }
        # The reason of an alignment that is applied again may say so already.
        new = [reason for reason, applies in reasons.items() if applies and reason not in motion.reason]
        return "; ".join(filter(None, [motion.reason, *new]))

    def _write_images(self, images, sampling_rate):
        def write(key):
            dtype = np.float32 if key.startswith("power_spectrum") else self._dtype
            write_image(self._output(key), images[key], sampling_rate, dtype)

        with ThreadPoolExecutor(max(1, len(images))) as pool:
            list(pool.map(write, images))
        written = [*images, *(["aligned_movie"] if self.parameters.save_aligned_movie else [])]
        return {key: self._output(key).name for key in written}
