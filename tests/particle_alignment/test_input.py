"""What the alignment makes of particles and references that do not match, of its units and of symmetries."""

import numpy as np
import pytest

from tests.particle_alignment import simulated
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import write_image, write_stack
from xmipp_accel.io.particles import Particles, read_particles
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.numerics.symmetry import point_group
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters

POINTS = simulated.centres(np.random.default_rng(5))


def align(particles, references, folder, **values):
    result = AlignSignificantExecutor(AlignSignificantParameters(**values)).align(particles, references, folder)
    return result, read_particles(result.particles_xmd)


@pytest.mark.parametrize(
    "value, unit, box, rate, expected",
    [
        (10, "%", 64, 0.0, 6.4),
        (10, "%", 65, 2.0, 6.5),
        (7, "px", 64, 0.0, 7.0),
        (12, "A", 64, 1.5, 8.0),
        (50, "%", 33, 1.0, 16.5),
    ],
)
def test_the_largest_shift_in_three_units(value, unit, box, rate, expected):
    parameters = AlignSignificantParameters(max_shift=value, max_shift_unit=unit)
    assert parameters.largest_shift(box, rate) == pytest.approx(expected)


def test_a_shift_beyond_half_the_box_or_in_angstroms_of_unknown_pixels_is_refused():
    for value, unit in ((51, "%"), (17, "px"), (70, "A")):
        with pytest.raises(ParameterError, match=r"max_shift: expected at most half the box \(16 px\)"):
            AlignSignificantParameters(max_shift=value, max_shift_unit=unit).largest_shift(32, 4.0)
    with pytest.raises(ParameterError, match="sampling rate is unknown"):
        AlignSignificantParameters(max_shift=5, max_shift_unit="A").largest_shift(32, 0.0)


@pytest.mark.parametrize("algorithm", ["polar", "xmipp"])
def test_the_unit_of_the_largest_shift_reaches_the_search(tmp_path, algorithm):
    """20 A are 5 px; 5 % of 32 px are 1.6 px; particles are displaced by about 3 px."""
    particles = simulated.make_particles(
        tmp_path, POINTS, n=6, snr=20, shift=3.0, angles=(np.zeros(6), np.zeros(6))
    )
    write_stack(tmp_path / "view.mrcs", simulated.project(POINTS, euler_to_matrix([0], [0], 0)), 4.0)
    for unit, value, limit in (("A", 20.0, 5.0), ("px", 5.0, 5.0), ("px", 1.5, 1.5), ("%", 5.0, 1.6)):
        values = dict(algorithm=algorithm, max_shift=value, max_shift_unit=unit)
        found = align(particles, tmp_path / "view.mrcs", tmp_path / "out", **values)[1]
        length = np.hypot(found.shift_x, found.shift_y)
        # The original limits the shift of each of its steps.
        assert length.max() <= (limit if algorithm == "polar" else 3 * limit) + 1e-3
        if limit == 5:
            assert np.median(simulated.shift_errors(particles, found)) < (0.2 if algorithm == "polar" else 1.0)


@pytest.mark.parametrize("algorithm", ["polar", "xmipp"])
def test_averages_in_other_pixels_align_as_the_same_averages_do(tmp_path, algorithm):
    """Averages of 40 px of 3.2 A, drawn with the same features, for particles of 32 px of 4 A."""
    angles = (np.array([0.0, 70] * 5), np.array([20.0, 100] * 5))
    particles = simulated.make_particles(tmp_path, POINTS, n=10, snr=4, angles=angles)
    same = simulated.project(POINTS, euler_to_matrix([0, 70], [20, 100], 0))
    write_stack(tmp_path / "same.mrcs", same, 4.0)
    axis = (np.arange(48) - 24) * 0.8  # in px of the particles
    seen = np.einsum("nij,bj->nbi", euler_to_matrix([0, 70], [20, 100], 0), POINTS)
    x, y = (np.exp(-((axis - seen[..., i, None]) ** 2) / (2 * simulated.SIGMA**2)) for i in (0, 1))
    write_stack(tmp_path / "finer.mrcs", np.einsum("nby,nbx->nyx", y, x), 3.2)
    expected = align(particles, tmp_path / "same.mrcs", tmp_path / "a", algorithm=algorithm)[1]
    found = align(particles, tmp_path / "finer.mrcs", tmp_path / "b", algorithm=algorithm, update_references=True)
    np.testing.assert_array_equal(found[1].class_id, expected.class_id)
    np.testing.assert_allclose(found[1].extra["maxCC"], expected.extra["maxCC"], atol=5e-3)
    assert np.abs((found[1].psi - expected.psi + 180) % 360 - 180).max() < (0.5 if algorithm == "polar" else 6)
    assert simulated.shift_errors(expected, found[1]).max() < (0.05 if algorithm == "polar" else 1.5)
    updated = read_particles(found[0].references_xmd)
    assert updated.box == 32 and updated.sampling_rate == 4.0


