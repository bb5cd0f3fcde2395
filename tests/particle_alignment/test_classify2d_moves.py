"""How the 2D classification gets from one optimum to a better one: splits, merges, replaced classes."""

import numpy as np
import pytest

from tests.particle_alignment.test_classify2d import particles_of, prepare
from xmipp_accel.backend import to_host
from xmipp_accel.particle_alignment.classify2d import Classifier, leading_component, model_of
from xmipp_accel.particle_alignment.classify2d_batch import Batch, Sums, assign, residuals, sums
from xmipp_accel.particle_alignment.classify2d_model import fit_model
from xmipp_accel.particle_alignment.classify2d_poses import Poses
from xmipp_accel.particle_alignment.classify2d_search import PoseSearch, search_grid
from xmipp_accel.particle_alignment.classify2d_workers import Workers

BOX, EACH, NOISE = 24, 20, 0.7


@pytest.fixture
def scene(device):
    """A batch of three views, their numbers, and their poses."""
    rng = np.random.default_rng(5)
    views = np.repeat([0, 1, 2], EACH)
    turns, shifts = rng.uniform(-np.pi, np.pi, len(views)), rng.uniform(-1, 1, (len(views), 2))
    images = particles_of(BOX, turns, shifts, None, views, NOISE)
    power = np.full(9, NOISE**2 * BOX**2)
    with Workers([device]) as workers:
        particles = prepare(images, device, noise=power)
        parts = [
            particles.take(slice(0, EACH)),
            particles.take(slice(EACH, None)),
        ]  # view 0 has a block of its own
        yield Batch(workers, parts), views, (turns, shifts)


def state_of(batch, labels, poses):
    """Classifier and state for some classes of particles in their true poses."""
    turns, shifts = poses
    count = labels.max() + 1
    zero = np.zeros((len(labels), 1))
    placed = Poses(
        labels[:, None],
        zero.astype(bool),
        turns[:, None].astype(np.float32),
        shifts[:, None].astype(np.float32),
        zero,
    )
    grid = batch.typical.grid
    empty = np.zeros((count, grid.n_rings, grid.n_harmonics), np.complex64)
    blank = fit_model(
        empty, np.ones((count, grid.n_rings), np.float32), batch.typical, signal=np.ones(grid.n_rings)
    )
    total, shares = sums(batch, blank, placed)
    classifier = Classifier(2.0, seed=1)
    return classifier, classifier._state(batch, model_of(batch.typical, total, placed), shares)


def purity(labels, views):
    return sum(np.bincount(views[labels == label]).max() for label in np.unique(labels)) / len(views)


def test_leading_component_is_that_of_a_singular_value_decomposition():
    values = np.random.default_rng(0).standard_normal((12, 30)).astype(np.float32)
    values[:5] += 3.0
    power, scores = leading_component(values)
    left, spread, _ = np.linalg.svd(values - values.mean(axis=0))
    assert power == pytest.approx(spread[0] ** 2, rel=1e-4)
    assert abs(scores @ left[:, 0]) == pytest.approx(1.0, abs=1e-4)
    assert len({*(scores[:5] > 0)}) == 1 and (scores[:5] > 0)[0] != (scores[5:] > 0)[0]


def test_residuals_are_what_the_average_leaves(scene):
    """Of a class of one view they hold noise, of which each ring has its share of the signal; of two, more."""
    batch, views, poses = scene
    _, pure = state_of(batch, views, poses)
    _, mixed = state_of(batch, np.minimum(views, 1), poses)
    (members, values), (_, two) = (
        residuals(batch, pure.model, pure.poses, [0])[0],
        (residuals(batch, mixed.model, mixed.poses, [1])[0]),
    )
    np.testing.assert_array_equal(members, np.flatnonzero(pure.labels == 0))
    assert leading_component(two)[0] > 3 * leading_component(values)[0]


