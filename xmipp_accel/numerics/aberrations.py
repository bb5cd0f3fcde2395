"""Phases of lens aberrations and the geometry of anisotropic magnification, in RELION's conventions.

RELION describes an image of a particle, whose projection has the transform ``P``, by::

    F(k) = exp(i odd(k)) sin(chi(M k) - even(k)) P(M k)

``k`` is a frequency of the image in 1/A, ``M`` the magnification matrix (rlnMagMat), ``chi`` the phase of
:mod:`xmipp_accel.numerics.ctf`, ``odd`` and ``even`` the phases below. So a reconstruction multiplies by
``exp(-i odd)``, uses the CTF ``sin(chi(M k) - even(k))``, and places the sample at ``M k``.

The formulas are those of Zivanov, Nakane and Scheres (IUCrJ 7 (2020), 253) as RELION 3.1 to 5 apply them
(obs_model.cpp: getPhaseCorrection, getGammaOffset, demodulatePhase, applyAnisoMag; tilt_helper.cpp: insertTilt;
Zernike.cpp; ctf.h: getCTF, whose gamma is -chi). The polynomials are not normalised and their radius is in 1/A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from xmipp_accel.backend import array_module
from xmipp_accel.numerics.ctf import ANGSTROM_PER_MILLIMETRE, electron_wavelength

_RADIAN_PER_MILLIRADIAN = 1e-3


def true_frequencies(kx, ky, magnification=None):
    """Frequencies ``M k`` of the specimen that appear at (kx, ky).

    Parameters
    ----------
    kx, ky : float arrays, NumPy or CuPy
        Frequencies of the image in any unit; broadcast against each other.
    magnification : (2, 2) array_like, optional
        None means the identity.

    Returns
    -------
    (float64 array, float64 array)
        x and y.
    """
    xp = array_module(kx)
    kx, ky = xp.asarray(kx, dtype=np.float64), xp.asarray(ky, dtype=np.float64)
    if magnification is None:
        return kx, ky
    m = np.asarray(magnification, dtype=np.float64).tolist()
    return m[0][0] * kx + m[0][1] * ky, m[1][0] * kx + m[1][1] * ky


def odd_phase(kx, ky, odd_zernike=(), beam_tilt=(0.0, 0.0), voltage=300.0, cs=2.7, magnification=None):
    """Phase by which beam tilt and other antisymmetric aberrations advance the transform of an image.

    A beam tilt ``t`` contributes ``-2 pi Cs lambda^2 |k|^2 (k . t)``.

    Parameters
    ----------
    kx, ky : float arrays, NumPy or CuPy
        Frequencies of the image, 1/A; broadcast against each other.
    odd_zernike : sequence of float
        Coefficients (rlnOddZernike), radians, ordered as :func:`odd_order` tells.
    beam_tilt : (float, float)
        (x, y), mrad.
    voltage, cs : float
        kV, mm.
    magnification : (2, 2) array_like, optional

    Returns
    -------
    float64 array
        Radians.
    """
    kx, ky = true_frequencies(kx, ky, magnification)
    phase = _zernike_sum(kx, ky, odd_zernike, odd_order)
    scale = 2 * np.pi * ANGSTROM_PER_MILLIMETRE * cs * float(electron_wavelength(voltage)) ** 2
    tilt_x, tilt_y = (float(angle) * _RADIAN_PER_MILLIRADIAN * scale for angle in beam_tilt)
    return phase - (kx * kx + ky * ky) * (tilt_x * kx + tilt_y * ky)


def even_phase(kx, ky, even_zernike=(), magnification=None):
    """Phase that symmetric aberrations subtract from that of the CTF.

    Parameters
    ----------
    kx, ky : float arrays, NumPy or CuPy
        Frequencies of the image, 1/A; broadcast against each other.
    even_zernike : sequence of float
        Coefficients (rlnEvenZernike), radians, ordered as :func:`even_order` tells.
    magnification : (2, 2) array_like, optional

    Returns
    -------
    float64 array
        Radians.
    """
    kx, ky = true_frequencies(kx, ky, magnification)
    return _zernike_sum(kx, ky, even_zernike, even_order)


def odd_order(index: int) -> tuple[int, int]:
    """Degree n and azimuthal order m of the odd coefficient `index`: (1, -1), (1, 1), (3, -3), (3, -1)..."""
    level = (math.isqrt(1 + 4 * index) - 1) // 2
    degree = 2 * level + 1
    return degree, 2 * (index - level * (level + 1)) - degree


def even_order(index: int) -> tuple[int, int]:
    """Degree n and azimuthal order m of the even coefficient `index`: (0, 0), (2, -2), (2, 0), (2, 2)..."""
    level = math.isqrt(index)
    return 2 * level, 2 * (index - level * (level + 1))


def zernike(degree: int, order: int, x, y):
    """Zernike polynomial ``R(rho) cos(m phi)``, or ``R(rho) sin(|m| phi)`` for negative orders.

    ``R(rho) = sum_j (-1)^j (n - j)! / (j! ((n + |m|) / 2 - j)! ((n - |m|) / 2 - j)!) rho^(n - 2j)`` divided by
    ``rho^|m|`` is a polynomial in ``rho^2``, and ``rho^|m| exp(i |m| phi)`` is ``(x + iy)^|m|``.

    Parameters
    ----------
    degree, order : int
        n and m with ``|m| <= n`` and n - m even.
    x, y : float arrays
        Broadcast against each other.
    """
    m = abs(order)
    rho2 = x * x + y * y
    radial = 0.0 * rho2
    for j in range((degree - m) // 2 + 1):
        factor = math.factorial(degree - j) / (
            math.factorial(j) * math.factorial((degree + m) // 2 - j) * math.factorial((degree - m) // 2 - j)
        )
        radial = radial + (-1) ** j * factor * rho2 ** ((degree - m) // 2 - j)
    turn = (x + 1j * y) ** m
    return radial * (turn.real if order >= 0 else turn.imag)


def _zernike_sum(kx, ky, coefficients: Sequence[float], order_of: Callable[[int], tuple[int, int]]):
    total = 0.0 * (kx + ky)
    for index, coefficient in enumerate(coefficients):
        if coefficient:
            total = total + float(coefficient) * zernike(*order_of(index), kx, ky)
    return total


def volume_axes(matrices, magnification=None, ratio: float = 1.0) -> np.ndarray:
    """Where the samples of images lie in the transform of the volume.

    The sample (ky, kx) lies at ``a kx + b ky``, which is ``R^T M (kx, ky)``: anisotropic magnification makes the
    axes oblique and of unequal lengths.

    Parameters
    ----------
    matrices : (n, 3, 3) array_like
        Volume to image coordinates, as `numerics.rotations.euler_to_matrix` returns.
    magnification : (2, 2) array_like, optional
    ratio : float
        Voxels of the volume's transform per sample of the images' transforms.

    Returns
    -------
    (n, 3, 3) float64 array
        Rows ``a``, ``b`` and the unit viewing direction, in the volume's (x, y, z).
    """
    axes = np.array(matrices, dtype=np.float64)
    m = np.eye(2) if magnification is None else np.asarray(magnification, dtype=np.float64)
    axes[:, :2] = ratio * np.einsum("ij,nik->njk", m, axes[:, :2])
    return axes
