"""Exposure filter: how much a frame still knows about each frequency.

Critical exposure and optimal weights: T. Grant and N. Grigorieff, eLife 4:e06980 (2015).
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, from_host

# Critical exposure relative to 300 kV; at 100 kV as RELION 5 has it. Linear in between, constant outside.
VOLTAGES = (100.0, 200.0, 300.0)
FACTORS = (0.64, 0.8, 1.0)


def critical_exposure(frequency, voltage=300.0):
    """Exposure (e/A^2) that leaves 1/e of the signal's power; `frequency` in 1/A, infinite at zero."""
    xp = array_module(frequency)
    frequency = xp.asarray(frequency, dtype=xp.float64)
    factor = float(np.interp(voltage, VOLTAGES, FACTORS))
    with np.errstate(divide="ignore"):
        return factor * (0.24499 * frequency**-1.6649 + 2.8141)


def accumulated(exposures):
    """Exposure up to the middle of each frame, from the exposures (e/A^2) of all frames, shape (n,)."""
    return np.cumsum(exposures) - 0.5 * np.asarray(exposures)


class DoseWeights:
    """Weights ``exp(-D / (2 Ne))`` of frames on the half plane of an image.

    Parameters
    ----------
    shape : (int, int)
        Image (ny, nx).
    sampling_rate : float
        A/px.
    received : ndarray, shape (n,)
        Exposure that the specimen has received at each frame that will be summed, e/A^2, as from
        :func:`accumulated`; only differences matter in a
        :class:`xmipp_accel.movie_alignment.averages.WeightedMean`.
    voltage : float
        kV.
    xp : module
        `numpy` or `cupy`.
    """

    def __init__(self, shape, sampling_rate, received, voltage, xp):
        fy, fx = np.fft.fftfreq(shape[0], sampling_rate), np.fft.rfftfreq(shape[1], sampling_rate)
        frequency = xp.hypot(from_host(fy, xp)[:, None], from_host(fx, xp))
        self._rate = (-0.5 / critical_exposure(frequency, voltage)).astype(xp.float32)
        self._received = np.asarray(received, dtype=np.float64)
        self._xp = xp

    def weights(self, frames):
        """Weights of the listed frames, float32 of shape (b, ny, nx // 2 + 1)."""
        received = from_host(self._received[frames], self._xp, np.float32)
        weights = self._rate * received[:, None, None]
        return self._xp.exp(weights, out=weights)
