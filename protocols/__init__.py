"""The protocols of the plugin; Scipion finds those that are imported here."""

from xmipp_accel.protocols.protocol_align_significant import XmippAccelProtAlignSignificant
from xmipp_accel.protocols.protocol_classify2d import XmippAccelProtClassify2D
from xmipp_accel.protocols.protocol_import_particles import XmippAccelProtImportParticles
from xmipp_accel.protocols.protocol_movie_alignment import XmippAccelProtMovieAlignment
from xmipp_accel.protocols.protocol_reconstruct_fourier import XmippAccelProtReconstructFourier
from xmipp_accel.protocols.protocol_reconstruct_significant import XmippAccelProtReconstructSignificant

__all__ = [
    "XmippAccelProtAlignSignificant",
    "XmippAccelProtClassify2D",
    "XmippAccelProtImportParticles",
    "XmippAccelProtMovieAlignment",
    "XmippAccelProtReconstructFourier",
    "XmippAccelProtReconstructSignificant",
]
