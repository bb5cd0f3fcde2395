"""Anisotropic magnification: a stretch of the frames about their centre."""

from __future__ import annotations

import numpy as np


class Magnification:
    """The linear map by which the averages are stretched against the frames.

    A feature at ``c + r`` in a frame without motion, ``c`` being the frame's centre, lies at ``c + M r`` in the
    average. ``M`` multiplies lengths along the major axis by `major` and lengths across it by `minor`.

    Parameters
    ----------
    major, minor : float
    angle : float
        Degrees from x towards y of the major axis. MotionCor's ``-Mag A B C`` counts its angle the other way, with
        y pointing down, and stretches along the major axis alone: it is `major` A / B, `minor` 1, `angle` -C.
    shape : (int, int)
        Of the frames; the centre of the pixel grid stays where it is.
    """

    def __init__(self, major, minor, angle, shape):
        axis = np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))])
        self.matrix = minor * np.eye(2) + (major - minor) * np.outer(axis, axis)
        self.centre = (np.asarray(shape, dtype=np.float64) - 1) / 2
        self.is_identity = major == minor == 1.0

    @classmethod
    def from_parameters(cls, parameters, shape):
        """Build from `MovieAlignmentParameters` and the frames' shape."""
        return cls(parameters.mag_major, parameters.mag_minor, parameters.mag_angle, shape)

    def in_frame(self, positions):
        """Where features of the average lie in frames without motion.

        Parameters
        ----------
        positions : array_like, shape (..., 2)
            (y, x) in the unbinned average, px.

        Returns
        -------
        ndarray of float64, shape (..., 2)
        """
        return self.centre + (np.asarray(positions) - self.centre) @ np.linalg.inv(self.matrix).T
