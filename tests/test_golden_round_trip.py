"""Poses of the original Align Significant, through Scipion's objects and our files, come out as they went in."""

import numpy as np
import pytest
from pwem.constants import ALIGN_2D, ALIGN_PROJ
from pwem.convert.transformations import euler_matrix
from pwem.objects import Particle, SetOfParticles, Transform

from tests.shared_data import shared_path
from xmipp_accel import convert
from xmipp_accel.io.particles import read_particles, write_particles

POSE = ("rot", "tilt", "psi", "shift_x", "shift_y")


@pytest.fixture(scope="module")
def golden():
    return read_particles(shared_path("golden/align_significant/align_significant_best1.xmd"))


def reopened(images):
    images.write()
    images.close()
    again = SetOfParticles(filename=images.getFileName())
    again.loadAllProperties()
    return again


def same_angle(found, expected):
    np.testing.assert_allclose((np.asarray(found) - expected + 180) % 360 - 180, 0, atol=2e-4)


def test_projection_poses_of_the_original_come_back(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = SetOfParticles(filename="particles.sqlite")
    convert.fill_set(images, golden, ALIGN_PROJ)
    images = reopened(images)
    for row, item in enumerate(images.iterItems()):
        if row % 20 == 0:  # stored is the inverse of Xmipp's matrix, whose translation is minus the shift
            angles = np.deg2rad([golden.rot[row], golden.tilt[row], golden.psi[row]])
            forward = euler_matrix(*-angles, "szyz")
            forward[:2, 3] = -golden.shift_x[row], -golden.shift_y[row]
            np.testing.assert_allclose(item.getTransform().getMatrix(), np.linalg.inv(forward), atol=1e-5)
    found = convert.particles_from_set(images)
    for name in ("aligned.xmd", "aligned.star"):
        write_particles(name, found)
        again = read_particles(name)
        poles = np.abs(np.sin(np.deg2rad(golden.tilt))) < 1e-6  # where only rot + psi or rot - psi counts
        assert 0 < poles.sum() < 10
        for column in ("rot", "tilt", "psi"):
            same_angle(getattr(again, column)[~poles], getattr(golden, column)[~poles])
        sign = np.where(golden.tilt[poles] > 90, -1, 1)
        same_angle(again.rot[poles] + sign * again.psi[poles], golden.rot[poles] + sign * golden.psi[poles])
        for column in ("shift_x", "shift_y", "class_id"):
            np.testing.assert_allclose(getattr(again, column), getattr(golden, column), atol=2e-4)
        np.testing.assert_array_equal(again.index, golden.index)
    xmd = read_particles("aligned.xmd")
    np.testing.assert_allclose(xmd.weight, golden.weight, atol=1e-5)


def test_planar_poses_of_the_original_are_stored_directly(golden, tmp_path, monkeypatch):
    """Its numbers describe the inverse of the map from image to reference, whatever the reference's direction is.

    Read as a 2D alignment they would turn the particle the wrong way: that is the defect of GL2D's classes.
    """
    monkeypatch.chdir(tmp_path)
    flip = np.arange(len(golden)) % 3 == 0
    golden = type(golden)(
        **{name: getattr(golden, name) for name in ("stack", "index", "psi", "shift_x", "shift_y")},
        flip=flip,
        sampling_rate=2.25,
    )
    matrices = convert.aligned_transforms(golden, "2d")
    for row in range(0, len(golden), 7):
        turn = np.deg2rad(golden.psi[row])
        inverse = np.eye(3)
        inverse[:2] = [
            [np.cos(turn), np.sin(turn), -golden.shift_x[row]],
            [-np.sin(turn), np.cos(turn), -golden.shift_y[row]],
        ]
        expected = np.linalg.inv(inverse) @ np.diag([-1.0 if flip[row] else 1.0, 1, 1])
        np.testing.assert_allclose(matrices[row][np.ix_([0, 1, 3], [0, 1, 3])], expected, atol=1e-9)
        if not flip[row]:  # then a projection from the pole has the same matrix
            pole = convert.projection_transform(
                [0], [0], golden.psi[[row]], golden.shift_x[[row]], golden.shift_y[row]
            )
            np.testing.assert_allclose(matrices[row], pole[0], atol=1e-9)
    images = SetOfParticles(filename="planar.sqlite")
    images.setSamplingRate(2.25)
    images.setAlignment(ALIGN_2D)
    for row, matrix in enumerate(matrices):
        item = Particle(location=(int(golden.index[row]) + 1, golden.stack[row]))
        item.setTransform(Transform(matrix))
        images.append(item)
    found = convert.particles_from_set(reopened(images))
    np.testing.assert_array_equal(found.flip, flip)
    np.testing.assert_allclose(convert.transforms(found, ALIGN_2D), matrices, atol=1e-5)
    write_particles("planar.xmd", found)
    np.testing.assert_allclose(convert.transforms(read_particles("planar.xmd"), ALIGN_2D), matrices, atol=1e-4)
