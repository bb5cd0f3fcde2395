"""The CTF of each particle, as the few numbers that a kernel needs."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.errors import ParameterError
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

    def take(self, rows) -> ParticleOptics:
        """Those of the particles at `rows`."""
        values = {field.name: np.asarray(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return ParticleOptics(**{name: value[rows] if value.ndim else value for name, value in values.items()})

    def phase_coefficients(self, count: int, step: float, magnification=None) -> np.ndarray:
        """Coefficients of the CTF's phase in whole samples of a transform.

        With the frequency ``M k`` of the specimen at the sample ``k``, defocus with its astigmatism remains a
        quadratic form of ``k``, and the spherical term is the square of another one, ``|M k|^2``. Written as
        ``q(f; k) = f0 (kx^2 + ky^2) + f1 (kx^2 - ky^2) + f2 2 kx ky``, the phase is
        ``q(d; k) - q(s; k)^2 + offset``.

        Parameters
        ----------
        count : int
            Number of particles.
        step : float
            1/A between samples.
        magnification : (2, 2) array_like, optional
            ``M``, as in :mod:`xmipp_accel.numerics.aberrations`; None means the identity.

        Returns
        -------
        (count, 7) float32 array
            d0, d1, d2, s0, s1, s2, offset.

        Raises
        ------
        ParameterError
            A spherical aberration is negative, whose term is no square.
        """
        defocus, spherical, offset = self._terms(count, step)
        if (spherical < 0).any():
            raise ParameterError(f"cs: expected a spherical aberration of 0 or more, found {np.min(self.cs):g} mm")
        m = np.eye(2) if magnification is None else np.asarray(magnification, dtype=np.float64)
        mean, difference, cross = defocus
        square = np.stack([mean + difference, cross, cross, mean - difference], axis=1).reshape(count, 2, 2)
        radius = np.sqrt(spherical) * _form(m.T @ m)[:, None]
        return np.stack([*_form(m.T @ square @ m), *radius, offset], axis=1).astype(np.float32)

    def _terms(self, count, step):
        """Defocus form (3, count), spherical factor and offset (count,), float64, for whole samples."""
        values = [
            np.broadcast_to(np.asarray(getattr(self, f.name), float), count) for f in dataclasses.fields(self)
        ]
        defocus_u, defocus_v, angle, phase_shift, voltage, cs, amplitude = values
        wavelength = electron_wavelength(voltage)
        mean, deviation = 0.5 * (defocus_u + defocus_v), 0.5 * (defocus_u - defocus_v)
        double = 2 * np.deg2rad(angle)
        form = np.stack([mean, deviation * np.cos(double), deviation * np.sin(double)])
        spherical = 0.5 * np.pi * ANGSTROM_PER_MILLIMETRE * cs * wavelength**3 * step**4
        return np.pi * wavelength * step**2 * form, spherical, np.deg2rad(phase_shift) + np.arcsin(amplitude)


def _form(square) -> np.ndarray:
    """Coefficients (3, ...) of ``k^T S k`` in kx^2 + ky^2, kx^2 - ky^2 and 2 kx ky for symmetric S (..., 2, 2)."""
    xx, yy = square[..., 0, 0], square[..., 1, 1]
    return np.stack([0.5 * (xx + yy), 0.5 * (xx - yy), square[..., 0, 1]])