def test_a_round_of_moves_separates_what_was_merged_and_joins_what_was_split(scene):
    batch, views, poses = scene
    labels = np.where(views == 0, np.arange(len(views)) % 2, 2)  # view 0 twice, views 1 and 2 together
    classifier, state = state_of(batch, labels, poses)
    assert purity(state.labels, views) < 0.7
    better, bold = classifier.breathe(batch, state, 3, 1)
    assert bold and better.objective > state.objective
    assert purity(better.labels, views) >= 0.95 and len(better.model) == 3
    last, bold = classifier.breathe(batch, better, 3, 1)
    assert not bold and last.objective >= better.objective


def test_a_lost_class_is_filled_again(scene):
    batch, views, poses = scene
    classifier, state = state_of(batch, np.where(views == 0, 0, 1), poses)
    better, _ = classifier.breathe(batch, state, 3, 1)
    assert len(better.model) == 3 and purity(better.labels, views) >= 0.95


def test_online_learning_replaces_a_class_that_nobody_joins(scene):
    batch, views, poses = scene
    _, state = state_of(batch, np.where(views == 0, 0, 1), poses)
    zero = np.zeros_like(state.model.numerator[:1])
    numerator = np.concatenate([state.model.numerator, zero])
    denominator = np.concatenate([state.model.denominator, np.full_like(state.model.denominator[:1], 20.0)])
    total = Sums(numerator, denominator, state.model.noise)
    model = fit_model(numerator, denominator, batch.typical, state.model.noise)
    classifier = Classifier(2.0, seed=1)
    assert (classifier.start(batch, model).counts[2]) < 2
    for step in range(3):
        model, total, _, replaced = classifier.learn(batch, model, total, (float(step), 1.0))
        assert replaced.tolist() == ([2] if step == 0 else [])
    assert purity(classifier.start(batch, model).labels, views) >= 0.95


def test_a_small_instalment_moves_the_sums_little(scene):
    batch, views, poses = scene
    classifier, state = state_of(batch, views, poses)
    total = Sums(state.model.numerator, state.model.denominator, state.model.noise)
    kept = []
    for share in (1.0, 0.1):
        _, after, _, _ = classifier.learn(batch, state.model, total, (4.0, share))
        new = sums(batch, state.model, classifier.start(batch, state.model).poses)[0]
        kept.append(float(((after.denominator - new.denominator) / total.denominator).mean()))
    # Cappe and Moulines: the old sums fade by the rate (t + 2)**-0.7, in proportion to the share of a full batch.
    np.testing.assert_allclose(kept, [1 - 6**-0.7, 1 - 0.1 * 6**-0.7], rtol=1e-3)


def test_near_search_stays_near_and_finds_what_is_there(scene, device):
    batch, views, (turns, shifts) = scene
    _, state = state_of(batch, views, (turns, shifts))
    particles, rows = batch._blocks[1]
    views, shifts = views[rows], shifts[rows]
    model = state.model.on(device)
    for offset in (0.0, 4.0):
        centre = (shifts + offset).astype(np.float32)
        zero = np.zeros((len(views), 1))
        before = Poses(views[:, None], zero.astype(bool), zero.astype(np.float32), centre[:, None], zero)
        before = before.each(device.asarray)
        space = search_grid(particles.grid, 6, 8.0, near=True)
        found = PoseSearch(model, space).coarse(particles, 1, centre=before.shift[:, 0]).each(to_host)
        away = np.hypot(*(found.shift[:, 0] - centre).T)
        assert away.max() <= 1.5 * space.step + 1e-4 and len(space.shifts) == 9
        assert (found.label[:, 0] == views).mean() > (0.95 if offset == 0 else 0.0)
    wide = assign(batch, state.model, 2.0, False)
    close = assign(batch, state.model, 2.0, False, previous=wide, near=True)
    assert np.abs(close.shift[:, 0] - wide.shift[:, 0]).max() < 0.5
