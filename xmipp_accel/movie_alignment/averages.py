"""Running averages of frames, with and without weights, for even and odd frames."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, from_host
from xmipp_accel.movie_alignment.frame_kernels import add_frames


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

    def __init__(self, total=None, count=0):
        self.total, self.count = total, count
        self._power, self._plain_power = None, 0.0

    def add(self, frames, weights=None, noise=None, which=None):
        """Add frames.

        Parameters
        ----------
        frames : array of float32 or complex64, shape (b, ny, nx) or (b, ny, nx // 2 + 1)
            Images or their transforms.
        weights : array of float32, optional
            The amplitudes ``w_t`` of each frequency of the transforms; 1 by default.
        noise : array_like, shape (b,), optional
            The powers ``v_t``, in any unit, of which at least one is not 0; 1 by default.
        which : sequence of int, optional
            Those of the frames that are added; all by default.
        """
        which = np.arange(len(frames)) if which is None else np.asarray(which, dtype=int)
        noise = np.ones(len(which)) if noise is None else np.asarray(noise)[which]
        xp = array_module(frames)
        if self.total is None:
            self.total = xp.zeros(frames.shape[1:], dtype=frames.dtype)
        if weights is not None and self._power is None:
            self._power = xp.zeros(frames.shape[1:], dtype=xp.float32)
        add_frames(self.total, self._power, frames, which, weights, noise)
        self.count += len(which)
        self._plain_power += float(noise.sum())

    def __add__(self, other):
        """Average of the frames of both; neither is changed."""
        if not (self.count and other.count):
            return other if other.count else self
        both = WeightedMean(self.total + other.total, self.count + other.count)
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


class Halves:
    """The averages of the frames with odd and with even numbers, counted from 1."""

    def __init__(self):
        self.odd, self.even = WeightedMean(), WeightedMean()

    @classmethod
    def of_movie(cls, movie, frames, first_frame=0):
        """Those of listed frames of a :class:`PreparedMovie`, which begins with the file's frame `first_frame`."""
        halves = cls()
        for parity, half in enumerate((halves.odd, halves.even)):
            members = [t for t in frames if (first_frame + t) % 2 == parity]
            if members:
                half.total, half.count = movie.sum(members), len(members)
        return halves

    def add(self, indices, frames, weights=None, noise=None, which=None):
        """Add frames with these `indices` (b,), counted from 0; otherwise as :meth:`WeightedMean.add`."""
        which = np.arange(len(frames)) if which is None else np.asarray(which, dtype=int)
        for parity, half in enumerate((self.odd, self.even)):
            members = which[np.asarray(indices)[which] % 2 == parity]
            if len(members):
                half.add(frames, weights, noise, members)

    @property
    def complete(self):
        """Whether there are frames in both."""
        return min(self.odd.count, self.even.count) > 0

    def all(self):
        """Average of all frames."""
        return self.odd + self.even


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
    return xp.sinc(from_host(fy, xp, np.float32)[:, None] + from_host(fx, xp, np.float32))
