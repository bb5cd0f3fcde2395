import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference.fourier_sample import fourier_sample
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import euler_to_matrix, random_matrices


def phantom(box, rng, count=10):
    axis = np.arange(box) - box // 2
    centres = rng.uniform(-0.2 * box, 0.2 * box, (count, 3))
    z, y, x = (np.exp(-((axis - centres[:, i, None]) ** 2) / (2 * (box / 16) ** 2)) for i in (2, 1, 0))
    return np.einsum("bz,by,bx->zyx", z, y, x).astype(np.float32)


@pytest.mark.parametrize("box", [11, 16, 24])
def test_samples_against_the_definition(device, box):
    rng = np.random.default_rng(0)
    volume = phantom(box, rng) + rng.normal(0, 0.05, (box,) * 3).astype(np.float32)
    points = rng.uniform(-1, 1, (200, 3)) * box / 5
    spectrum = VolumeSpectrum(device.asarray(volume), np.linalg.norm(points, axis=1).max())
    got = to_host(spectrum.sample(device.asarray(points, dtype=np.float32)))
    expected = fourier_sample(volume, points)
    np.testing.assert_allclose(got, expected, atol=2e-3 * abs(expected).max())
    finer = VolumeSpectrum(device.asarray(volume), np.linalg.norm(points, axis=1).max(), width=6)
    got = to_host(finer.sample(device.asarray(points, dtype=np.float32)))
    np.testing.assert_allclose(got, expected, atol=1e-4 * abs(expected).max())


def test_a_slice_is_the_transform_of_the_projection():
    """Along z the projection is a plain sum; a quarter turn about z turns it."""
    box = 20
    volume = phantom(box, np.random.default_rng(2))
    ky, kx = np.meshgrid(np.arange(-5, 6), np.arange(-5, 6), indexing="ij")
    axis = np.arange(box) - box // 2
    spectrum = VolumeSpectrum(volume, 8)
    for matrix, projection in (
        (euler_to_matrix(0, 0, 0), volume.sum(0)),
        (euler_to_matrix(0, 90, 0), None),
    ):
        got = spectrum.slices(matrix[None], (ky, kx))[0]
        if projection is None:  # the view along x: image x is -z, image y is y
            kernel_row, kernel_column = axis, -axis
            projection = volume.sum(2).T
        else:
            kernel_row, kernel_column = axis, axis
        row = np.exp(-2j * np.pi / box * ky[..., None] * kernel_row)
        column = np.exp(-2j * np.pi / box * kx[..., None] * kernel_column)
        expected = np.einsum("yx,aby,abx->ab", projection.astype(float), row, column)
        np.testing.assert_allclose(got, expected, atol=2e-3 * abs(expected).max())


def test_slices_follow_their_matrices():
    volume = phantom(16, np.random.default_rng(3))
    matrices = random_matrices(3, np.random.default_rng(4))
    frequencies = np.array([[1.0, 0.5], [2.0, -1.5]])
    got = VolumeSpectrum(volume, 4).slices(matrices, frequencies)
    for matrix, values in zip(matrices, got):
        points = np.outer(frequencies[1], matrix[0]) + np.outer(frequencies[0], matrix[1])
        expected = fourier_sample(volume, points)
        np.testing.assert_allclose(values, expected, atol=2e-3 * abs(volume.sum()))
