import numpy as np
import pytest

from xmipp_accel.io.particles import read_particles
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.simulate.particles import simulate_particles


@pytest.mark.parametrize("suffix", [".star", ".xmd"])
def test_files_hold_images_and_ctf_but_no_poses(tmp_path, suffix):
    truth = simulate_particles(tmp_path, 7, box=21, sampling_rate=5.0, seed=3)
    particles = read_particles(tmp_path / f"particles{suffix}")
    assert len(particles) == 7 and particles.box == 21 and particles.sampling_rate == 5.0
    assert particles.has_ctf and not particles.has_pose
    np.testing.assert_allclose(particles.defocus_u, truth.defocus[:, 0], atol=0.1)
    stored = np.load(tmp_path / "particles.npz")
    np.testing.assert_array_equal(stored["eulers"], truth.eulers)
    np.testing.assert_array_equal(stored["shifts"], truth.shifts)


def test_truth_explains_the_images(tmp_path):
    truth = simulate_particles(
        tmp_path, 4, box=24, sampling_rate=5.0, snr=0.0, max_shift=2.0, seed=1, name="clean"
    )
    images = read_particles(tmp_path / "clean.star").images()
    clean = truth.phantom.project(euler_to_matrix(*truth.eulers.T), 24, 5.0, -truth.shifts)
    spectra = np.fft.rfft2(clean) * ctf_image(24, 5.0, *truth.defocus.T)
    for image, expected in zip(images, np.fft.irfft2(spectra, s=(24, 24))):
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > 0.9999
    assert np.abs(truth.shifts).max() <= 2.0 and np.ptp(truth.shifts) > 1.0


def test_noise_has_the_asked_strength_and_unit_background(tmp_path):
    kept = dict(box=32, sampling_rate=5.0, seed=5, defocus=None)
    truth = simulate_particles(tmp_path, 60, snr=0.2, **kept)
    images = read_particles(tmp_path / "particles.star").images()
    signal = truth.phantom.project(euler_to_matrix(*truth.eulers.T), 32, 5.0, -truth.shifts)
    axis = np.arange(32) - 16
    outside = np.hypot(axis[:, None], axis[None]) > 0.46 * 32
    np.testing.assert_allclose(images[:, outside].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(images[:, outside].std(axis=1), 1, atol=1e-5)
    assert images.var() - 1 == pytest.approx(0.2, abs=0.05)
    assert not read_particles(tmp_path / "particles.star").has_ctf
    assert np.corrcoef(images.ravel(), signal.ravel())[0, 1] == pytest.approx(np.sqrt(0.2 / 1.2), abs=0.05)


def test_fixed_views_share_directions(tmp_path):
    truth = simulate_particles(tmp_path, 30, box=16, sampling_rate=8.0, views=4, seed=2)
    assert sorted(np.bincount(truth.views)) == [7, 7, 8, 8]
    for view in range(4):
        directions = truth.eulers[truth.views == view][:, :2]
        assert np.ptp(directions, axis=0).max() == 0
    assert np.ptp(truth.eulers[truth.views == 0][:, 2]) > 10


def test_same_seed_same_images(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate_particles(tmp_path, 3, box=16, sampling_rate=8.0, seed=seed, name=name)
    a, b, c = (read_particles(tmp_path / f"{name}.star").images() for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1
