"""The parts of the 2D classification, against sums over Cartesian Fourier samples and against known poses."""

import dataclasses

import numpy as np
import pytest

from xmipp_accel.backend import CPU, array_module, to_host
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.particle_alignment.classify2d import (
    Classifier,
    alike_pairs,
    decentring,
    model_of,
    most_useful,
    shift_coefficients,
)
from xmipp_accel.particle_alignment.classify2d_averages import AverageSums, aligned_sums, transform_images
from xmipp_accel.particle_alignment.classify2d_batch import Batch, search_rings, sums
from xmipp_accel.particle_alignment.classify2d_model import (
    background_power,
    fit_model,
    prepare_particles,
    reference_model,
    rescaled,
)
from xmipp_accel.particle_alignment.classify2d_poses import Poses, Shares
from xmipp_accel.particle_alignment.classify2d_search import PoseSearch, search_grid
from xmipp_accel.particle_alignment.classify2d_workers import Workers
from xmipp_accel.particle_alignment.polar import polar_grid, soft_circle
from xmipp_accel.particle_alignment.poses import align2d_matrix
from xmipp_accel.simulate.phantom import protein_phantom

RATE = 4.0


def particles_of(box, turns, shifts, mirrored=None, views=None, noise=0.0, seed=0):
    """Images whose alignment by (turn, shift, mirrored) shows the phantom's view; turns in radians."""
    rng = np.random.default_rng(seed)
    count = len(turns)
    views = np.zeros(count, int) if views is None else views
    mirrored = np.zeros(count, bool) if mirrored is None else mirrored
    phantom = protein_phantom(0.55 * box * RATE, seed=4).blurred(0.8 * RATE)
    images = []
    for view, turn, shift, mirror in zip(views, turns, shifts, mirrored):
        # Aligned = M R(turn) (u + shift), so the particle is the view turned by R(turn)^T M and moved by -shift.
        matrix = euler_to_matrix(0.0, 40.0 * view, 0.0)
        if mirror:
            # To project a mirrored phantom is to mirror the projection.
            matrix = np.diag([-1.0, 1.0, 1.0]) @ matrix
        c, s = np.cos(turn), np.sin(turn)
        back = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        images.append(phantom.project(back @ matrix, box, RATE, -np.asarray(shift)[None])[0])
    images = np.stack(images)
    images /= images.std()
    return (images + noise * rng.standard_normal(images.shape)).astype(np.float32)


def prepare(images, device, n_rings=9, optics=None, noise=None):
    box = images.shape[-1]
    mask = device.asarray(soft_circle(box, 0.42 * box, 3.0))
    grid = polar_grid(box, n_rings, 0.42 * box, 3.0)
    noise = np.full(n_rings, float(box**2)) if noise is None else noise
    return prepare_particles(device.asarray(images), mask, grid, noise, optics, RATE)


def typical_of(particles, device=CPU):
    with Workers([device]) as workers:
        return Batch(workers, [particles]).typical


def model_with(averages, particles, device, **choices):
    """Model of some prepared images on a device."""
    numerator, count = (to_host(array) for array in (averages.coefficients, averages.ctf2))
    scale = choices.pop("scale", 1.0)
    return fit_model(scale * numerator, scale * count, typical_of(particles, device), **choices).on(device)


@pytest.mark.parametrize("box", [24, 31])
@pytest.mark.parametrize("mirrors", [False, True])
def test_search_and_refinement_find_known_poses(box, mirrors, device):
    rng = np.random.default_rng(1)
    turns, shifts = rng.uniform(-np.pi, np.pi, 8), rng.uniform(-2, 2, (8, 2))
    mirrored = np.arange(8) % 2 == 1 if mirrors else np.zeros(8, bool)
    views = np.arange(8) // 4
    particles = prepare(particles_of(box, turns, shifts, mirrored, views, 0.3), device)
    averages = prepare(particles_of(box, np.zeros(2), np.zeros((2, 2)), None, np.arange(2)), device)
    model = model_with(averages, particles, device, signal=np.full(9, 100.0))
    poses = (
        PoseSearch(model, search_grid(particles.grid, 8, 3.0), mirrors).poses(particles, 2, budget=1 << 20).best()
    )
    np.testing.assert_array_equal(to_host(poses.label)[:, 0], views)
    np.testing.assert_array_equal(to_host(poses.mirrored)[:, 0], mirrored)
    error = np.angle(np.exp(1j * (to_host(poses.theta)[:, 0] - turns)))
    assert np.abs(error).max() < np.deg2rad(2.0)
    assert np.abs(to_host(poses.shift)[:, 0] - shifts).max() < 0.2


