"""Patterns that stand still on the detector are found, named and kept out of the alignment."""

import numpy as np
import pytest
from scipy.special import j0

from tests.movie_alignment.test_executor import Movie, process, write_movie
from tests.movie_alignment.test_parts import smooth_image, translated
from xmipp_accel.backend import to_host
from xmipp_accel.io.images import read_image, write_image
from xmipp_accel.movie_alignment.fixed_pattern import coherence, find_fixed_pattern, remove_fixed_pattern
from xmipp_accel.movie_alignment.prepare import PreparedMovie
from xmipp_accel.movie_alignment.spectra import frame_spectra
from xmipp_accel.movie_alignment.whole_frame import align_whole_frames

SHAPE, N_FRAMES = (240, 288), 10


def drift(length, seed=0):
    t = np.linspace(0, 1, N_FRAMES)
    path = length * np.stack([t, np.sqrt(t)], axis=1) + np.random.default_rng(seed).normal(0, 0.1, (N_FRAMES, 2))
    return path - path.mean(axis=0)


def frames(shifts, pattern, signal=0.25, seed=0):
    """Noise of deviation 1, a scene that is as said by `shifts`, and a white pattern that stands still."""
    rng = np.random.default_rng(seed)
    scene = smooth_image(SHAPE, rng)
    scene *= signal / scene.std()
    fixed = pattern * rng.normal(size=SHAPE)
    return np.stack([translated(scene, -s) + fixed + rng.normal(size=SHAPE) for s in shifts]).astype(np.float32)


def spectra_of(images, device=None):
    images = images if device is None else device.asarray(images)
    return frame_spectra(PreparedMovie(images), range(len(images)), 0.5)


