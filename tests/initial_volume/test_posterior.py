import numpy as np
import pytest

from tests.particle_alignment.simulated import BOX, SAMPLING, centres, make_particles, make_volume
from xmipp_accel.backend import CPU
from xmipp_accel.initial_volume.images import read_usable, ring_images, working_size
from xmipp_accel.initial_volume.parameters import ReconstructSignificantParameters
from xmipp_accel.initial_volume.posterior import average_views, likelihood_temperatures, temperatures
from xmipp_accel.initial_volume.reconstruct_significant import resize_volume, shares
from xmipp_accel.numerics.projection import VolumeSpectrum
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment import polar

POINTS = centres(np.random.default_rng(2))


def prepared(folder, n=6, resolution=16.0, **options):
    parameters = ReconstructSignificantParameters(max_shift=options.pop("max_shift", 10.0))
    particles = make_particles(folder, POINTS, n=n, **options)
    images, _ = read_usable(particles, BOX)
    return ring_images(images, particles, resolution, 0.42, parameters, CPU), particles


def views_of(images, eulers):
    size = images.grid.box
    spectrum = VolumeSpectrum(resize_volume(make_volume(POINTS), size), images.grid.n_rings)
    return polar.angular_coefficients(
        spectrum.slices(euler_to_matrix(*eulers), images.grid.frequencies), images.grid
    )


def test_significance_falls_geometrically_and_grows_with_the_group():
    found = shares(ReconstructSignificantParameters(alpha_start=80.0, alpha_end=98.75, iterations=5))
    np.testing.assert_allclose(found, [0.2, 0.0125, 0.05, 0.025, 0.0125])
    symmetric = shares(ReconstructSignificantParameters("d2", alpha_start=80.0, alpha_end=98.0, iterations=6))
    np.testing.assert_allclose(symmetric, [0.5, 0.2, 0.08, 0.2, np.sqrt(0.016), 0.08])


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_temperatures_spread_each_image_over_the_asked_share_of_views(share):
    scores = np.random.default_rng(0).normal(size=(5, 200)) * np.array([[0.01], [0.05], [0.1], [0.3], [1]])
    weight = np.exp(temperatures(scores, share)[:, None] * scores)
    weight /= weight.sum(axis=1, keepdims=True)
    perplexity = np.exp(-(weight * np.log(weight + 1e-300)).sum(axis=1))
    np.testing.assert_allclose(perplexity, share * 200, rtol=1e-3)


def test_no_image_is_surer_than_its_likelihood():
    scores, independent, step = np.array([[0.1, 0.6], [0.3, 0.2]]), 50.0, 1e-6

    def logarithm(c):
        return -independent / 2 * np.log(1 - c**2)

    best = np.array([0.6, 0.3])
    slope = (logarithm(best + step) - logarithm(best - step)) / (2 * step)
    np.testing.assert_allclose(likelihood_temperatures(scores, independent), slope, rtol=1e-6)


def test_averages_and_weights_are_those_of_the_posterior(tmp_path):
    """Against the posterior over a grid of angles and shifts, written out in float64."""
    images, _ = prepared(tmp_path, n=5, snr=0.5, seed=4)
    grid = images.grid
    references = views_of(images, np.random.default_rng(1).uniform(0, 180, (3, 12)))
    share = 0.3
    views = average_views(images, np.arange(5), references, share)
    # The oracle: c(r, psi, s) from samples of the whole circle that is stored, without harmonics.
    samples = polar.samples_from_coefficients(references, grid).astype(np.complex128)
    area = images.weights[:, None] / samples.shape[2]
    n_psi = 4 * int(np.ceil(2.0 * grid.n_harmonics / 4))
    turns = np.arange(n_psi) * (360.0 / n_psi)
    turned = np.stack(
        [
            polar.samples_from_coefficients(polar.rotate_coefficients(references, np.full(12, t)), grid)
            for t in turns
        ]
    )
    norm = np.sqrt((np.abs(samples) ** 2 * area).sum(axis=(1, 2)))
    shifted = images.samples[:, None] * polar.shift_phases(grid, images.shifts)
    score = np.einsum("trkp,iskp,kp->irts", turned.conj(), shifted, np.broadcast_to(area, samples.shape[1:])).real
    score /= norm[:, None, None]
    best_shift = score.max(axis=2).argmax(axis=2)
    at_best = np.take_along_axis(score, best_shift[:, :, None, None], axis=3)[..., 0]  # (i, r, t)
    by_view = at_best.max(axis=2)
    beta = np.minimum(temperatures(by_view, share), likelihood_temperatures(by_view, images.independent))
    weight = np.exp(beta[:, None, None] * (at_best - by_view.max(axis=1)[:, None, None]))
    weight /= weight.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(views.weight, weight.sum(axis=(0, 2)), atol=5e-3)
    np.testing.assert_allclose(views.score, by_view.max(axis=1), atol=1e-4)
    np.testing.assert_array_equal(views.direction, by_view.argmax(axis=1))
    view = int(views.weight.argmax())
    expected = np.zeros(references.shape[1:], np.complex128)
    for image in range(5):
        harmonics = polar.angular_coefficients(shifted[image, best_shift[image, view]], grid)
        back = [polar.rotate_coefficients(harmonics, -t) for t in turns]
        expected += np.einsum("t,tkq->kq", weight[image, view], np.array(back))
    expected /= 1.05 * views.weight[view]
    assert np.abs(views.averages[view] - expected).max() < 0.02 * np.abs(expected).max()


def test_averages_of_images_with_a_ctf_are_free_of_it(tmp_path):
    angles = np.full(60, 40.0), np.full(60, 70.0)
    images, _ = prepared(tmp_path, n=60, snr=2.0, shift=0.0, max_shift=0.0, ctf=True, angles=angles)
    views = views_of(images, np.array([[40.0], [70.0], [0.0]]))
    found = average_views(images, np.arange(60), views, 1.0).averages[0]
    per_ring = np.abs((found.conj() * views[0]).sum(axis=1))
    per_ring /= np.linalg.norm(found, axis=1) * np.linalg.norm(views[0], axis=1)
    assert per_ring.min() > 0.9
    gains = np.linalg.norm(found, axis=1) / np.linalg.norm(views[0], axis=1)
    assert images.gain.mean(axis=0).max() > 4 * images.gain.mean(axis=0).min(), "the CTF weakens some rings"
    assert gains[1:].max() < 1.8 * gains[1:].min(), "and the averages do not"


def test_images_without_content_are_set_aside(tmp_path):
    particles = make_particles(tmp_path, POINTS, n=5)
    from xmipp_accel.io.images import write_stack

    images = particles.images()
    images[1], images[3, 4, 4] = 7.0, np.nan
    write_stack(tmp_path / "particles.mrcs", images, SAMPLING)
    found, usable = read_usable(particles, 16)
    np.testing.assert_array_equal(usable, [True, False, True, False, True])
    assert found.shape == (3, 16, 16) and np.isfinite(found).all()


def test_the_working_size_holds_the_resolution_and_never_exceeds_the_box():
    assert working_size(64, 2.0, 16.0) == 22  # 128 A in pixels of at most 16 / 2.6 A
    assert working_size(64, 2.0, 3.0) == 64


def test_a_resized_volume_is_the_same_function():
    fine, coarse = make_volume(POINTS), resize_volume(make_volume(POINTS), 24)
    assert coarse.sum() * (BOX / 24) ** 3 == pytest.approx(fine.sum(), rel=1e-5)
    back = resize_volume(coarse, BOX)
    assert np.corrcoef(back.ravel(), fine.ravel())[0, 1] > 0.99