def test_one_reference_is_enough_and_oblong_particles_are_refused_by_name(tmp_path):
    particles = simulated.make_particles(tmp_path, POINTS, n=3, snr=20, angles=(np.zeros(3), np.zeros(3)))
    write_image(tmp_path / "view.mrc", simulated.project(POINTS, np.eye(3)[None])[0], 4.0)
    result, found = align(particles, tmp_path / "view.mrc", tmp_path / "out")
    assert result.n_references == 1 and result.kind == "2d"
    assert simulated.shift_errors(particles, found).max() < 0.2
    write_stack(tmp_path / "oblong.mrcs", np.random.default_rng(0).normal(size=(3, 32, 30)), 4.0)
    oblong = Particles(stack=[str(tmp_path / "oblong.mrcs")] * 3, index=np.arange(3), sampling_rate=4.0)
    with pytest.raises(InputFileError, match=r"oblong.mrcs: expected square images, found images of 32 x 30 px"):
        align(oblong, tmp_path / "view.mrc", tmp_path / "out")


@pytest.mark.parametrize("name", ["td", "c3h"])
def test_particles_of_a_mirror_group_get_poses_that_show_them(tmp_path, name):
    """The pose that is found projects to the particle, not to its mirror image."""
    points = np.concatenate([point_group(name) @ p for p in simulated.centres(np.random.default_rng(1), 3)])
    particles = simulated.make_particles(tmp_path, points, n=8, snr=20)
    result, found = align(
        particles, tmp_path / "volume.mrc", tmp_path / "out", symmetry=name, angular_sampling=7.5
    )
    assert result.n_references < 642 / 5
    poses = euler_to_matrix(found.rot, found.tilt, found.psi)
    shown = simulated.project(points, poses, found.shift_x, found.shift_y)
    agreement = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(shown, particles.images())]
    assert min(agreement) > 0.88


def test_perturbed_directions_are_those_of_the_references(tmp_path):
    particles = simulated.make_particles(tmp_path, POINTS, n=6, snr=20)
    plain, moved, again = (
        align(particles, tmp_path / "volume.mrc", tmp_path / "out", angular_sampling=10.0, perturb=p, seed=s)[1]
        for p, s in ((0, 0), (2, 1), (2, 1))
    )
    np.testing.assert_array_equal(moved.rot, again.rot)
    assert 0.1 < simulated.direction_errors(plain, moved).mean() < 12
    other = align(
        particles, tmp_path / "volume.mrc", tmp_path / "out", angular_sampling=10.0, perturb=2.0, seed=2
    )[1]
    assert np.abs(other.tilt - moved.tilt).max() > 1e-3
    assert (simulated.direction_errors(particles, moved) < 12).all()


@pytest.mark.parametrize("algorithm", ["polar", "xmipp"])
def test_an_odd_box_is_not_cropped(tmp_path, algorithm):
    """The original leaves out a row and a column, which moves the origin by half a pixel."""
    rng = np.random.default_rng(3)
    n, box = 12, 33
    psi, (shift_x, shift_y) = rng.uniform(-180, 180, n), rng.uniform(-2, 2, (2, n))
    images = simulated.project(POINTS, euler_to_matrix(np.zeros(n), np.zeros(n), psi), shift_x, shift_y, box)
    write_stack(tmp_path / "odd.mrcs", images, 4.0)
    write_stack(tmp_path / "view.mrcs", simulated.project(POINTS, np.eye(3)[None], box=box), 4.0)
    particles = Particles(
        stack=[str(tmp_path / "odd.mrcs")] * n, index=np.arange(n), shift_x=shift_x, shift_y=shift_y
    )
    found = align(particles, tmp_path / "view.mrcs", tmp_path / "out", algorithm=algorithm)[1]
    # In the frame of the reference an offset of the origin is the same for all.
    turn = np.deg2rad(found.psi)
    dx, dy = found.shift_x - shift_x, found.shift_y - shift_y
    offset = np.cos(turn) * dx - np.sin(turn) * dy, np.sin(turn) * dx + np.cos(turn) * dy
    limit = 0.02 if algorithm == "polar" else 0.2
    assert np.hypot(np.mean(offset[0]), np.mean(offset[1])) < limit
    assert np.hypot(dx.mean(), dy.mean()) < limit


def test_the_last_references_can_be_chosen(tmp_path):
    """The original drops those that are left over when the references are shared out."""
    n = 11
    views = simulated.project(POINTS, euler_to_matrix(np.arange(n) * 33.0, np.linspace(10, 170, n), 0))
    write_stack(tmp_path / "views.mrcs", views, 4.0)
    particles = Particles(stack=[str(tmp_path / "views.mrcs")] * n, index=np.arange(n), sampling_rate=4.0)
    for values in (dict(), dict(memory_limit=0.001), dict(algorithm="xmipp")):
        found = align(particles, tmp_path / "views.mrcs", tmp_path / "out", **values)[1]
        np.testing.assert_array_equal(found.class_id, np.arange(1, n + 1))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    """The original adds its averages up in the order in which threads come."""
    particles = simulated.make_particles(tmp_path, POINTS, n=40, snr=0.5)
    names = "aligned.xmd", "references.mrcs", "references.xmd"
    runs = []
    for _ in range(2):
        align(particles, tmp_path / "volume.mrc", tmp_path / "out", angular_sampling=30.0, update_references=True)
        runs.append([(tmp_path / "out" / name).read_bytes() for name in names])
    for name, first, second in zip(names, *runs):
        if name.endswith(".mrcs"):  # its header holds the time of writing
            first, second = first[1024:], second[1024:]
        assert first == second, name
