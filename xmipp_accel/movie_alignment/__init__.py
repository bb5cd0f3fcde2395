"""Movie alignment: global and local motion, averages with and without dose weighting."""

from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
from xmipp_accel.movie_alignment.result import MovieAlignmentResult

__all__ = ["MovieAlignmentExecutor", "MovieAlignmentParameters", "MovieAlignmentResult"]


def __getattr__(name):  # the executor compiles kernels when it is imported; parameters and results must not wait
    if name == "MovieAlignmentExecutor":
        from xmipp_accel.movie_alignment.executor import MovieAlignmentExecutor

        return MovieAlignmentExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
