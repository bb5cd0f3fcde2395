import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.particle_alignment import polar


def blobs(rng, box, n=1, spread=0.15, count=12):
    """Smooth random images whose centred continuous form is known: a sum of Gaussians."""
    axis = np.arange(box) - box // 2
    centres = rng.normal(0, spread * box / 2, (n, count, 2))
    heights = rng.uniform(0.5, 1.5, (n, count))
    return centres, heights, axis


def draw(centres, heights, axis, sigma, matrix=((1, 0), (0, 1)), shift=(0.0, 0.0)):
    """Image whose content is that of the blobs, turned by `matrix` (x, y) and moved by `shift` (y, x)."""
    moved = centres @ np.transpose(matrix)
    x = moved[..., 0] + shift[1]
    y = moved[..., 1] + shift[0]
    row = np.exp(-((axis[:, None] - y[..., None, :]) ** 2) / (2 * sigma**2))
    column = np.exp(-((axis[:, None] - x[..., None, :]) ** 2) / (2 * sigma**2))
    return np.einsum("nyb,nxb,nb->nyx", row, column, heights).astype(np.float32)


@pytest.mark.parametrize("box", [16, 17, 31])
def test_samples_are_the_fourier_transform(device, box):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, box, box)).astype(np.float32)
    grid = polar.polar_grid(box, 5, box * 0.4)
    got = to_host(polar.polar_samples(device.asarray(images), grid))
    axis = np.arange(box) - box // 2
    ky, kx = grid.frequencies
    kernel = np.exp(-2j * np.pi / box * (ky[..., None, None] * axis[:, None] + kx[..., None, None] * axis))
    expected = np.einsum("kpyx,nyx->nkp", kernel, images.astype(np.float64))
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("box", [64, 65])
def test_cropping_changes_nothing_where_an_image_has_no_finer_detail(device, box):
    images, grid = draw(*blobs(np.random.default_rng(4), box, 2), 2.0), polar.polar_grid(box, 10, 24)
    whole = to_host(polar.polar_samples(device.asarray(images), grid))
    cropped = to_host(polar.cropped_samples(device.asarray(images), grid))
    assert 0 < np.abs(cropped - whole).max() < 1e-4 * np.abs(whole).max()


def test_harmonics_are_the_angular_dft(device):
    rng = np.random.default_rng(1)
    grid = polar.PolarGrid(20, 3, 24, 11)
    half = rng.normal(size=(2, 3, 12)) + 1j * rng.normal(size=(2, 3, 12))
    whole = np.concatenate([half, half.conj()], axis=-1)
    expected = np.fft.fft(whole, axis=-1)[..., : grid.n_harmonics] / grid.n_angles
    got = polar.angular_coefficients(device.asarray(half.astype(np.complex64)), grid)
    np.testing.assert_allclose(to_host(got), expected, atol=1e-6)


def test_samples_from_coefficients_is_the_inverse(device):
    rng = np.random.default_rng(2)
    centres, heights, axis = blobs(rng, 32, 2)
    grid = polar.polar_grid(32, 10, 14)
    samples = polar.polar_samples(device.asarray(draw(centres, heights, axis, 2.0)), grid)
    back = polar.samples_from_coefficients(polar.angular_coefficients(samples, grid), grid)
    np.testing.assert_allclose(to_host(back), to_host(samples), atol=1e-4 * float(abs(samples).max()))


@pytest.mark.parametrize("harmonics", [4, 5, 11])
def test_derivatives_by_the_angle_are_those_of_the_harmonics(device, harmonics):
    rng = np.random.default_rng(6)
    grid = polar.PolarGrid(20, 3, 24, harmonics)
    coefficients = (rng.normal(size=(2, 3, harmonics)) + 1j * rng.normal(size=(2, 3, harmonics))).astype(
        np.complex64
    )
    found = to_host(polar.samples_with_derivatives(device.asarray(coefficients), grid))
    assert found.shape == (2, 3, 3, 12)
    for order in range(3):
        derived = coefficients * (1j * np.arange(harmonics)) ** order
        expected = polar.samples_from_coefficients(derived, grid)
        np.testing.assert_allclose(found[:, :, order], expected, atol=1e-5 * np.abs(expected).max())