def test_score_is_the_likelihood_summed_over_cartesian_samples(device):
    """Noise-free average, so w = 1 and L = sum [Re <A, x> - |A|^2 / 2] / noise over a disc of frequencies."""
    box, rings = 32, 12
    images = particles_of(box, np.zeros(2), np.zeros((2, 2)), None, np.array([0, 1]))
    particles = prepare(images, device, rings)
    model = model_with(particles, particles, device, scale=np.float32(1e6), signal=np.full(rings, 1e6))
    zero = np.zeros((2, 1))
    shift = device.asarray(np.zeros((2, 1, 2)), np.float32)
    poses = Poses(
        device.asarray(np.array([[0], [0]])),
        device.asarray(zero.astype(bool)),
        device.asarray(zero, np.float32),
        shift,
        device.asarray(zero, np.float32),
    )
    search = PoseSearch(model, search_grid(particles.grid, 8, 3.0))
    found = to_host(search.refine(particles, poses).score)[0, 0]
    mask = soft_circle(box, 0.42 * box, 3.0)
    outside = 1 - mask
    level = (images[0] * outside).sum() / outside.sum()
    padded = 8 * box  # fine frequencies, so that the rim of the disc is round
    spectrum = np.fft.fft2((images[0] - level) * mask, s=(padded, padded))
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(padded) * box] * 2, indexing="ij"))
    within = (radius > 0.5) & (radius < rings + 0.5)
    expected = 0.5 * (np.abs(spectrum[within]) ** 2).sum() / padded**2
    assert found == pytest.approx(expected, rel=0.05)


