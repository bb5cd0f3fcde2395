"""What cannot be reconstructed is refused by name, or left out and counted."""

import dataclasses

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, correlation, particles_on_disk, phantom
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.rotations import matrix_to_euler, random_matrices
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.selection import select

METHODS = "trilinear", "blob", "nearest", "xmipp", "xmipp_fast"


def run(particles, folder, **choices):
    """(map, result)."""
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(**choices))
    result = executor.reconstruct(particles, folder)
    return read_volume(folder / result.volume)[0], result


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return particles_on_disk(tmp_path_factory.mktemp("plain"), count=40, ctf=True)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("rot", np.nan, "rot: expected finite numbers, found nan"),
        ("psi", np.inf, "psi: expected finite numbers, found inf"),
        ("shift_x", np.nan, "shift_x: expected finite numbers, found nan"),
        ("shift_y", -np.inf, "shift_y: expected finite numbers, found -inf"),
        ("defocus_u", np.nan, "defocus_u: expected finite numbers, found nan"),
        ("phase_shift", np.nan, "phase_shift: expected finite numbers, found nan"),
        ("voltage", 0.0, "voltage: expected more than 0 kV, found 0"),
        ("cs", -0.1, r"cs: expected a spherical aberration of 0 mm or more, found -0\.1"),
        ("amplitude_contrast", 7.0, "amplitude_contrast: expected a fraction of 1, found 7"),
        ("weight", np.nan, "use_weights: expected weights of 0 or more, found nan"),
        ("weight", np.inf, "use_weights: expected weights of 0 or more, found inf"),
    ],
)
def test_numbers_that_make_no_image_are_refused(plain, tmp_path, name, value, message):
    """With the particle's place in the file, although optics groups are sorted and disabled ones left out."""
    values = getattr(plain, name).copy()
    values[11] = value
    groups = {number: OpticsGroup(str(number), SAMPLING, 24) for number in (1, 2)}
    others = dict(optics_group=2 - np.arange(40) % 2, groups=groups, enabled=np.arange(40) > 4)
    broken = dataclasses.replace(plain, **{name: values}, **others)
    with pytest.raises(ParameterError, match=f"{message} for particle 12"):
        run(broken, tmp_path, use_weights=True)
    assert list(tmp_path.iterdir()) == []
    run(dataclasses.replace(broken, enabled=np.arange(40) > 11), tmp_path, use_weights=True)


def test_optics_are_not_asked_for_without_ctf(plain, tmp_path):
    broken = dataclasses.replace(plain, defocus_u=np.full(40, np.nan))
    found, _ = run(broken, tmp_path, ctf="none")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("method", METHODS)
def test_broken_and_constant_images_are_left_out_and_counted(tmp_path, method):
    particles = particles_on_disk(tmp_path, count=40)
    images = read_stack(particles.stack[0])
    images[3, 5, 7], images[10, 0, 0], images[20], images[31] = np.nan, np.inf, 2.5, 0
    images[32, 12] = 1  # one constant row is no constant image
    write_stack(tmp_path / "particles.mrcs", images, SAMPLING)
    found, result = run(particles, tmp_path / "all", method=method, halves=False, batch_size=16)
    assert (result.unusable, result.particles, result.skipped) == (4, 36, 0)
    good = particles.take(np.setdiff1d(np.arange(40), [3, 10, 20, 31]))
    expected, _ = run(good, tmp_path / "good", method=method, halves=False)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_a_half_without_usable_images_is_told(tmp_path):
    particles = particles_on_disk(tmp_path, count=10, half=1 + np.arange(10) % 2)
    images = read_stack(particles.stack[0])
    images[1::2] = np.nan
    write_stack(tmp_path / "particles.mrcs", images, SAMPLING)
    with pytest.raises(ProcessingError, match=r"expected images in every half, found \[5, 0\]"):
        run(particles, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_sets_of_which_one_is_empty_are_told_before_an_image_is_read(tmp_path):
    particles = particles_on_disk(tmp_path, count=10, half=np.arange(10) > 0)
    (tmp_path / "particles.mrcs").unlink()
    with pytest.raises(ProcessingError, match="expected particles of half sets 1 and 2, found 1 alone"):
        select(ReconstructFourierParameters(ctf="none"), particles)


def test_too_few_particles_are_told(plain, tmp_path):
    one = plain.take([3])
    with pytest.raises(ProcessingError, match="expected 2 or more enabled particles, found 1"):
        run(one, tmp_path)
    assert run(one, tmp_path, halves=False)[1].particles == 1
    worthless = dataclasses.replace(plain, weight=np.zeros(40))
    with pytest.raises(ProcessingError, match="expected 1 or more enabled particles of positive weight, found 0"):
        run(worthless, tmp_path, halves=False, use_weights=True)


def small(folder, box, rate, count=300):
    """(particles with images of `box` px, the map) of the phantom without what such pixels do not show."""
    soft, matrices = phantom().blurred(0.7 * rate), random_matrices(count, np.random.default_rng(1))
    write_stack(folder / "small.mrcs", soft.project(matrices, box, rate), rate)
    rot, tilt, psi = matrix_to_euler(matrices)
    pose = dict(rot=rot, tilt=tilt, psi=psi, has_pose=True)
    stack = [str(folder / "small.mrcs")] * count
    return Particles(stack, np.arange(count), **pose, sampling_rate=rate), soft.volume(box, rate)


@pytest.mark.parametrize("box", [1, 2, 3])
def test_tiny_boxes_are_refused(tmp_path, box):
    with pytest.raises(ParameterError, match=f"particles: expected a box of 4 px or more .*found {box}"):
        run(small(tmp_path, box, 30.0, count=4)[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("box", [4, 5, 7, 11, 13, 17, 19])
def test_small_odd_and_prime_boxes_show_the_phantom(tmp_path, box, method):
    particles, truth = small(tmp_path, box, 90.0 / box)
    found, result = run(particles, tmp_path, method=method)
    assert result.box == box and correlation(found, truth) > (0.975 if box == 4 else 0.99)


def test_images_that_are_not_square_are_refused(tmp_path):
    write_stack(tmp_path / "long.mrcs", np.random.default_rng(0).normal(size=(4, 8, 10)).astype(np.float32), 3.0)
    particles = Particles([str(tmp_path / "long.mrcs")] * 4, np.arange(4), has_pose=True, sampling_rate=3.0)
    with pytest.raises(InputFileError, match=r"long\.mrcs: expected square images, found images of 8 x 10 px"):
        run(particles, tmp_path / "out")
