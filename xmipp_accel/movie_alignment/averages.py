"""Running averages of frames, with and without weights, for even and odd frames."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module
from xmipp_accel.movie_alignment.frame_kernels import add_weighted


class WeightedMean:
    """Average of frames that show one scene with different amplitudes.

    Frame t is ``F_t(f) = v_t w_t(f) S(f) + N_t(f)``, with noise of power ``v_t``: where electrons are counted,
    signal and noise power both grow with the frame's own exposure. Of all sums of frames, ``sum w_t F_t`` has the
    highest signal-to-noise ratio at each frequency: it is the matched filter, and the exposure filter of T. Grant
    and N. Grigorieff, eLife 4:e06980 (2015), where ``w_t = exp(-D_t / (2 Ne(f)))``; their restoration of the noise
    is taken as well. The sum is multiplied by ``sqrt(sum v_t / sum(v_t w_t^2)) / n``: its noise then has the power
    of the plain mean's at each frequency, and equal weights give the plain mean.

    Frames come either all as images without weights or all as half-plane transforms.
    """

    def __init__(self):
        self.total = self._power = None
        self.count, self._plain_power = 0, 0.0

    def add(self, frame, weight=None, noise=1.0):
        """Add a frame.

        Parameters
        ----------
        frame : array
            Image (ny, nx), or its transform (ny, nx // 2 + 1).
        weight : array of float32, optional
            The amplitude ``w_t`` of each frequency of a transform; 1 by default.
        noise : float
            The power ``v_t``, in any unit; it must not be 0 for all frames.
        """
        self.count += 1
        if weight is None:
            self.total = _added(self.total, frame)
            return
        if self.total is None:
            xp = array_module(frame)
            self.total, self._power = xp.zeros_like(frame), xp.zeros(frame.shape, dtype=xp.float32)
        add_weighted(self.total, self._power, frame, weight, noise)
        self._plain_power += noise

    def __add__(self, other):
        """Average of the frames of both; neither is changed."""
        if not (self.count and other.count):
            return other if other.count else self
        both = WeightedMean()
        both.total, both.count = self.total + other.total, self.count + other.count
        if self._power is not None:
            both._power = self._power + other._power
            both._plain_power = self._plain_power + other._plain_power
        return both

    def mean(self):
        """Return the average, as an image or a transform like the frames."""
        xp = array_module(self.total)
        if self._power is None:
            return self.total / xp.float32(self.count)
        # Where no frame shows anything the sum is zero as well.
        power = xp.maximum(self._power, xp.float32(1e-30))
        return self.total * (xp.sqrt(xp.float32(self._plain_power) / power) / xp.float32(self.count))


def _added(total, array):
    """Add in place; a total that does not exist yet becomes a copy."""
    if total is None:
        return array.copy()
    total += array
    return total


class Halves:
    """The averages of the frames with odd and with even numbers, counted from 1."""

    def __init__(self):
        self.odd, self.even = WeightedMean(), WeightedMean()

    def add(self, index, frame, weight=None, noise=1.0):
        """Add the frame with this index, counted from 0; otherwise as :meth:`WeightedMean.add`."""
        (self.even if index % 2 else self.odd).add(frame, weight, noise)

    @property
    def complete(self):
        """Whether there are frames in both."""
        return min(self.odd.count, self.even.count) > 0

    def all(self):
        """Average of all frames."""
        return self.odd + self.even


def half_plane(frame):
    """Transform (ny, nx // 2 + 1) of an image, or what is such a transform already."""
    return fft_module(frame).rfft2(frame) if frame.dtype.kind == "f" else frame


def in_frame_weight(shape, motion, xp):
    """Amplitude that is left of a frame whose scene moves evenly while it is exposed.

    Parameters
    ----------
    shape : (int, int)
        Of the frame (ny, nx).
    motion : (float, float)
        (y, x) in px from the beginning to the end of the exposure.
    xp : module
        `numpy` or `cupy`.

    Returns
    -------
    array of float32, shape (ny, nx // 2 + 1)
        ``sin(pi f.motion) / (pi f.motion)``, the transform of a straight line; negative where the contrast is
        reversed.
    """
    fy, fx = np.fft.fftfreq(shape[0]) * motion[0], np.fft.rfftfreq(shape[1]) * motion[1]
    return xp.sinc(xp.asarray(fy.astype(np.float32))[:, None] + xp.asarray(fx.astype(np.float32))[None])
