import dataclasses

import numpy as np
import pytest

from tests.particle_alignment import simulated
from tests.shared_data import shared_path
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, read_particles
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.rotations import euler_to_matrix, random_matrices, viewing_directions
from xmipp_accel.numerics.symmetry import point_group, view_symmetry
from xmipp_accel.particle_alignment import polar
from xmipp_accel.particle_alignment.gallery import (
    References,
    content_radius,
    open_references,
    reference_coefficients,
    reference_images,
    write_gallery,
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


def test_a_written_gallery_shows_the_references_in_the_particles_pixels(device, volume, points, tmp_path):
    references = open_references(volume, angular_sampling=60)
    table = read_particles(write_gallery(tmp_path / "a", references, 32, simulated.SAMPLING, device))
    np.testing.assert_array_equal(table.class_id, references.labels)
    np.testing.assert_allclose(table.tilt, references.tilt, atol=1e-5)
    expected = simulated.project(points, euler_to_matrix(references.rot, references.tilt, 0))
    for image, view in zip(table.images(), expected):
        assert np.corrcoef(image.ravel(), view.ravel())[0, 1] > 0.98
    again = open_references(tmp_path / "a" / "gallery.xmd")
    assert again.kind == "projection" and len(again) == len(references)
    two = dataclasses.replace(averages(expected[:2], simulated.SAMPLING), labels=np.array([7, 4]))
    table = read_particles(write_gallery(tmp_path / "b", two, 40, simulated.SAMPLING, device))
    np.testing.assert_array_equal(table.class_id, [7, 4])
    np.testing.assert_allclose(table.images()[:, 4:-4, 4:-4], expected[:2], atol=1e-3)
    assert open_references(tmp_path / "b" / "gallery.xmd").kind == "2d"


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


def drawn(positions, width, box):
    """Gaussians of `width` px at positions (n, 2), (x, y) in px from the centre."""
    axis = np.arange(box) - box // 2
    x, y = (np.exp(-((axis - positions[:, i, None]) ** 2) / (2 * width**2)) for i in (0, 1))
    return (y.T @ x).astype(np.float32)[None]


@pytest.mark.parametrize("box, size", [(48, 32), (33, 32), (24, 41), (40, 20)])
def test_images_of_another_size_or_pixel_size_are_resampled(box, size, caplog):
    """Images of `box` px of 3.2 A for particles of `size` px of 4 A; shifts are in px of their own images."""
    positions = np.random.default_rng(0).uniform(-5, 5, (6, 2))
    finer = averages(drawn(positions * 1.25, 2.5, box), 3.2)
    finer = dataclasses.replace(finer, shifts=np.array([[-1.25, 2.5]]))
    found, expected = finer.in_pixels_of(size, 4.0), drawn(positions, 2.0, size)
    assert found.box == size and found.sampling_rate == 4.0
    np.testing.assert_allclose(found.images, expected, atol=0.02 * expected.max())
    np.testing.assert_allclose(found.shifts, [[-1.0, 2.0]])
    assert f"resampled from {box} px of 3.2 A" in caplog.text
    assert found.in_pixels_of(size, 4.0) is found
    grid = polar.polar_grid(size, 6, 8)
    got = reference_coefficients(finer, grid, 8, 2, 4.0, CPU)
    centred = polar.polar_samples(polar.mask_images(expected, polar.soft_circle(size, 8, 2)), grid)
    wanted = polar.angular_coefficients(centred * polar.shift_phases(grid, found.shifts), grid)
    np.testing.assert_allclose(got, wanted, atol=0.02 * np.abs(wanted).max())


def test_without_sampling_rates_another_size_is_refused(points, volume):
    images = simulated.project(points, euler_to_matrix([0], [0], 0))
    unknown = averages(images, 0.0)
    assert unknown.in_pixels_of(32, 4.0) is unknown
    table = dataclasses.replace(open_references(volume, angular_sampling=60), sampling_rate=0.0)
    for references in (unknown, averages(images, 4.0), table):
        particle_rate = 0.0 if references.sampling_rate else 4.0
        with pytest.raises(ParameterError, match=r"references: expected 20 px like the particles.*found 32 px"):
            reference_coefficients(references, polar.polar_grid(20, 4, 8), 8, 1, particle_rate, CPU)


def averages(images, sampling_rate):
    n = len(images)
    zero = np.zeros(n)
    return References("2d", np.arange(1, n + 1), zero, zero, zero, np.zeros((n, 2)), None, images, sampling_rate)


def test_rings_beyond_the_volumes_nyquist_are_empty(points, tmp_path):
    """A volume of 8 A pixels knows nothing of the particles' outer rings."""
    write_volume(tmp_path / "coarse.mrc", simulated.make_volume(points / 2, 16), 8.0)
    references = open_references(tmp_path / "coarse.mrc", angular_sampling=60)
    grid = polar.polar_grid(32, 12, 12)
    energy = polar.ring_energy(reference_coefficients(references, grid, 12, 2, 4.0, CPU), grid)
    assert (energy[:, :8] > 0).all() and not energy[:, 8:].any()


@pytest.mark.parametrize("shape", [(30, 26, 21), (17, 24, 24), (25, 25, 25)])
def test_projections_of_any_volume_against_the_direct_transform(device, points, tmp_path, shape):
    """Oracle: sums over the voxels in float64; the origin is n // 2 along each axis."""
    x, y, z = (np.arange(n) - n // 2 for n in shape[::-1])
    lines = [np.exp(-((axis - p[:, None] * 0.4) ** 2) / 2.0) for axis, p in zip((x, y, z), points.T)]
    volume = np.einsum("bz,by,bx->zyx", lines[2], lines[1], lines[0]).astype(np.float32)
    write_volume(tmp_path / "box.map", volume, 4.0)
    references = open_references(tmp_path / "box.map", angular_sampling=50)
    box = max(shape)
    grid = polar.polar_grid(box, box // 3, 0.4 * box)
    got = to_host(reference_coefficients(references, grid, 0.95 * box, 0.1, 4.0, device))
    ky, kx = grid.frequencies
    for place in range(0, len(references), 3):
        axes = euler_to_matrix(references.rot[place], references.tilt[place], 0)
        k = (kx[..., None] * axes[0] + ky[..., None] * axes[1]) * (-2j * np.pi / box)
        waves = [np.exp(k[..., i, None] * axis) for i, axis in enumerate((x, y, z))]
        direct = np.einsum("zyx,kjz,kjy,kjx->kj", volume.astype(float), *waves[::-1], optimize=True)
        expected = polar.angular_coefficients(direct.astype(np.complex64), grid)
        np.testing.assert_allclose(got[place], expected, atol=3e-3 * np.abs(expected).max())


def test_a_volume_that_is_no_cube_is_surrounded_by_its_borders_level(tmp_path):
    write_volume(tmp_path / "box.map", np.pad(np.ones((3, 2, 4)), 2) + 5, 4.0)
    volume = open_references(tmp_path / "box.map", angular_sampling=40).volume
    expected = np.pad(np.ones((3, 2, 4)), 2)
    expected = np.pad(expected, [(1, 0), (1, 1), (0, 0)]) + 5
    np.testing.assert_array_equal(volume, expected)


@pytest.mark.parametrize("name", ["td", "s4", "ci", "c3h", "d2v"])
def test_the_unit_of_a_mirror_group_shows_every_view(tmp_path, name):
    """Any projection of a volume with the symmetry is near one reference, turned in the plane and not mirrored."""
    rng = np.random.default_rng(2)
    points = np.concatenate([point_group(name) @ point for point in simulated.centres(rng, 3)])
    write_volume(tmp_path / "volume.mrc", simulated.make_volume(points), simulated.SAMPLING)
    references = open_references(tmp_path / "volume.mrc", name, 12)
    assert len(references) == pytest.approx(252 / len(view_symmetry(name)), rel=0.2)
    grid = polar.polar_grid(32, 6, 14)
    gallery = reference_coefficients(references, grid, 15, 1, simulated.SAMPLING, CPU)
    views = polar.polar_samples(simulated.project(points, random_matrices(40, rng)), grid)
    views = polar.angular_coefficients(views, grid)

    def turned(particle):
        product = (gallery.conj() * particle).sum(axis=1) * grid.harmonic_weights
        scores = (
            product @ np.exp(-1j * np.outer(np.arange(grid.n_harmonics), np.arange(0, 2 * np.pi, 0.02)))
        ).real
        power = [polar.ring_energy(values, grid).sum(axis=-1) for values in (gallery, particle)]
        return (scores.max(axis=1) / np.sqrt(power[0] * power[1])).max()

    agreement = [turned(view) for view in views]
    assert min(agreement) > 0.9 and np.mean(agreement) > 0.96


@pytest.mark.parametrize("bad, found", [(np.nan, "NaN"), (np.inf, "infinity"), (None, "constant")])
def test_unusable_references_are_refused_by_name(tmp_path, points, bad, found):
    images = simulated.project(points, euler_to_matrix([0, 30, 60], [0, 50, 90], 0))
    if bad is None:
        images[1] = 7.0
    else:
        images[1, 3, 3] = bad
    write_stack(tmp_path / "averages.mrcs", images, 4.0)
    table = Particles(stack=[str(tmp_path / "averages.mrcs")] * 3, index=np.arange(3), sampling_rate=4.0)
    for source in (tmp_path / "averages.mrcs", table):
        with pytest.raises(InputFileError, match=rf"2@.*averages.mrcs: expected a reference.*{found}"):
            open_references(source)
    used = dataclasses.replace(table, enabled=[True, False, True])
    assert len(open_references(used)) == 2


def test_other_bad_references_are_refused_by_name(tmp_path, points):
    write_volume(tmp_path / "flat.mrc", np.full((8, 8, 8), 3.0), 4.0)
    with pytest.raises(InputFileError, match=r"flat.mrc: expected a volume that is not constant"):
        open_references(tmp_path / "flat.mrc")
    write_stack(tmp_path / "oblong.mrcs", np.random.default_rng(0).normal(size=(3, 8, 10)), 4.0)
    with pytest.raises(InputFileError, match=r"oblong.mrcs: expected square images, found 10 x 8 px"):
        open_references(tmp_path / "oblong.mrcs")
    table = Particles(stack=[str(tmp_path / "oblong.mrcs")] * 3, index=np.arange(3))
    with pytest.raises(InputFileError, match=r"oblong.mrcs: expected square images"):
        open_references(table)
    with pytest.raises(ParameterError, match="at least one"):
        open_references(table.take([]))


def test_perturbation_and_seed_move_the_directions(volume):
    plain, moved, again, other = (
        open_references(volume, angular_sampling=30, perturb=p, seed=s)
        for p, s in ((0, 0), (3, 1), (3, 1), (3, 2))
    )
    np.testing.assert_array_equal(moved.tilt, again.tilt)
    assert np.abs(moved.tilt - other.tilt).max() > 0.1
    a, b = (viewing_directions(r.rot, r.tilt) for r in (plain, moved))
    angle = np.rad2deg(np.arccos(np.clip((a * b).sum(1), -1, 1)))
    assert np.sqrt((angle**2).mean() / 2) == pytest.approx(3, rel=0.35)


def test_content_radius(points, volume):
    references = open_references(volume, angular_sampling=60)
    small = dataclasses.replace(references, volume=simulated.make_volume(points * 0.5))
    assert 0.2 <= content_radius(small) < content_radius(references) <= 0.45
    images = reference_images(references, 32, 4.0, CPU)
    assert content_radius(dataclasses.replace(references, images=images)) == pytest.approx(
        content_radius(references), abs=0.05
    )
