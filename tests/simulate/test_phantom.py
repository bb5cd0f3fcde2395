import numpy as np
import pytest

from xmipp_accel.numerics.rotations import euler_to_matrix, random_matrices
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.simulate.phantom import protein_phantom

SIZE, RATE = 33, 4.0


@pytest.fixture(scope="module")
def phantom():
    return protein_phantom(diameter=80.0, seed=3).blurred(3.0)


def transform(image, ky, kx):
    """Fourier transform of an image at single frequencies in cycles per px, origin at n // 2."""
    axis = np.arange(len(image)) - len(image) // 2
    row, column = np.exp(-2j * np.pi * np.outer(ky, axis)), np.exp(-2j * np.pi * np.outer(kx, axis))
    return np.einsum("py,yx,px->p", row, image.astype(np.float64), column)


def test_projection_along_z_sums_the_volume(phantom):
    volume = phantom.volume(SIZE, RATE)
    image = phantom.project(np.eye(3), SIZE, RATE)[0]
    np.testing.assert_allclose(volume.sum(axis=0), image, atol=2e-3 * image.max())
    assert volume.sum() * RATE**3 == pytest.approx(phantom.masses.sum(), rel=1e-3)


def test_projection_is_the_central_section_of_the_transform(phantom):
    rng = np.random.default_rng(0)
    matrix = euler_to_matrix(40.0, 70.0, -25.0)
    image = phantom.project(matrix, SIZE, RATE)[0]
    ky, kx = rng.uniform(-0.2, 0.2, (2, 20))
    section = np.stack([kx, ky, np.zeros(20)], axis=1) @ matrix / RATE  # A^T k
    np.testing.assert_allclose(
        transform(image, ky, kx) * RATE**3, phantom.fourier(section), atol=2e-3 * phantom.masses.sum()
    )


def test_displacement_moves_the_centre(phantom):
    still, moved = phantom.project(np.stack([np.eye(3)] * 2), SIZE, RATE, [(0, 0), (2, -3)])
    np.testing.assert_allclose(np.roll(still, (2, -3), (0, 1)), moved, atol=1e-3 * still.max())


@pytest.mark.parametrize("symmetry", ["c3", "d2", "o"])
def test_symmetric_phantom_has_its_symmetry(symmetry):
    phantom = protein_phantom(diameter=80.0, symmetry=symmetry)
    k = np.random.default_rng(1).uniform(-0.02, 0.02, (30, 3))
    for operator in symmetry_matrices(symmetry):
        np.testing.assert_allclose(
            phantom.fourier(k @ operator), phantom.fourier(k), atol=1e-6 * phantom.masses.sum()
        )


def test_views_and_seeds_differ_and_the_size_is_kept():
    phantom, other = protein_phantom(100.0, seed=0), protein_phantom(100.0, seed=1)
    assert np.linalg.norm(phantom.centres, axis=1).max() == pytest.approx(50.0)
    assert np.average(phantom.centres, axis=0, weights=phantom.masses) == pytest.approx(np.zeros(3), abs=1e-9)
    matrices = random_matrices(6, np.random.default_rng(0))
    images = [p.blurred(3.0).project(matrices, 32, 5.0).reshape(6, -1) for p in (phantom, other)]
    correlation = np.corrcoef(np.concatenate(images)) - np.eye(12)
    assert correlation.max() < 0.95
