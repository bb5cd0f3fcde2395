"""Fourier transforms of whole frames, on a grid whose sides transform fast."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module, good_fft_size
from xmipp_accel.movie_alignment.frame_kernels import continued, turn_phases
from xmipp_accel.movie_alignment.spectra import moving_phases


class FrameGrid:
    """Frames of one shape, continued by their mirror images to even sides without large prime factors.

    Cameras have sides such as 3838 = 2 x 19 x 101, whose transforms take several times as long.

    Parameters
    ----------
    shape : (int, int)
        Of the frames.

    Attributes
    ----------
    shape : (int, int)
    padded : (int, int)
        Of the grid, the same where the frames transform fast as they are.
    """

    def __init__(self, shape):
        self.shape = tuple(shape)
        self.padded = tuple(good_fft_size(length) for length in shape)

    @property
    def frequencies(self):
        """Frequencies (fy, fx) of the half plane, cycles per px."""
        return np.fft.fftfreq(self.padded[0]), np.fft.rfftfreq(self.padded[1])

    def spectra(self, images):
        """Transforms (b, ky, kx) of images (b, ny, nx)."""
        if self.padded != self.shape:
            images = continued(images, self.padded, np.zeros((len(images), 2)))
        return fft_module(images).rfft2(images)

    def moved_spectra(self, images, shifts):
        """Transforms of images translated by `shifts` (b, 2), in px; the images may be overwritten.

        What comes in at one border is the mirror image of what lies there, not the far side of the frame.
        """
        images = continued(images, self.padded, shifts)
        spectra = fft_module(images).rfft2(images)
        fy, fx = self.frequencies
        turn_phases(spectra, *moving_phases(shifts, fy, fx, array_module(spectra)))
        return spectra

    def spectrum(self, frame):
        """Transform (ky, kx) of an image (ny, nx), or what is such a transform already."""
        return self.spectra(frame[None])[0] if frame.dtype.kind == "f" else frame

    def image(self, frame):
        """Image (ny, nx) of a transform (ky, kx), or what is such an image already."""
        if frame.dtype.kind == "f":
            return frame
        return fft_module(frame).irfft2(frame, s=self.padded)[: self.shape[0], : self.shape[1]]
