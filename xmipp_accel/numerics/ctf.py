"""Contrast transfer function with RELION's sign: positive at low frequency for white particles under focus.

``CTF(k) = sin(pi lambda z(phi) k^2 - pi/2 Cs lambda^3 k^4 + phase_shift + atan(Q / sqrt(1 - Q^2)))`` with
``z(phi) = (z_u + z_v) / 2 + (z_u - z_v) / 2 cos 2 (phi - defocus_angle)``, ``k`` in 1/A (Rohou and Grigorieff,
J. Struct. Biol. 192 (2015), 216; the sign is RELION's, which is the opposite of Xmipp's).
"""

from __future__ import annotations

import numpy as np

ANGSTROM_PER_MILLIMETRE = 1e7


def electron_wavelength(voltage):
    """Relativistic wavelength in A of electrons accelerated by `voltage` kV (scalar or array)."""
    volts = np.asarray(voltage, dtype=np.float64) * 1e3
    return 12.2643 / np.sqrt(volts * (1.0 + 0.978466e-6 * volts))


def ctf_at(
    k2,
    angle,
    defocus_u,
    defocus_v=None,
    defocus_angle=0.0,
    voltage=300.0,
    cs=2.7,
    amplitude_contrast=0.1,
    phase_shift=0.0,
    xp=np,
):
    """CTF at arbitrary frequencies.

    Parameters
    ----------
    k2 : array_like
        Squared spatial frequency, 1/A^2.
    angle : array_like
        Direction of the frequency, radians from x towards y; broadcast against `k2`.
    defocus_u, defocus_v : float or (n,) array_like
        Defocus in A along `defocus_angle` and across it, positive under focus; `defocus_v` None means no
        astigmatism.
    defocus_angle, phase_shift : float or (n,) array_like
        Degrees.
    voltage, cs, amplitude_contrast : float or (n,) array_like
        kV, mm, and a fraction of 1.
    xp : module
        `numpy` or `cupy`, where the result is made.

    Returns
    -------
    float32 array
        Shape of the frequencies, behind an axis for the particles if any optical value is an array.
    """
    optics = [defocus_u, defocus_u if defocus_v is None else defocus_v, defocus_angle, voltage, cs]
    optics += [amplitude_contrast, phase_shift]
    optics = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in optics))
    k2 = xp.asarray(k2, dtype=np.float64)
    angle = xp.asarray(angle, dtype=np.float64)
    dimensions = max(k2.ndim, angle.ndim)
    defocus_u, defocus_v, defocus_angle, voltage, cs, amplitude_contrast, phase_shift = (
        xp.asarray(value.reshape(value.shape + (1,) * dimensions)) for value in optics
    )
    wavelength = xp.asarray(electron_wavelength(optics[3]).reshape(voltage.shape))
    mean, half_difference = 0.5 * (defocus_u + defocus_v), 0.5 * (defocus_u - defocus_v)
    defocus = mean + half_difference * xp.cos(2.0 * (angle - xp.deg2rad(defocus_angle)))
    spherical = 0.5 * np.pi * ANGSTROM_PER_MILLIMETRE * cs * wavelength**3
    phase = np.pi * wavelength * defocus * k2 - spherical * k2 * k2
    phase = phase + xp.deg2rad(phase_shift) + xp.arcsin(amplitude_contrast)
    return xp.sin(phase).astype(np.float32)


def ctf_image(
    size,
    sampling_rate,
    defocus_u,
    defocus_v=None,
    defocus_angle=0.0,
    voltage=300.0,
    cs=2.7,
    amplitude_contrast=0.1,
    phase_shift=0.0,
    xp=np,
):
    """CTF on the frequency grid of ``rfft2``.

    Parameters
    ----------
    size : int or (int, int)
        Edge, or (ny, nx), of the image in px.
    sampling_rate : float
        A/px.
    defocus_u, defocus_v, defocus_angle, voltage, cs, amplitude_contrast, phase_shift
        As in :func:`ctf_at`: scalars, or one value a particle.
    xp : module
        `numpy` or `cupy`.

    Returns
    -------
    float32 array
        (ny, nx // 2 + 1), or (n, ny, nx // 2 + 1) if any optical value is an array of length n.
    """
    ny, nx = (size, size) if np.ndim(size) == 0 else size
    ky = xp.asarray(np.fft.fftfreq(ny, sampling_rate))[:, None]
    kx = xp.asarray(np.fft.rfftfreq(nx, sampling_rate))[None]
    return ctf_at(
        kx * kx + ky * ky,
        xp.arctan2(ky, kx),
        defocus_u,
        defocus_v,
        defocus_angle,
        voltage,
        cs,
        amplitude_contrast,
        phase_shift,
        xp,
    )
