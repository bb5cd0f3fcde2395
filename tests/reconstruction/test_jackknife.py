"""Standard errors against the deviation over repeated noise, and B factors that are known."""

import functools

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, views
from tests.reconstruction.test_halves import filtered, radii
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.numerics.fsc import fourier_shell_correlation, resolution_at
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.finish import join_sides, make_map
from xmipp_accel.reconstruction.jackknife import fit_b_factor, jackknife, resolution_by_number
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views

BOX, COUNT, GROUPS = 20, 480, 16


def joined(images, matrices, device=CPU):
    """(joined sums, what makes a map of them)."""
    parameters = ReconstructFourierParameters(halves=False, ctf="none")
    accumulator = FourierAccumulator(parameters, device, BOX, SAMPLING)
    accumulator.insert(images, Views(matrices, np.zeros((len(images), 2))))
    (sums,), _ = accumulator.export()
    sums = join_sides(device.asarray(sums), accumulator.gridding, np.eye(3, dtype=int)[None])
    return sums, functools.partial(make_map, grid=accumulator.volume, gridding=accumulator.gridding)


def by_groups(images, matrices, device=CPU):
    found = [joined(images[group::GROUPS], matrices[group::GROUPS], device) for group in range(GROUPS)]
    return [sums for sums, _ in found], found[0][1]


def shells_of(volume):
    shells = np.rint(radii(BOX)).astype(int).ravel()
    return np.bincount(shells, (abs(np.fft.fftn(volume)) ** 2).ravel())[: BOX // 2 + 1]


@pytest.fixture(scope="module")
def repeated():
    """Images, their views, and maps of the same images with other noise."""
    images, matrices, _ = views(COUNT, BOX)
    rng = np.random.default_rng(3)
    noisy = [images + (2 * images.std() * rng.normal(size=images.shape)).astype(np.float32) for _ in range(25)]
    maps = []
    for stack in noisy:
        sums, to_map = joined(stack, matrices)
        maps.append(to_map(sums))
    return noisy[0], matrices, np.array(maps)


def test_the_error_is_the_deviation_over_repeated_noise(device, repeated):
    images, matrices, maps = repeated
    parts, to_map = by_groups(images, matrices, device)
    total = sum(parts[1:], parts[0])
    volume = to_map(total)
    errors = jackknife(parts, total, volume, to_map)
    measured = maps.std(axis=0, ddof=1)
    predicted = to_host(errors.map)
    assert predicted.dtype == np.float32
    inner = np.s_[4:-4, 4:-4, 4:-4]
    for region in (np.s_[:], inner):
        ratio = np.sqrt((predicted[region] ** 2).mean() / (measured[region] ** 2).mean())
        assert ratio == pytest.approx(1, abs=0.15)
    deviation = np.mean([shells_of(volume) for volume in maps - maps.mean(axis=0)], axis=0) * 25 / 24
    truth = np.sqrt(deviation / np.mean([shells_of(volume) for volume in maps], axis=0))
    np.testing.assert_allclose(errors.relative[2:-1], truth[2:-1], rtol=0.2)


def test_the_streaming_sums_are_the_formula():
    rng = np.random.default_rng(4)
    parts = list((1000 + rng.normal(size=(5, 8, 8, 8))).astype(np.float32))
    total = sum(parts[1:], parts[0])

    def to_map(sums):
        return np.sqrt(sums)

    errors = jackknife(parts, total, to_map(total), to_map)
    maps = np.sqrt(np.array([np.sum(parts, axis=0, dtype=float) - part for part in parts]))
    expected = np.sqrt(4 / 5 * ((maps - maps.mean(axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(errors.map, expected, rtol=0.02)


def test_the_b_factor_is_that_of_the_line():
    particles = np.array([1000, 2000, 4000, 8000])
    resolutions = 1 / np.sqrt(0.01 + 2 / 120.0 * np.log(particles))
    assert fit_b_factor(particles, resolutions) == pytest.approx(120)
    limited = np.maximum(resolutions, resolutions[2])
    assert fit_b_factor(particles, limited, finest=resolutions[2]) == pytest.approx(120)
    assert fit_b_factor(particles, resolutions[::-1]) == 0
    assert fit_b_factor(particles[:1], resolutions[:1]) == 0


def test_the_b_factor_of_maps_is_that_of_their_signal():
    """Sums of n images are n times the signal and noise of variance n; amplitudes fall with exp(-B / (4 d^2))."""
    box, rate, b_factor = 64, 1.5, 90.0
    rng = np.random.default_rng(5)
    frequency = np.arange(box // 2 + 1) / (box * rate)
    signal = filtered(rng.normal(size=(box,) * 3), 3 * np.exp(-b_factor / 4 * frequency**2))
    counts = np.full((2, 16), 4)
    parts = [[n * signal + np.sqrt(n) * 8 * rng.normal(size=signal.shape) for n in own] for own in counts]

    def resolution_of(half1, half2):
        return resolution_at(fourier_shell_correlation(half1, half2), 0.143, rate, box)

    last = resolution_of(*(np.sum(own, axis=0) for own in parts))
    before = parts[0][0].copy()
    found = resolution_by_number(parts, counts, lambda sums: sums, resolution_of, last, 2 * rate)
    assert found.particles == [8, 16, 32, 64, 128] and found.resolutions[-1] == last
    assert found.b_factor == pytest.approx(b_factor, rel=0.15)
    np.testing.assert_array_equal(parts[0][0], before)


def test_steps_end_with_all_groups():
    parts = [[np.ones(1)] * 5, [np.ones(1)] * 5]
    seen = []

    def resolution_of(half1, half2):
        seen.append((float(half1[0]), float(half2[0])))
        return 10.0 - len(seen)

    found = resolution_by_number(parts, [[3] * 5, [2] * 5], lambda sums: sums, resolution_of, 5.0, 0.0)
    assert seen == [(1, 1), (2, 2), (4, 4)]
    assert found.particles == [5, 10, 20, 25] and found.resolutions == [9, 8, 7, 5]
