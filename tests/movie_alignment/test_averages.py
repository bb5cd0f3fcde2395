"""What is averaged, and with which weights."""

import numpy as np
import pytest
import scipy.fft

from xmipp_accel.backend import to_host
from xmipp_accel.movie_alignment.averages import Halves, WeightedMean, in_frame_weight
from xmipp_accel.movie_alignment.dose import DoseWeights, critical_exposure
from xmipp_accel.movie_alignment.prepare import PreparedMovie


def grant_average(frames, exposures, sampling_rate, factor):
    """Exposure filter and restoration of the noise as Grant and Grigorieff (2015) give them, in float64."""
    fy, fx = np.fft.fftfreq(frames.shape[1], sampling_rate), np.fft.fftfreq(frames.shape[2], sampling_rate)
    k = np.hypot(fy[:, None], fx)
    k[0, 0] = 1e-9
    critical = factor * (0.24499 * k**-1.6649 + 2.8141)
    weights = np.exp(-np.asarray(exposures)[:, None, None] / (2 * critical))
    total = (weights * np.fft.fft2(frames.astype(np.float64))).sum(axis=0) / np.sqrt((weights**2).sum(axis=0))
    return np.fft.ifft2(total).real / np.sqrt(len(frames))


@pytest.mark.parametrize(("voltage", "factor"), [(300.0, 1.0), (200.0, 0.8), (250.0, 0.9), (120.0, 0.672)])
def test_dose_weighted_mean_is_the_published_one(device, voltage, factor):
    """Exposures at the end of each frame after 7 e/A^2: what all frames share cancels."""
    frames = np.random.default_rng(0).normal(size=(5, 24, 30)).astype(np.float32)
    weights = DoseWeights((24, 30), 1.3, 4.0 * np.arange(5), voltage, device.xp)
    mean = WeightedMean()
    for batch in ([0, 1, 2], [3, 4]):
        mean.add(device.asarray(scipy.fft.rfft2(frames[batch])), weights.weights(batch))
    found = scipy.fft.irfft2(to_host(mean.mean()), (24, 30))
    np.testing.assert_allclose(found, grant_average(frames, 7 + 4.0 * np.arange(1, 6), 1.3, factor), atol=1e-5)


@pytest.mark.parametrize(("voltage", "factor"), [(80.0, 0.64), (100.0, 0.64), (300.0, 1.0), (400.0, 1.0)])
def test_critical_exposure_at_any_voltage(voltage, factor):
    assert critical_exposure(0.25, voltage) == pytest.approx(factor * (0.24499 * 4**1.6649 + 2.8141))


@pytest.mark.parametrize("noise", [np.ones(5), np.array([1.0, 1.0, 4.0, 0.5, 2.0])])
def test_weighted_mean_keeps_the_noise_power(device, noise):
    """The response to each frame alone gives the variance of the mean of independent noise."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(-0.3, 1, (5, 8, 6)).astype(np.float32)
    response = []
    for k in range(5):
        mean = WeightedMean()
        frames = np.zeros((5, 8, 6), np.complex64)
        frames[k] = 1
        mean.add(device.asarray(frames), device.asarray(weights), noise)
        response.append(to_host(mean.mean()).real)
    variance = (np.stack(response) ** 2 * noise[:, None, None]).sum(axis=0)
    np.testing.assert_allclose(variance, noise.sum() / 25, rtol=1e-4)


@pytest.mark.parametrize("noise", [np.ones(3), np.array([0.3, 2.0, 1.0])])
def test_no_combination_has_a_better_signal_to_noise_ratio(noise):
    """Signal of each frame: its noise power times its amplitude, as where electrons are counted."""
    rng = np.random.default_rng(1)
    amplitude = np.array([0.9, 0.2, -0.4])
    mean = WeightedMean()
    frames, weights = (noise * amplitude).astype(np.complex64), amplitude.astype(np.float32)
    mean.add(frames[:, None, None], weights[:, None, None], noise)
    best = mean.mean()[0, 0].real / np.sqrt(noise.sum() / 9)
    others = rng.normal(size=(1000, 3))
    ratios = others @ (noise * amplitude) / np.sqrt((others**2 * noise).sum(axis=1))
    assert best >= ratios.max() > 0.95 * best


def test_halves_make_up_the_whole(device):
    """Frames 1, 3, 5 are odd; the whole is the mean of all, with and without weights."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(5, 4, 3)).astype(np.complex64)
    weights = rng.uniform(0.1, 1, (5, 4, 3)).astype(np.float32)
    plain, weighted = Halves(), Halves()
    for batch in (slice(0, 3), slice(3, 5)):
        indices = np.arange(5)[batch]
        plain.add(indices, device.asarray(frames[batch]))
        weighted.add(indices, device.asarray(frames[batch]), device.asarray(weights[batch]))
    np.testing.assert_allclose(to_host(plain.odd.mean()), frames[::2].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(to_host(plain.even.mean()), frames[1::2].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(to_host(plain.all().mean()), frames.mean(axis=0), atol=1e-6)
    expected = (weights * frames).sum(axis=0) / np.sqrt(5 * (weights**2).sum(axis=0))
    np.testing.assert_allclose(to_host(weighted.all().mean()), expected, atol=1e-6)
    assert plain.complete
    assert not Halves().complete


def test_frames_left_out_count_for_nothing(device):
    rng = np.random.default_rng(0)
    frames, weights = (rng.uniform(0.1, 1, (5, 4, 3)).astype(np.float32) for _ in range(2))
    noise, which = rng.uniform(1, 2, 5), [0, 1, 4]
    some, alone = Halves(), Halves()
    some.add(np.arange(5), *(device.asarray(a) for a in (frames, weights)), noise, which)
    alone.add(np.arange(5)[which], *(device.asarray(a[which]) for a in (frames, weights)), noise[which])
    for a, b in ((some.odd, alone.odd), (some.even, alone.even), (some.all(), alone.all())):
        assert a.count == b.count
        np.testing.assert_allclose(to_host(a.mean()), to_host(b.mean()), rtol=1e-5)


def test_halves_of_a_movie_are_its_frames_as_they_are(device):
    """The movie begins with the file's fourth frame, which is even."""
    raw = np.random.default_rng(0).integers(0, 9, (5, 6, 7)).astype(np.uint8)
    halves = Halves.of_movie(PreparedMovie(device.asarray(raw)), [0, 1, 2, 4], 3)
    np.testing.assert_allclose(to_host(halves.even.mean()), raw[[0, 2, 4]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(to_host(halves.odd.mean()), raw[1], rtol=1e-6)
    assert not Halves.of_movie(PreparedMovie(device.asarray(raw)), [1], 3).complete


def test_what_no_frame_shows_stays_zero():
    mean = WeightedMean()
    mean.add(np.ones((1, 2, 2), np.complex64), np.array([[[1, 0], [1, 0]]], np.float32))
    np.testing.assert_allclose(mean.mean(), [[1, 0], [1, 0]])


def test_in_frame_weight_is_the_transform_of_the_motion(device):
    """The mean of many small translations along the line that the scene moves during the exposure."""
    steps = (np.arange(2000) + 0.5) / 2000 - 0.5
    fy, fx = np.fft.fftfreq(20)[:, None, None], np.fft.rfftfreq(15)[:, None]
    expected = np.exp(2j * np.pi * (fy * 3.0 + fx * -5.0) * steps).mean(axis=-1)
    found = to_host(in_frame_weight((20, 15), (3.0, -5.0), device.xp))
    assert found.min() < -0.1
    np.testing.assert_allclose(found, expected.real, atol=1e-5)
