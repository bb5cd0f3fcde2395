"""Movie alignment in Scipion: a form, one streaming step, and outputs."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import time
from pathlib import Path

from pwem.objects import SetOfMovies
from pwem.protocols import ProtAlignMovies
from pyworkflow import PROD
from pyworkflow.object import Set
from pyworkflow.protocol.constants import STEPS_SERIAL

from xmipp_accel.errors import InputFileError, ProcessingError, XmippAccelError
from xmipp_accel.io.frame_groups import read_frame_groups
from xmipp_accel.io.publish import read_json, write_json
from xmipp_accel.movie_alignment.result import MovieAlignmentResult
from xmipp_accel.protocols import forms, movie_form
from xmipp_accel.protocols.movie_outputs import MovieOutputs

CHECK_SECONDS = 3  # between looks at an input that is still growing
REGISTER_SECONDS = 10  # between registrations, each of which rewrites the sets' properties


class XmippAccelProtMovieAlignment(ProtAlignMovies):
    """Aligns the frames of movies, globally and locally, and sums them with and without dose weighting.

    Works while movies are still arriving. Movies that cannot be processed are listed with the reason, and the
    others go on. A GPU is used if there is one; each GPU in the list works on a movie of its own.
    """

    _label = "movie alignment"
    _devStatus = PROD
    evenOddCapable = True
    stepsExecutionMode = STEPS_SERIAL

    def _defineAlignmentParams(self, form):
        movie_form.define(form)

    # ------------------------------------------------------------------------------------------------- steps
    def _insertAllSteps(self):
        # The time makes the step a new one in every run, so that a continued run looks for what is missing.
        self._insertFunctionStep(self.alignMoviesStep, time.time(), needsGPU=True)

    def alignMoviesStep(self, started):
        parameters = self._parameters()
        forms.refuse_changes(self, parameters)
        self._failed, self._names = {}, {}
        outputs = MovieOutputs(self, parameters)
        self._write_failures()
        workers = self._workers(parameters, forms.resolve_devices(self))
        with concurrent.futures.ThreadPoolExecutor(workers.qsize()) as pool:
            try:
                self._pump(pool, workers, outputs, parameters)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        outputs.register([], Set.STREAM_CLOSED)
        if self._failed and not outputs.count():
            raise ProcessingError(f"all {len(self._failed)} movies failed; the first: {self._first_failure()}")

    def _workers(self, parameters, devices):
        from xmipp_accel.movie_alignment.executor import MovieAlignmentExecutor

        files = {name: os.path.abspath(path) if path else None for name, path in self._reference_files().items()}
        workers = queue.Queue()
        executors = [MovieAlignmentExecutor(parameters, device, **files) for device in devices]
        for executor in executors * MovieAlignmentExecutor.IN_FLIGHT:  # in turn, so that devices share the movies
            workers.put(executor)
        return workers

    def _reference_files(self):
        """Paths by the executor's names for them, where they are given."""
        movies = self.inputMovies.get()
        return dict(
            gain=movies.getGain(),
            dark=movies.getDark(),
            defects=self.defectFile.get(),
            frame_groups=self.fmIntFile.get(),
        )

    def _pump(self, pool, workers, outputs, parameters):
        """Submit what arrives, collect what is done, and register it now and then, until the input is closed."""
        running, finished, seen, registered = {}, [], set(outputs.complete_ids()), time.time()
        while True:
            movies, closed = self._new_movies(seen)
            for movie in movies:
                name = self._result_name(movie)
                done = self._reusable_result(movie, name, parameters)
                task = (lambda result=done: result) if done else self._task(workers, movie, name)
                running[pool.submit(task)] = movie
            done, _ = concurrent.futures.wait(running, CHECK_SECONDS, concurrent.futures.FIRST_COMPLETED)
            finished += [(movie, result) for movie, result in self._collect(running, done) if result]
            idle = closed and not running
            if finished and (idle or time.time() - registered > REGISTER_SECONDS):
                outputs.register(finished, Set.STREAM_OPEN)
                finished, registered = [], time.time()
            if idle:
                return
            if not running:
                time.sleep(CHECK_SECONDS)

    def _task(self, workers, movie, name):
        path = os.path.abspath(movie.getFileName())

        def process():
            executor = workers.get()
            try:
                return executor.process(path, self._getExtraPath(), name=name)
            finally:
                workers.put(executor)

        return process

    def _collect(self, running, done):
        """Yield (movie, result) of futures that ended; a failure is recorded and gives None."""
        for future in done:
            movie, error = running.pop(future), future.exception()
            if error is not None:
                expected = isinstance(error, XmippAccelError)
                reason = str(error) if expected else f"{type(error).__name__}: {error}"
                self._log.error("%s failed: %s", movie.getFileName(), reason, exc_info=None if expected else error)
                self._failed[movie.getObjId()] = dict(movie=movie.getFileName(), reason=reason)
                self._write_failures()
            yield movie, None if error is not None else future.result()

    def _new_movies(self, seen):
        """Movies of the input that are not in `seen`, to which they are added, and whether no more will come."""
        movies = SetOfMovies(filename=self.inputMovies.get().getFileName())
        try:
            movies.loadAllProperties()
            closed = movies.isStreamClosed()  # before the items are read: what comes later is seen next time
            new = [movie.clone() for movie in movies.iterItems() if movie.getObjId() not in seen]
        finally:
            movies.close()
        seen.update(movie.getObjId() for movie in new)
        return new, closed

    # ------------------------------------------------------------------------------------- results and resume
    def _result_file(self, name):
        return Path(self._getExtraPath(f"{name}.json"))

    def _result_name(self, movie):
        """Stem of a movie's files: its own, with its number behind it if another movie has the same one."""
        name, path = self._getMovieRoot(movie), os.path.abspath(movie.getFileName())
        if self._names.setdefault(name, path) != path:
            name = f"{name}_{movie.getObjId()}"
        elif self._result_file(name).exists() and read_json(self._result_file(name)).get("movie") != path:
            name = f"{name}_{movie.getObjId()}"
        return name

    def _reusable_result(self, movie, name, parameters):
        """The result of an earlier run, if it is of these parameters and its files are still there."""
        if not self._result_file(name).exists():
            return None
        result = MovieAlignmentResult.from_json(self._result_file(name))
        same = result.parameters == parameters.to_dict()
        files = [result.output_path(key, self._getExtraPath()) for key in result.outputs]
        return result if same and all(path.exists() for path in files) else None

    def _write_failures(self):
        write_json(Path(self._failures_file()), self._failed)
        Path(self._getAllFailed()).write_text("".join(f"{number}\n" for number in self._failed))

    def _failures_file(self):
        return self._getExtraPath("failed_movies.json")

    def _first_failure(self):
        return next(iter(self._failed.values()))["reason"]

    def failed_movies(self) -> list[tuple[str, str]]:
        """Path and reason of each movie that could not be processed."""
        if not os.path.exists(self._failures_file()):
            return []
        return [(item["movie"], item["reason"]) for item in read_json(Path(self._failures_file())).values()]

    # -------------------------------------------------------------------------------------------- information
    def _parameters(self):
        return movie_form.parameters(self)

    def _validate(self):
        movies = self.inputMovies.get()
        if movies is None:
            return []
        errors = [
            f"The {name.replace('_', ' ')} file {path} does not exist."
            for name, path in self._reference_files().items()
            if path and not os.path.exists(path)
        ]
        errors += forms.parameter_errors(self)
        if not errors:
            try:
                self._frame_groups()
            except InputFileError as error:
                errors.append(str(error))
        if movies.getSize():
            first = movies.getFirstItem().getFileName()
            if not os.path.exists(first):
                errors.append(f"The movie {first} does not exist.")
        return errors or self._range_errors(movies)

    def _frame_groups(self):
        path = self.fmIntFile.get()
        return read_frame_groups(path) if path else None

    def _range_errors(self, movies):
        parameters = self._parameters()
        first, last, index = movies.getFramesRange()
        limit = index + last - first
        known = last > 0 and not movie_form.counts_sums(self)
        return [
            f"{name}: expected at most {limit}, the movies' last frame, found {getattr(parameters, name)}"
            for name in ("first_frame", "last_frame", "sum_first_frame", "sum_last_frame")
            if known and getattr(parameters, name) > limit
        ]

    def _summary(self):
        movies = getattr(self, "outputMovies", None)
        lines = [f"{movies.getSize()} movies aligned."] if movies is not None else []
        failed = self.failed_movies()
        if failed:
            lines.append(f"{len(failed)} movies failed:")
            lines += [f"  {os.path.basename(movie)}: {reason}" for movie, reason in failed[:10]]
        return lines

    def _methods(self):
        local = "globally and locally" if self.doLocalAlignment else "globally"
        text = f"Movie frames were aligned {local} [Strelak2020]"
        if self._createOutputWeightedMicrographs():
            text += " and weighted by their dose [Grant2015]"
        return [text + "."]

    def _citations(self):
        return ["Strelak2020", "Strelak2023", "Grant2015"]

    @classmethod
    def worksInStreaming(cls):
        return True

    # ----------------------------------------------------------------------- what the base class and monitors ask
    def _stepsCheck(self):
        """The step itself looks for new movies."""

    def _createOutputWeightedMicrographs(self):
        movies = self.inputMovies.get()
        if not self.doApplyDoseFilter or movies is None:
            return False
        groups = self._frame_groups()
        return bool(movies.getAcquisition().getDosePerFrame() or (groups is not None and groups.has_doses))

    def _doComputeMicThumbnail(self):
        return self.doComputeMicThumbnail.get()