def test_coherence_is_the_mean_over_directions():
    shifts, angle = drift(3.0), np.linspace(0, 2 * np.pi, 400, endpoint=False)
    frequency = np.array([0.02, 0.1, 0.4])
    waves = frequency[:, None, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    power = abs(np.exp(2j * np.pi * waves @ shifts.T).sum(axis=-1)) ** 2
    expected = (power.mean(axis=1) - N_FRAMES) / (N_FRAMES * (N_FRAMES - 1))
    np.testing.assert_allclose(coherence(shifts, frequency), expected, atol=1e-9)


@pytest.mark.parametrize("length", [0.0, 0.5, 8.0, 60.0, 500.0])
def test_coherence_at_many_frequencies(length):
    """It is interpolated between few of them, unless the frames are far apart."""
    shifts, frequency = drift(length), (np.arange(257) + 0.5) / 512
    first, second = np.triu_indices(N_FRAMES, 1)
    apart = np.linalg.norm(shifts[first] - shifts[second], axis=1)
    expected = j0(2 * np.pi * frequency[:, None] * apart).mean(axis=1)
    np.testing.assert_allclose(coherence(shifts, frequency), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("deviation", [0.08, 0.1, 0.3])
def test_the_pattern_is_measured(deviation, device):
    shifts = drift(6.0)
    found = find_fixed_pattern(spectra_of(frames(shifts, deviation), device), shifts)
    fraction = deviation**2 / (1 + deviation**2)
    assert found.fraction == pytest.approx(fraction, abs=4 * found.fraction / found.significance)
    assert found.harmful and "check the gain reference" in found.warning()
    assert found.numbers() == {
        "fixed_pattern": found.significance,
        "fixed_pattern_fraction": found.fraction,
    }


def test_noise_and_moving_signal_are_no_pattern():
    deviations = []
    for seed in range(8):
        shifts = drift(6.0, seed)
        found = find_fixed_pattern(spectra_of(frames(shifts, 0.0, seed=seed)), shifts)
        assert not found.harmful and found.warning() == ""
        deviations.append(found.significance)
    assert max(deviations) < 3


def test_a_scene_that_hardly_moves_is_no_pattern_but_a_white_one_is():
    shifts = drift(0.0)
    assert find_fixed_pattern(spectra_of(frames(shifts, 0.0)), shifts).significance == 0
    assert find_fixed_pattern(spectra_of(frames(shifts, 0.1)), shifts).significance == 0
    found = find_fixed_pattern(spectra_of(frames(shifts, 0.1, signal=0.0)), shifts)
    assert found.harmful and found.fraction == pytest.approx(0.01, rel=0.1)


def test_without_the_pattern_nothing_correlates_where_nothing_moved(device):
    shifts = drift(6.0)
    spectra = spectra_of(frames(shifts, 0.3, signal=0.0), device)

    def correlation():
        data = to_host(spectra.data).astype(np.complex128)
        power = (abs(data) ** 2).sum()
        return ((abs(data.sum(axis=0)) ** 2).sum() - power) / power / (N_FRAMES - 1)

    assert correlation() == pytest.approx(0.3**2 / 1.09, rel=0.1)
    remove_fixed_pattern(spectra, find_fixed_pattern(spectra, shifts))
    assert abs(correlation()) < 0.003


def test_the_pull_towards_no_motion_is_gone():
    shifts = drift(3.0)
    spectra = spectra_of(frames(shifts, 0.3))
    errors = []
    for _ in range(2):
        found = align_whole_frames(spectra, 1.0, 50.0)
        errors.append(np.sqrt(((found.shifts - shifts) ** 2).sum(axis=1).mean()))
        remove_fixed_pattern(spectra, find_fixed_pattern(spectra, found.shifts))
    assert errors[0] > 0.3 and errors[1] < 0.1


# --- in the executor


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    return Movie(
        folder, size=256, frames=8, sampling_rate=1.5, dose_per_frame=4.0, drift=8.0, local=0.0, dead_pixels=0
    )


def test_a_gain_that_was_withheld_is_missed(drifting):
    result = drifting.align(gain=None)
    assert "stands still" in result.reason and result.reason.endswith("check the gain reference")
    # Four per cent of 9 electrons a pixel, which makes two more shares of the pattern in the noise.
    assert result.quality["fixed_pattern_fraction"] == pytest.approx(0.04**2 * 9, rel=0.2)
    assert result.quality["fixed_pattern"] > 6
    assert result.status == "global" and drifting.error(result) < 0.05
    result = drifting.align()
    assert "stands still" not in result.reason
    assert result.quality["fixed_pattern"] < 4


def test_a_gain_that_is_turned_is_told_once(drifting):
    write_image(drifting.folder / "turned.mrc", read_image(drifting.gain)[0][::-1], 1.5)
    result = drifting.align(gain=drifting.folder / "turned.mrc", local_alignment=False)
    assert result.quality["fixed_pattern"] > 6
    assert "gain_flip up_down" in result.reason and "stands still" not in result.reason
    result = drifting.align(gain=drifting.folder / "turned.mrc", local_alignment=False, check_gain=False)
    assert "stands still" in result.reason


def test_a_pattern_is_named_where_nothing_else_is_shared(tmp_path):
    images = 20 + frames(drift(0.0), 0.3, signal=0.0)
    result = process(write_movie(tmp_path, images), sampling_rate=1.0)
    assert result.status == "not aligned"
    assert "no signal" in result.reason and "stands still" in result.reason


def test_what_fails_without_a_pattern_is_not_blamed_on_one(tmp_path):
    """Its scene, which stands still, is in the unshifted sum, while the shifts are of noise."""
    movie = Movie(
        tmp_path, size=400, frames=24, sampling_rate=3.0, dose_per_frame=1 / 9, drift=0.0, local=0.0, seed=41,
        gain_seed=41, dead_pixels=0, hot_pixels=0,
    )  # fmt: skip
    result = movie.align(max_shift=150.0)
    assert result.status == "not aligned"
    assert result.quality["fixed_pattern"] == 0 and "stands still" not in result.reason
