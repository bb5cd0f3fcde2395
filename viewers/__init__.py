"""The viewers of the plugin; Scipion finds those that are imported here."""

from xmipp_accel.viewers.viewer_align_significant import XmippAccelAlignSignificantViewer
from xmipp_accel.viewers.viewer_classify2d import XmippAccelClassify2DViewer
from xmipp_accel.viewers.viewer_movie_alignment import XmippAccelMovieAlignmentViewer
from xmipp_accel.viewers.viewer_reconstruct_fourier import XmippAccelReconstructFourierViewer
from xmipp_accel.viewers.viewer_reconstruct_significant import XmippAccelReconstructSignificantViewer

__all__ = [
    "XmippAccelAlignSignificantViewer",
    "XmippAccelClassify2DViewer",
    "XmippAccelMovieAlignmentViewer",
    "XmippAccelReconstructFourierViewer",
    "XmippAccelReconstructSignificantViewer",
]
