"""Aberrations against polynomials written out and RELION's own definition in polar coordinates."""

import math

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.numerics.aberrations import (
    even_order,
    even_phase,
    odd_order,
    odd_phase,
    true_frequencies,
    volume_axes,
    zernike,
)
from xmipp_accel.numerics.ctf import electron_wavelength
from xmipp_accel.numerics.rotations import euler_to_matrix

MAGNIFICATION = np.array([[1.02, 0.013], [0.004, 0.985]])
KY, KX = np.meshgrid(np.linspace(-0.3, 0.3, 7), np.linspace(-0.31, 0.29, 6), indexing="ij")


def polar_zernike(n, m, x, y):
    """The textbook form, with an angle."""
    rho, phi, radial = np.hypot(x, y), np.arctan2(y, x), 0.0
    for j in range((n - abs(m)) // 2 + 1):
        factors = (j, (n + abs(m)) // 2 - j, (n - abs(m)) // 2 - j)
        radial += (-1) ** j * math.factorial(n - j) / math.prod(map(math.factorial, factors)) * rho ** (n - 2 * j)
    return radial * (np.cos(m * phi) if m >= 0 else np.sin(-m * phi))


def test_orders_are_those_of_relion():
    """Its own list of the first odd ones, and its rows of even ones: n, m in the order of the coefficients."""
    odd = [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3), (5, -5), (5, -3), (5, -1), (5, 1), (5, 3), (5, 5)]
    assert [odd_order(i) for i in range(12)] == odd and odd_order(12) == (7, -7)
    even = [(0, 0), (2, -2), (2, 0), (2, 2), (4, -4), (4, -2), (4, 0), (4, 2), (4, 4), (6, -6)]
    assert [even_order(i) for i in range(10)] == even


@pytest.mark.parametrize("index", range(20))
def test_polynomials_equal_their_polar_form(index):
    for order in (odd_order(index), even_order(index)):
        np.testing.assert_allclose(zernike(*order, KX, KY), polar_zernike(*order, KX, KY), rtol=1e-12, atol=1e-14)


def test_low_polynomials_written_out():
    r2 = KX**2 + KY**2
    np.testing.assert_allclose(zernike(3, 1, KX, KY), (3 * r2 - 2) * KX, atol=1e-15)
    np.testing.assert_allclose(zernike(3, -1, KX, KY), (3 * r2 - 2) * KY, atol=1e-15)
    np.testing.assert_allclose(zernike(2, -2, KX, KY), 2 * KX * KY, atol=1e-15)
    np.testing.assert_allclose(zernike(4, 0, KX, KY), 6 * r2**2 - 6 * r2 + 1, atol=1e-15)


def test_coefficients_add_up_at_the_frequencies_of_the_specimen(device):
    odd, even = np.random.default_rng(0).normal(size=(2, 9))
    x, y = np.einsum("ij,jab->iab", MAGNIFICATION, [KX, KY])
    kx, ky = device.asarray(KX), device.asarray(KY)
    found = to_host(odd_phase(kx, ky, odd, magnification=MAGNIFICATION))
    expected = sum(value * polar_zernike(*odd_order(i), x, y) for i, value in enumerate(odd))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    found = to_host(even_phase(kx, ky, even, magnification=MAGNIFICATION))
    expected = sum(value * polar_zernike(*even_order(i), x, y) for i, value in enumerate(even))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    # Opposite frequencies see the opposite and the same phase, as transforms of real images need.
    np.testing.assert_allclose(odd_phase(-KX, -KY, odd), -odd_phase(KX, KY, odd), atol=1e-15)
    np.testing.assert_allclose(even_phase(-KX, -KY, even), even_phase(KX, KY, even), atol=1e-15)


@pytest.mark.parametrize("voltage, cs", [(300.0, 2.7), (200.0, 1.4)])
def test_beam_tilt_is_relions_pair_of_zernike_coefficients(voltage, cs):
    """insertTilt: Z(3, 1) gets -scale tx / 3 and Z(1, 1) twice that, scale = 20000 pi Cs lambda^2; so for y."""
    tilt_x, tilt_y = 0.7, -1.1
    scale = 20000 * np.pi * cs * electron_wavelength(voltage) ** 2
    coefficients = -scale / 3 * np.array([2 * tilt_y, 2 * tilt_x, 0, tilt_y, tilt_x])
    expected = odd_phase(KX, KY, coefficients, magnification=MAGNIFICATION)
    found = odd_phase(KX, KY, (), (tilt_x, tilt_y), voltage, cs, MAGNIFICATION)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(found).max() > 0.1
    both = odd_phase(KX, KY, coefficients, (tilt_x, tilt_y), voltage, cs, MAGNIFICATION)
    np.testing.assert_allclose(both, 2 * expected, rtol=1e-12, atol=1e-12)


def test_beam_tilt_of_one_frequency():
    """1 mrad at 3 A, 300 kV, Cs 2.7 mm: 2 pi 2.7e7 A (0.019687 A)^2 1e-3 / 27 A^3, against the tilt."""
    assert odd_phase(1 / 3, 0.0, (), (1.0, 5.0)) == pytest.approx(-2.4353, rel=1e-4)
    assert odd_phase(0.0, 1 / 3, (), (5.0, 1.0)) == pytest.approx(-2.4353, rel=1e-4)


def test_samples_lie_at_the_frequencies_of_the_specimen():
    matrices = euler_to_matrix([10.0, 200.0], [50.0, 110.0], [-30.0, 77.0])
    axes = volume_axes(matrices, MAGNIFICATION, 1.7)
    kx, ky = 3.0, -2.0
    x, y = true_frequencies(kx, ky, MAGNIFICATION)
    expected = 1.7 * np.einsum("nij,i->nj", matrices, [x, y, 0.0])
    np.testing.assert_allclose(axes[:, 0] * kx + axes[:, 1] * ky, expected, atol=1e-14)
    np.testing.assert_array_equal(axes[:, 2], matrices[:, 2])
    np.testing.assert_array_equal(volume_axes(matrices), matrices)
