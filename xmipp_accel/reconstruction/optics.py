"""The CTF of each particle, as five numbers that a kernel needs."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.numerics.ctf import ANGSTROM_PER_MILLIMETRE, electron_wavelength


@dataclasses.dataclass(frozen=True)
class ParticleOptics:
    """Optical parameters of n particles, (n,) arrays or scalars: A, A, degrees, degrees, kV, mm, fraction."""

    defocus_u: np.ndarray
    defocus_v: np.ndarray
    defocus_angle: np.ndarray
    phase_shift: np.ndarray
    voltage: np.ndarray
    cs: np.ndarray
    amplitude_contrast: np.ndarray

    @classmethod
    def from_particles(cls, particles) -> ParticleOptics:
        """The optical columns of `particles`."""
        return cls(**{field.name: getattr(particles, field.name) for field in dataclasses.fields(cls)})

    def phase_coefficients(self, count: int, step: float) -> np.ndarray:
        """Coefficients of the CTF's phase in whole samples of a transform.

        The astigmatic term ``cos 2 (phi - angle) k^2`` of :mod:`xmipp_accel.numerics.ctf` is written without
        angles, as ``(kx^2 - ky^2) cos 2 angle + 2 kx ky sin 2 angle``.

        Parameters
        ----------
        count : int
            Number of particles.
        step : float
            1/A between samples.

        Returns
        -------
        (count, 5) float32 array
            Of ``o0 k2 + o1 (kx^2 - ky^2) + o2 2 kx ky - o3 k2^2 + o4``.
        """
        values = [
            np.broadcast_to(np.asarray(getattr(self, f.name), float), count) for f in dataclasses.fields(self)
        ]
        defocus_u, defocus_v, angle, phase_shift, voltage, cs, amplitude = values
        wavelength = electron_wavelength(voltage)
        defocus = np.pi * wavelength * step**2 * 0.5 * np.stack([defocus_u + defocus_v, defocus_u - defocus_v])
        double = 2 * np.deg2rad(angle)
        spherical = 0.5 * np.pi * ANGSTROM_PER_MILLIMETRE * cs * wavelength**3 * step**4
        offset = np.deg2rad(phase_shift) + np.arcsin(amplitude)
        columns = [defocus[0], defocus[1] * np.cos(double), defocus[1] * np.sin(double), spherical, offset]
        return np.stack(columns, axis=1).astype(np.float32)
