import dataclasses

import numpy as np
import pytest

from tests.particle_alignment import simulated
from tests.shared_data import shared_path
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.gallery import (
    content_radius,
    open_references,
    reference_coefficients,
    reference_images,
)


@pytest.fixture
def points():
    return simulated.centres(np.random.default_rng(0))


@pytest.fixture
def volume(tmp_path, points):
    write_volume(tmp_path / "volume.mrc", simulated.make_volume(points), simulated.SAMPLING)
    return tmp_path / "volume.mrc"


def test_polar_slices_are_the_transforms_of_the_projections(device, volume, points):
    references = open_references(volume, angular_sampling=30)
    assert references.kind == "projection" and len(references) == 42
    grid = polar.polar_grid(32, 10, 15)
    got = to_host(reference_coefficients(references, grid, 15, 1, simulated.SAMPLING, device))
    images = simulated.project(points, euler_to_matrix(references.rot, references.tilt, 0))
    expected = polar.angular_coefficients(polar.polar_samples(images, grid), grid)
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())


def test_a_volume_with_another_sampling_rate(volume, points, tmp_path):
    """48 px of 3.2 A, for particles of 32 px of 4 A."""
    finer = simulated.make_volume(points * 1.25, 48)
    write_volume(tmp_path / "finer.mrc", finer, simulated.SAMPLING / 1.25)
    references = open_references(tmp_path / "finer.mrc", angular_sampling=30)
    grid = polar.polar_grid(32, 6, 13)
    got = reference_coefficients(references, grid, 13, 1, simulated.SAMPLING, CPU)
    images = simulated.project(points * 1.25, euler_to_matrix(references.rot, references.tilt, 0), box=40)
    same_field = polar.PolarGrid(40, 6, grid.n_angles, grid.n_harmonics)  # the particles' field of view
    expected = polar.angular_coefficients(polar.polar_samples(images, same_field), same_field)
    np.testing.assert_allclose(got, expected, atol=1e-2 * np.abs(expected).max())


def test_reference_images_are_projections(volume, points):
    references = open_references(volume, angular_sampling=60)
    images = reference_images(references, 32, simulated.SAMPLING, CPU)
    expected = simulated.project(points, euler_to_matrix(references.rot, references.tilt, 0))
    for a, b in zip(images, expected):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


def test_gallery_table():
    references = open_references(shared_path("golden/align_significant/gallery.doc"))
    assert references.kind == "projection" and len(references) == 162
    assert references.images.shape == (162, 64, 64)
    np.testing.assert_array_equal(references.labels, np.arange(162))
    assert references.tilt[0] == 180


def test_tilt_limits_apply_to_tables_and_volumes(volume):
    table = open_references(shared_path("golden/align_significant/gallery.doc"), min_tilt=30, max_tilt=60)
    assert 0 < len(table) < 162 and table.tilt.min() >= 30 and table.tilt.max() <= 60
    assert len(table.images) == len(table.labels) == len(table)
    sliced = open_references(volume, angular_sampling=15, min_tilt=30, max_tilt=60)
    assert len(sliced) == len(table)
    with pytest.raises(ParameterError, match="tilt"):
        open_references(shared_path("golden/align_significant/gallery.doc"), min_tilt=1, max_tilt=2)


def test_symmetry_and_sampling_choose_the_directions(volume):
    every = len(open_references(volume, angular_sampling=15))
    assert every == 162
    assert len(open_references(volume, "c4", angular_sampling=15)) == pytest.approx(every / 4, rel=0.15)


def test_averages_have_no_directions(tmp_path, points):
    images = simulated.project(points, euler_to_matrix([0, 10], [0, 90], 0))
    write_stack(tmp_path / "averages.mrcs", images, 4.0)
    references = open_references(tmp_path / "averages.mrcs")
    assert references.kind == "2d" and len(references) == 2
    np.testing.assert_array_equal(references.images, images)


def test_images_of_another_size_are_refused(tmp_path, points):
    write_stack(tmp_path / "averages.mrcs", simulated.project(points, euler_to_matrix([0], [0], 0)), 4.0)
    references = open_references(tmp_path / "averages.mrcs")
    with pytest.raises(ParameterError, match="expected images of 20 px"):
        reference_coefficients(references, polar.polar_grid(20, 4, 8), 8, 1, 4.0, CPU)


def test_content_radius(points, volume):
    references = open_references(volume, angular_sampling=60)
    small = dataclasses.replace(references, volume=simulated.make_volume(points * 0.5))
    assert 0.2 <= content_radius(small) < content_radius(references) <= 0.45
    images = reference_images(references, 32, 4.0, CPU)
    assert content_radius(dataclasses.replace(references, images=images)) == pytest.approx(
        content_radius(references), abs=0.05
    )