def test_own_noise_is_taken_off(device):
    """With noise alone, members of an average score no better with it than strangers do."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((200, 24, 24)).astype(np.float32)
    particles = prepare(images, device)
    xp = device.xp
    members = xp.arange(100)
    model = fit_model(
        to_host(particles.coefficients[members].sum(axis=0))[None],
        to_host(particles.ctf2[members].sum(axis=0))[None],
        typical_of(particles, device),
        signal=np.full(9, 0.05),
    ).on(device)
    membership = xp.zeros((200, 1), np.float32)
    membership[members] = 1.0
    biased = to_host(_score_unmoved(particles, model, None))
    fair = to_host(_score_unmoved(particles, model, membership))
    spread = biased[100:].std() / np.sqrt(50)
    assert biased[:100].mean() - biased[100:].mean() > 5 * spread
    assert abs(fair[:100].mean() - fair[100:].mean()) < 3 * spread


def _score_unmoved(particles, model, membership):
    """Scores with class 0, as the particles lie."""
    xp = array_module(particles.samples)
    templates = model.averages * model.weights[:, :, None]
    weights = xp.asarray(particles.grid.harmonic_weights.astype(np.float32))
    cross = ((particles.coefficients * templates[0].conj()).real.sum(axis=1) * weights).sum(axis=1)
    return cross + model.offsets(particles, membership)[:, 0]


def test_background_power_of_white_noise_is_its_variance(device):
    images = (2.0 * np.random.default_rng(0).standard_normal((200, 32, 32))).astype(np.float32)
    power = background_power(device.asarray(images), device.asarray(soft_circle(32, 12.0)), 14)
    np.testing.assert_allclose(power[2:] / 32**2, 4.0, rtol=0.1)


def test_decentred_averages_are_found_and_centred(device):
    rng = np.random.default_rng(3)
    turns, shifts = rng.uniform(-np.pi, np.pi, 40), rng.uniform(-1, 1, (40, 2))
    particles = prepare(particles_of(24, turns, shifts), device)
    offset = np.array([1.5, -1.0])  # of the average: every particle is moved by as much after its turn
    c, s = np.cos(turns), np.sin(turns)
    own = shifts + np.stack([s * offset[1] + c * offset[0], c * offset[1] - s * offset[0]], axis=1)
    poses = Poses(
        np.zeros((40, 1), np.int64),
        np.zeros((40, 1), bool),
        turns[:, None].astype(np.float32),
        own[:, None].astype(np.float32),
        np.zeros((40, 1), np.float32),
    )
    found = decentring(poses, 2)
    np.testing.assert_allclose(found[0], offset * 40 / 41, atol=0.3)
    np.testing.assert_array_equal(found[1], 0)
    moved = shift_coefficients(particles.coefficients, device.asarray(np.tile(offset, (40, 1))), particles.grid)
    back = shift_coefficients(moved, device.asarray(np.tile(-offset, (40, 1))), particles.grid)
    scale = np.abs(to_host(particles.coefficients)).max()
    np.testing.assert_allclose(to_host(back), to_host(particles.coefficients), atol=0.02 * scale)


def test_least_useful_classes_go_first():
    label = np.array([[0, 1], [0, 1], [1, 0], [2, 0], [2, 1]])
    score = np.array([[10.0, 9.9], [10.0, 9.8], [10.0, 2.0], [10.0, 1.0], [10.0, 0.0]])
    poses = Poses(label, None, None, None, score)
    np.testing.assert_array_equal(most_useful(poses, 4, 3), [0, 1, 2])  # 3 has no particles
    np.testing.assert_array_equal(most_useful(poses, 4, 2), [1, 2])  # 0 is replaced by 1 for little
    np.testing.assert_array_equal(most_useful(poses, 4, 1), [2])  # 2 is what nothing replaces
    assert alike_pairs(poses, 4, 3) == [(1, 0)]  # then 1 and 0 are taken, and 3 has no particle


def test_shares_survive_a_new_numbering():
    shares = Shares(np.array([[0, 2], [1, 1]]), np.array([[0.7, 0.3], [1.0, 0.0]], np.float32))
    np.testing.assert_allclose(shares.dense(3, np), [[0.7, 0, 0.3], [0, 1, 0]])
    moved = shares.renumbered(np.array([1, -1, 0]))
    np.testing.assert_allclose(moved.dense(2, np), [[0.3, 0.7], [0, 0]])


def test_repeated_class_keeps_its_better_pose_only():
    poses = Poses(
        label=np.array([[3, 1, 3]]),
        mirrored=np.array([[False, True, True]]),
        theta=np.array([[0.0, 1.0, 2.0]], np.float32),
        shift=np.zeros((1, 3, 2), np.float32),
        score=np.array([[5.0, 6.0, 7.0]], np.float32),
    ).ranked()
    assert poses.label.tolist() == [[3, 1, 3]] and poses.theta.tolist() == [[2.0, 1.0, 0.0]]
    assert poses.score.tolist() == [[7.0, 6.0, -np.inf]]


@pytest.mark.parametrize("n_rings", [1, 4, 9])
def test_search_grid_respects_the_largest_shift(n_rings):
    grid = polar_grid(24, 9, 10.0, 3.0)
    space = search_grid(grid, n_rings, 3.0)
    assert np.hypot(*space.shifts.T).max() <= 3.0 + 1e-9 and [0.0, 0.0] in space.shifts.tolist()
    assert len(search_grid(grid, n_rings, 0.0).shifts) == 1


def test_iteration_raises_the_objective_and_sums_hold_every_particle(device):
    rng = np.random.default_rng(5)
    views = np.arange(60) % 3
    images = particles_of(24, rng.uniform(-np.pi, np.pi, 60), rng.uniform(-1, 1, (60, 2)), None, views, 1.0)
    particles = prepare(images, device)
    with Workers([device]) as workers:
        batch = Batch(workers, [particles.take(slice(0, 25)), None, particles.take(slice(25, 60))])
        classifier = Classifier(2.0, seed=1)
        state = classifier.seed(batch, 4)
        better = classifier.iterate(batch, state, 4)
        assert better.objective > state.objective
        total, shares = sums(batch, better.model, better.poses)
        np.testing.assert_allclose(shares.weight.sum(axis=1), 1, atol=1e-2)
        assert float(total.denominator.sum()) == pytest.approx(60 * 9, rel=1e-2)
        hot = sums(batch, better.model, better.poses, temperature=1e4)[1]
        assert hot.weight.max(axis=1).mean() < shares.weight.max(axis=1).mean() - 0.2
        assert 1 <= search_rings(model_of(batch.typical, total, better.poses)) <= 9


def test_rings_that_could_decide_between_poses_are_searched():
    particles = prepare(particles_of(24, np.zeros(1), np.zeros((1, 2))), CPU)
    model = fit_model(particles.coefficients, particles.ctf2, typical_of(particles), signal=np.full(9, 1.0))
    for left_out, expected in ((1.0, 7), (1e-3, 7), (3.0, 9)):
        # Expected gain of a ring: half the weighted energy of its average.
        energy = np.full((1, 9), 200.0, np.float32)
        energy[:, 7:] = left_out
        known = dataclasses.replace(model, energy=energy, weights=np.ones((1, 9), np.float32))
        assert search_rings(known) == expected


def test_scale_of_references_is_found():
    rng = np.random.default_rng(5)
    images = particles_of(24, rng.uniform(-np.pi, np.pi, 30), rng.uniform(-1, 1, (30, 2)), noise=0.5)
    clean = prepare(particles_of(24, np.zeros(1), np.zeros((1, 2))), CPU)
    with Workers([CPU]) as workers:
        batch = Batch(workers, [prepare(images, CPU)])
        model = reference_model(batch.typical, 7.0 * clean.coefficients)
        for _ in range(2):
            state = Classifier(2.0).start(batch, model)
            model = rescaled(model, sums(batch, model, state.poses)[0])
    # As much of the clean image as there is in the average, in any orientation.
    ratio = np.sqrt((np.abs(model.averages) ** 2).sum() / (np.abs(clean.coefficients) ** 2).sum())
    assert ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("box", [20, 27])
@pytest.mark.parametrize("mirror", [False, True])
def test_aligned_images_show_the_view(box, mirror, device):
    turns, shifts = np.array([0.7, -2.1]), np.array([[1.3, -0.6], [-0.4, 2.0]])
    mirrored = np.full(2, mirror)
    images = particles_of(box, turns, shifts, mirrored)
    view = particles_of(box, np.zeros(1), np.zeros((1, 2)))[0]
    aligned = to_host(transform_images(device.asarray(images), turns, shifts, mirrored))
    for image in aligned:
        assert np.corrcoef(image.ravel(), view.ravel())[0, 1] > 0.99


def test_pose_convention_is_the_one_of_align2d_matrix():
    """A bright pixel goes where the matrix, made of the numbers that are written, says."""
    box, theta, shift = 33, 0.6, np.array([2.0, -3.0])
    for mirrored in (False, True):
        images = np.zeros((1, box, box), np.float32)
        u = np.array([5.0, -4.0])  # (x, y) from the centre
        images[0, 16 + int(u[1]), 16 + int(u[0])] = 1.0
        aligned = transform_images(images, np.array([theta]), shift[None], np.array([mirrored]))[0]
        psi = np.rad2deg(theta if mirrored else -theta)
        matrix = align2d_matrix(psi, (-1 if mirrored else 1) * shift[1], shift[0], mirrored)
        x, y = (matrix @ [u[0], u[1], 0, 1])[:2] + 16
        row, column = np.unravel_index(aligned.argmax(), aligned.shape)
        assert abs(row - y) <= 0.75 and abs(column - x) <= 0.75


def test_averages_undo_the_ctf(device):
    box, count = 32, 24
    rng = np.random.default_rng(2)
    turns, shifts = rng.uniform(-np.pi, np.pi, count), rng.uniform(-1, 1, (count, 2))
    clean = particles_of(box, turns, shifts)
    view = particles_of(box, np.zeros(1), np.zeros((1, 2)))[0]
    optics = dict(defocus_u=rng.uniform(8000, 20000, count))
    images = np.fft.irfft2(np.fft.rfft2(clean) * ctf_image(box, RATE, **optics), s=(box, box)).astype(np.float32)
    quality = {}
    for correct in (True, False):
        total = AverageSums(2, box)
        poses = Poses(np.zeros((count, 1), int), np.zeros((count, 1), bool), turns[:, None], shifts[:, None], None)
        weight, halves = np.ones((count, 1), np.float32), np.arange(count) % 2
        own = optics if correct else None
        total.add(aligned_sums(device.asarray(images), poses, weight, halves, 2, own, RATE, budget=1 << 18))
        averages, resolutions = total.finish(12.0, correct, RATE)
        quality[correct] = np.corrcoef(averages[0].ravel(), view.ravel())[0, 1]
        assert not averages[1].any() and resolutions[1] == 0 and 0 < resolutions[0] < 20
    assert quality[True] > 0.97 and quality[True] > quality[False] + 0.02


def test_prepared_particles_can_be_taken_and_are_scaled_alike(device):
    images = particles_of(48, np.zeros(3), np.zeros((3, 2)), None, np.arange(3))
    few = prepare(images, device, 6)  # small enough to be resampled first
    many = prepare(images, device, 20)
    np.testing.assert_allclose(to_host(few.energy), to_host(many.energy)[:, :6], rtol=0.01)
    taken = few.take(device.asarray(np.array([2, 0])))
    np.testing.assert_array_equal(to_host(taken.energy), to_host(few.energy)[[2, 0]])
    assert len(dataclasses.replace(taken)) == 2
