"""The standard errors of the shifts against the scatter of alignments of the same motion under new noise."""

import numpy as np
import pytest

from tests.movie_alignment.test_parts import smooth_image, translated
from xmipp_accel.movie_alignment.prepare import PreparedMovie
from xmipp_accel.movie_alignment.spectra import frame_spectra
from xmipp_accel.movie_alignment.whole_frame import align_whole_frames, standard_errors


def test_standard_errors_are_roots_of_the_inverse_information():
    """[[5, 3], [3, 5]] has the inverse [[5, -3], [-3, 5]] / 16."""
    information = np.array([[[4.0, 0], [0, 25]], [[5, 3], [3, 5]], [[0, 0], [0, 0]]])
    expected = [[0.5, 0.2], [np.sqrt(5 / 16), np.sqrt(5 / 16)], [np.inf, np.inf]]
    np.testing.assert_allclose(standard_errors(information), expected)


@pytest.mark.parametrize(("noise", "low", "high"), [(0.7, 0.2, 1.0), (4.0, 0.75, 1.2), (6.0, 0.75, 1.2)])
def test_errors_are_as_large_as_said(noise, low, high):
    """True for frames as noisy as those of movies; where the signal is strong, less is promised than holds."""
    rng = np.random.default_rng(5)
    shape, n = (64, 80), 6
    scene = smooth_image(shape, rng)
    scene /= scene.std()
    shifts = np.cumsum(rng.normal(0, 1, (n, 2)), axis=0)
    shifts -= shifts.mean(axis=0)
    clean = np.stack([translated(scene, -shift) for shift in shifts])
    deviations, said = [], []
    for _ in range(12):
        frames = (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)
        found = align_whole_frames(frame_spectra(PreparedMovie(frames), range(n), 0.5), 2.0, 40.0)
        deviations.append(found.shifts - shifts)
        said.append(found.errors)
    ratio = np.sqrt(np.mean(np.square(deviations)) / np.mean(np.square(said)))
    assert low < ratio < high