def test_a_turned_and_shifted_image_has_turned_and_shifted_harmonics(device):
    """The particle at pose (psi, s) is the reference turned by psi; applying s brings it back to the centre."""
    rng = np.random.default_rng(3)
    centres, heights, axis = blobs(rng, 40, 3, spread=0.3)
    centres = np.clip(centres, -9, 9)
    psi, shift = 33.0, (1.7, -2.4)
    c, s = np.cos(np.deg2rad(psi)), np.sin(np.deg2rad(psi))
    turn = np.array([[c, s], [-s, c]])  # A(0, 0, psi): volume to image coordinates
    reference = draw(centres, heights, axis, 1.5)
    particle = draw(centres, heights, axis, 1.5, turn, (-shift[0], -shift[1]))
    grid = polar.polar_grid(40, 12, 16, 4)
    samples = polar.polar_samples(device.asarray(particle), grid)
    samples = samples * polar.shift_phases(grid, shift, device.xp)
    got = polar.angular_coefficients(samples, grid)
    expected = polar.angular_coefficients(polar.polar_samples(device.asarray(reference), grid), grid)
    turned = polar.rotate_coefficients(expected, psi)
    scale = float(abs(expected).max())
    np.testing.assert_allclose(to_host(got), to_host(turned), atol=2e-3 * scale)
    np.testing.assert_allclose(to_host(polar.rotate_coefficients(got, -psi)), to_host(expected), atol=2e-3 * scale)
    assert float(abs(got - expected).max()) > 0.1 * scale


def test_mirroring_along_x_conjugates():
    rng = np.random.default_rng(4)
    centres, heights, axis = blobs(rng, 33)
    image = draw(centres, heights, axis, 2.0)
    mirrored = draw(centres * [-1, 1], heights, axis, 2.0)
    grid = polar.polar_grid(33, 8, 12)
    one, other = (polar.angular_coefficients(polar.polar_samples(i, grid), grid) for i in (image, mirrored))
    np.testing.assert_allclose(polar.mirror_coefficients(one), other, atol=1e-4 * np.abs(one).max())


def test_images_come_back(device):
    rng = np.random.default_rng(5)
    centres, heights, axis = blobs(rng, 32, 2)
    image = draw(centres, heights, axis, 2.5)
    grid = polar.polar_grid(32, 15, 15)
    back = to_host(polar.images_from_samples(polar.polar_samples(device.asarray(image), grid), grid))
    image = image - image.mean(axis=(1, 2), keepdims=True)
    for a, b in zip(image, back):
        inside = polar.soft_circle(32, 11, 1) > 0.5
        assert np.corrcoef(a[inside], b[inside])[0, 1] > 0.999
        assert np.polyfit(a[inside], b[inside], 1)[0] == pytest.approx(1, abs=0.05)


def test_ring_energy_is_the_mean_power():
    rng = np.random.default_rng(6)
    centres, heights, axis = blobs(rng, 32, 2)
    grid = polar.polar_grid(32, 10, 14)
    samples = polar.polar_samples(draw(centres, heights, axis, 2.0), grid)
    energy = polar.ring_energy(polar.angular_coefficients(samples, grid), grid)
    np.testing.assert_allclose(energy, (np.abs(samples) ** 2).mean(-1), rtol=1e-3)


def test_weights_grow_with_the_ring_and_fall_with_the_noise():
    grid = polar.polar_grid(32, 4, 14)
    np.testing.assert_allclose(polar.ring_weights(grid), [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(polar.ring_weights(grid, [1, 2, 3, 4]), [0.25] * 4)


def test_mask_removes_the_mean_and_the_corners(device):
    images = np.full((2, 9, 9), 3.0, np.float32)
    images[1, 4, 4] = 5
    mask = polar.soft_circle(9, 3, 1)
    masked = to_host(polar.mask_images(device.asarray(images), device.asarray(mask)))
    np.testing.assert_allclose(masked[0], 0, atol=1e-6)
    assert masked[1, 0, 0] == 0 and masked[1, 4, 4] > 1
    assert abs(masked[1].sum()) < 1e-4
