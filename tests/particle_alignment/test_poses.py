import numpy as np
import pytest

from tests.particle_alignment.test_polar import blobs, draw
from xmipp_accel.backend import to_host
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment.poses import align2d_matrix, apply_poses, opposite_view


@pytest.mark.parametrize("flip", [False, True])
def test_images_follow_the_matrix(device, flip):
    """Blobs at u in the particle must appear at M u in the aligned image."""
    rng = np.random.default_rng(0)
    centres, heights, axis = blobs(rng, 41)
    centres = np.clip(centres, -8, 8)
    image = draw(centres, heights, axis, 2.5)
    psi, shift_x, shift_y = 37.0, 2.5, -1.25
    matrix = align2d_matrix(psi, shift_x, shift_y, flip)
    moved = centres @ matrix[:2, :2].T + matrix[:2, 3]
    pose = [np.array([value]) for value in (psi, shift_x, shift_y, flip)]
    got = to_host(apply_poses(device.asarray(image), *pose))
    assert np.abs(got - draw(moved, heights, axis, 2.5)).max() < 0.05 * image.max()
    assert matrix[2, 2] == (-1 if flip else 1)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_outside_is_zero():
    image = np.ones((1, 8, 8), np.float32)
    got = apply_poses(image, *np.array([[0.0], [3.0], [0.0]]))
    np.testing.assert_allclose(got[0, :, :3], 0)
    np.testing.assert_allclose(got[0, :, 3:], 1)
    # Xmipp does not interpolate between the outermost pixel and 0.
    got = apply_poses(image, *np.array([[0.0], [2.25], [-0.5]]))
    np.testing.assert_allclose(got[0, :7, 3:], 1)
    assert not got[0, :, :3].any() and not got[0, 7].any()


def test_a_quarter_turn_keeps_the_border():
    image = np.random.default_rng(0).normal(size=(1, 9, 9)).astype(np.float32)
    turned = apply_poses(image, *np.array([[90.0], [0.0], [0.0]]))
    np.testing.assert_allclose(turned[0], np.rot90(image[0], -1), atol=1e-5)


def test_a_negative_margin_leaves_out_the_last_row_and_column():
    image = np.random.default_rng(0).normal(size=(1, 9, 9)).astype(np.float32)
    moved = apply_poses(image, *np.array([[0.0], [-2.0], [1.0]]), margin=-1e-6)
    expected = np.zeros_like(image)
    expected[:, 1:, :6] = image[:, :8, 2:8]
    np.testing.assert_array_equal(moved, expected)


def test_opposite_view_mirrors_the_image_along_x():
    rot, tilt, psi = np.array([10.0, -100.0]), np.array([30.0, 125.0]), np.array([70.0, -15.0])
    got = euler_to_matrix(*opposite_view(rot, tilt, psi))
    mirror = np.diag([-1.0, 1.0, -1.0])
    expected = euler_to_matrix(0, 0, psi) @ mirror @ euler_to_matrix(rot, tilt, 0)
    np.testing.assert_allclose(got, expected, atol=1e-9)
