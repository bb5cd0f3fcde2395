"""What became of the movies: traces, local motion, micrographs, and how much they moved in all."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from pyworkflow.protocol import params

from xmipp_accel.io.images import read_image
from xmipp_accel.movie_alignment.result import MovieAlignmentResult
from xmipp_accel.protocols import XmippAccelProtMovieAlignment
from xmipp_accel.report import figures
from xmipp_accel.viewers.base import AccelViewer


class XmippAccelMovieAlignmentViewer(AccelViewer):
    """Shows the motion of one movie, and that of all."""

    _targets = [XmippAccelProtMovieAlignment]
    _label = "movie alignment viewer"
    PICTURES = (
        ("trace", "Frame shifts of the movie"),
        ("local", "Local motion of the movie"),
        ("micrograph", "Micrograph of the movie"),
        ("spectra", "Power spectra of the movie"),
        ("motion", "Motion of all movies"),
        ("failures", "Movies that failed"),
    )

    def _define_choices(self, form):
        first = self.protocol.outputMovies.getFirstItem() if self.protocol.hasAttribute("outputMovies") else None
        form.addParam(
            "movieId",
            params.IntParam,
            default=first.getObjId() if first is not None else 1,
            label="Movie (id)",
            help="Its number in the output movies.",
        )

    def _movie(self):
        if not self.protocol.hasAttribute("outputMovies"):
            return None, "No movie has been aligned."
        movie = self.protocol.outputMovies[self.movieId.get()]
        return movie, "" if movie is not None else f"There is no movie {self.movieId.get()}."

    def _result(self):
        movie, reason = self._movie()
        return reason if movie is None else MovieAlignmentResult.from_json(str(movie._xmipp_accel_result))

    def figure_trace(self):
        result = self._result()
        if isinstance(result, str):
            return result
        return figures.movie_traces(result.shifts, result.name, result.shift_errors)

    def figure_local(self):
        result = self._result()
        if isinstance(result, str):
            return result
        if not result.control_points.size:
            return f"{result.name} has no local motion. {result.reason}"
        return figures.local_field(result.field, result.shape, result.shifts, result.name)

    def figure_micrograph(self):
        for name in ("outputMicrographs", "outputMicrographsDoseWeighted"):
            micrographs = getattr(self.protocol, name, None)
            item = None if micrographs is None else micrographs[self.movieId.get()]
            if item is not None:
                return figures.micrograph_image(read_image(item.getFileName())[0], item.getMicName())
        return f"There is no micrograph of movie {self.movieId.get()}."

    def figure_spectra(self):
        result = self._result()
        if isinstance(result, str):
            return result
        if "power_spectrum" not in result.outputs:
            return f"The power spectra of {result.name} were not computed."
        keys = "power_spectrum_initial", "power_spectrum"
        before, after = (read_image(result.output_path(key, self.protocol._getExtraPath()))[0] for key in keys)
        return figures.power_spectra(before, after, result.name)

    def figure_motion(self):
        if not self.protocol.hasAttribute("outputMovies"):
            return "No movie has been aligned."
        motions = np.array(
            [
                (float(m._rlnAccumMotionEarly), float(m._rlnAccumMotionLate))
                for m in self.protocol.outputMovies.iterItems()
            ]
        )
        return motion_figure(motions)

    def figure_failures(self):
        failed = self.protocol.failed_movies()
        return "\n".join(f"{movie}: {reason}" for movie, reason in failed) or "No movie failed."


def motion_figure(motions) -> Figure:
    """Accumulated motion of every movie, and its histogram.

    Parameters
    ----------
    motions : (n, 2) array
        Before and after the first 4 e/A^2, in A.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    series, histogram = figure.subplots(1, 2, width_ratios=(2, 1))
    numbers = np.arange(1, len(motions) + 1)
    series.plot(numbers, motions.sum(axis=1), ".", ms=4, label="total")
    series.plot(numbers, motions[:, 0], ".", ms=4, label="first 4 e/A$^2$")
    series.set(xlabel="movie", ylabel="accumulated motion (A)", ylim=(0, None))
    series.legend(frameon=False)
    histogram.hist(motions.sum(axis=1), bins=min(30, max(5, len(motions) // 5)))
    histogram.set(xlabel="accumulated motion (A)", ylabel="movies")
    return figure
