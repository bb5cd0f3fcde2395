import numpy as np
import pytest

from tests.particle_alignment import simulated
from tests.particle_alignment.simulated import direction_errors, shift_errors
from tests.shared_data import shared_path
from xmipp_accel.backend import to_host
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import read_particles
from xmipp_accel.particle_alignment.compat import align_pairs
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.gallery import open_references
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters


@pytest.fixture(scope="module")
def golden():
    folder = shared_path("golden/align_significant")
    return (
        read_particles(folder / "particles.xmd"),
        open_references(folder / "gallery.doc"),
        read_particles(folder / "align_significant_best1.xmd"),
    )


def test_poses_are_those_of_the_original_program(device, golden):
    """For the references that the original chose, its poses and correlations come out.

    The last three particles hold on to it that the last row and column do not come with a particle that moves.
    """
    particles, references, original = golden
    for i in (*range(9), 22, 126, 284):
        place = int(np.flatnonzero(references.labels == original.class_id[i])[0])
        reference, image = (
            device.asarray(part, np.float64) for part in (references.images[place], particles.images([i]))
        )
        merit, pose = align_pairs(reference, image, 16.0)
        assert merit[0] == pytest.approx(original.extra["maxCC"][i], abs=2e-6)
        assert pose[0, 0] == pytest.approx(original.psi[i], abs=1e-4)
        np.testing.assert_allclose(pose[0, 1:], [original.shift_x[i], original.shift_y[i]], atol=1e-4)


def test_original_and_own_algorithm_choose_alike(golden, tmp_path):
    particles, references, original = golden
    few = particles.take(np.arange(4))
    run = AlignSignificantExecutor(AlignSignificantParameters(algorithm="xmipp", max_shift=25))
    found = read_particles(run.align(few, references, tmp_path / "original").particles_xmd)
    np.testing.assert_array_equal(found.class_id, original.class_id[:4])
    assert found.weight.max() <= 1


def test_own_algorithm_on_the_golden_particles(golden, tmp_path):
    """The original has 0.81 within 10 degrees; the gallery's own error reaches 9.8 degrees."""
    particles, references, original = golden
    few = np.arange(0, 300, 5)
    run = AlignSignificantExecutor(AlignSignificantParameters())
    truth = particles.take(few)
    found = read_particles(run.align(truth, references, tmp_path / "own").particles_xmd)
    errors = direction_errors(truth, found)
    assert np.mean(errors < 10) >= 0.87 and np.mean(errors < 15) >= 0.95
    assert np.median(shift_errors(truth, found)) < 0.3
    assert np.mean(found.class_id == original.class_id[few]) > 0.65


def test_unusable_particles_do_not_spoil_the_others(tmp_path):
    points = simulated.centres(np.random.default_rng(5))
    particles = simulated.make_particles(tmp_path, points, n=8, snr=20)
    run = AlignSignificantExecutor(AlignSignificantParameters(algorithm="xmipp", angular_sampling=40))
    every = read_particles(run.align(particles, tmp_path / "volume.mrc", tmp_path / "out").particles_xmd)
    images = particles.images()
    images[2, 5, 5], images[6] = np.nan, 3
    write_stack(tmp_path / "particles.mrcs", images, simulated.SAMPLING)
    result = run.align(particles, tmp_path / "volume.mrc", tmp_path / "out")
    found = read_particles(result.particles_xmd)
    assert result.n_aligned == 6 and np.isfinite(found.weight).all()
    np.testing.assert_array_equal(found.class_id, np.delete(every.class_id, [2, 6]))


def test_a_turned_image_is_turned_back(device):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(24, 24))
    reference[:2] = reference[:, :2] = reference[-3:] = reference[:, -3:] = 0
    quarter = np.rot90(reference[1:, 1:], 1)
    image = np.zeros((24, 24))
    image[1:, 1:] = quarter
    merit, pose = align_pairs(*(device.asarray(a, np.float64) for a in (reference, image[None])), 6.0)
    assert to_host(merit)[0] > 0.75  # the steps of 5.8 degrees do not hit 90
    assert abs(pose[0, 0]) == pytest.approx(90, abs=8)
    assert np.abs(pose[0, 1:]).max() < 1.1
