"""Half-map FSC against truths that are known, and masks from files."""

import numpy as np
import pytest

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.fsc import fourier_shell_correlation, resolution_at, soft_sphere
from xmipp_accel.reconstruction.halves import compare_halves, correct_fsc, read_mask

BOX, RATE = 48, 2.0


def radii(n):
    k = np.fft.fftfreq(n) * n
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)


def filtered(volume, gain):
    """A map whose sample at rounded radius s is multiplied by gain[s]."""
    gain = np.append(gain, np.zeros(len(volume)))
    return np.fft.ifftn(np.fft.fftn(volume) * gain[np.rint(radii(len(volume))).astype(int)]).real


def shell_power(volume):
    shells = np.rint(radii(len(volume))).astype(int).ravel()
    power = np.bincount(shells, (abs(np.fft.fftn(volume)) ** 2).ravel()) / np.bincount(shells)
    return power[: len(volume) // 2 + 1]


@pytest.fixture(scope="module")
def coarse():
    """Two halves that share nothing finer than shell 5 but are looked at through one tight mask of their shape."""
    rng = np.random.default_rng(0)
    signal = filtered(rng.normal(size=(BOX,) * 3) * soft_sphere(BOX, 12, 4), np.ones(6))
    mask = (signal > signal.std()).astype(np.float32)
    halves = signal + 0.25 * signal[mask > 0].mean() * rng.normal(size=(2,) + signal.shape)
    return mask, *halves.astype(np.float32)


def test_what_the_mask_adds_is_taken_off(device, coarse):
    mask, half1, half2 = coarse
    found = compare_halves(device.asarray(half1), device.asarray(half2), RATE, mask=mask)
    assert found.randomised_from == pytest.approx(BOX * RATE / 6)
    assert np.abs(found.fsc_unmasked[7:]).max() < 0.15
    false = slice(9, 20)
    assert found.fsc_masked[false].mean() > 0.4, "the mask must mislead for this test to say something"
    assert abs(found.fsc_corrected[false].mean()) < 0.08
    assert found.resolution > BOX * RATE / 9
    assert resolution_at(found.fsc_masked, 0.143, RATE, BOX) < BOX * RATE / 20
    assert found.mask_diameter == 0
    np.testing.assert_allclose(found.fsc_masked, fourier_shell_correlation(half1, half2, mask), atol=1e-5)
    np.testing.assert_allclose(found.fsc_unmasked, fourier_shell_correlation(half1, half2), atol=1e-5)


def test_the_level_of_a_map_correlates_through_its_mask_as_well(coarse):
    mask, half1, half2 = coarse
    level = 4 * half1.std()
    found = compare_halves(half1 + level, half2 + level, RATE, mask=mask)
    assert found.fsc_masked[9:20].mean() > 0.6
    assert abs(found.fsc_corrected[9:20].mean()) < 0.1


def test_true_signal_is_kept(device):
    """The expected FSC is S / (S + N), the powers under the mask of the signal and of white noise."""
    rng = np.random.default_rng(1)
    mask = soft_sphere(BOX, 14, 4)
    signal = filtered(rng.normal(size=mask.shape) * soft_sphere(BOX, 10, 4), np.exp(-((np.arange(25) / 9.0) ** 2)))
    noise = 0.2 * signal[mask == 1].std()
    halves = (signal + noise * rng.normal(size=(2,) + mask.shape)).astype(np.float32)
    found = compare_halves(*map(device.asarray, halves), RATE, mask=mask)
    power = shell_power(signal * mask)
    expected = power / (power + noise**2 * (mask.astype(float) ** 2).sum())
    np.testing.assert_allclose(found.fsc_corrected[2:], expected[2:], atol=0.15)
    assert np.abs(found.fsc_corrected - expected)[2:].mean() < 0.04
    assert found.resolution == pytest.approx(resolution_at(expected, 0.143, RATE, BOX), rel=0.07)
    assert found.resolution_unmasked > 1.05 * found.resolution


def test_the_seed_changes_the_random_phases_alone(coarse):
    mask, half1, half2 = coarse
    first, again, other = (compare_halves(half1, half2, RATE, mask=mask, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.fsc_randomised, again.fsc_randomised)
    np.testing.assert_array_equal(first.fsc_masked, other.fsc_masked)
    assert np.abs(first.fsc_randomised - other.fsc_randomised).max() > 1e-3


def test_equal_halves_leave_nothing_to_randomise(coarse):
    _, half, _ = coarse
    found = compare_halves(half, half, RATE)
    np.testing.assert_array_equal(found.fsc_randomised, found.fsc_masked)
    assert found.randomised_from == 0 and found.resolution == 2 * RATE
    assert found.mask_diameter == pytest.approx(0.8 * BOX * RATE)


def test_the_correction_is_the_published_formula():
    masked, randomised = np.array([1, 0.9, 0.7, 0.6, 0.5, 0.4]), np.array([1, 0.9, 0.3, 0.3, 0.4, 1.0])
    expected = [1, 0.9, 0.7, (0.6 - 0.3) / (1 - 0.3), (0.5 - 0.4) / (1 - 0.4), -1]
    np.testing.assert_allclose(correct_fsc(masked, randomised, 1), expected)


def test_a_mask_is_read_as_it_is(tmp_path):
    mask = soft_sphere(16, 4, 3)
    write_volume(tmp_path / "mask.mrc", mask, 2.0)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.mrc", 16, 2.001), mask)
    write_volume(tmp_path / "unknown.mrc", mask, 0.0)
    np.testing.assert_array_equal(read_mask(tmp_path / "unknown.mrc", 16, 2.0), mask)


@pytest.mark.parametrize(
    "volume, rate, message",
    [
        (np.ones((12, 12, 12)), 2.0, "expected a mask of 16 x 16 x 16 voxels, found 12 x 12 x 12"),
        (np.ones((16, 16, 16)), 2.1, r"expected a mask at 2 A/px, found 2\.1 A/px"),
        (2 * soft_sphere(16, 4, 3), 2.0, "expected a mask with values from 0 to 1, found values from 0 to 2"),
        (soft_sphere(16, 4, 3) - 0.5, 2.0, r"found values from -0\.5 to 0\.5"),
        (np.zeros((16, 16, 16)), 2.0, "found values from 0 to 0"),
    ],
)
def test_unfit_masks_are_refused(tmp_path, volume, rate, message):
    path = tmp_path / "mask.mrc"
    write_volume(path, volume, rate)
    with pytest.raises(InputFileError, match=rf"mask\.mrc: .*{message}"):
        read_mask(path, 16, 2.0)
