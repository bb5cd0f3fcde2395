"""Movie alignment: global and local motion, averages with and without dose weighting."""

from xmipp_accel.movie_alignment.executor import MovieAlignmentExecutor
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
from xmipp_accel.movie_alignment.result import MovieAlignmentResult

__all__ = ["MovieAlignmentExecutor", "MovieAlignmentParameters", "MovieAlignmentResult"]
