import numpy as np
import pytest

from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.report import evaluate


def test_shift_rmse_ignores_an_offset_of_each_location_and_counts_vectors():
    true = np.random.default_rng(0).normal(size=(9, 3, 4, 2))
    offset = np.random.default_rng(1).normal(size=(1, 3, 4, 2))
    assert evaluate.shift_rmse(true + offset, true) == pytest.approx(0, abs=1e-12)
    wrong = true.copy()
    wrong[::2] += 1  # 5 of 9 frames by (1, 1): variance 20/81 in each of two components
    assert evaluate.shift_rmse(wrong, true) == pytest.approx(np.sqrt(2 * 20 / 81))


def test_direction_errors_are_angles_between_views():
    errors = evaluate.direction_errors([0, 0, 30], [0, 90, 180], [0, 40, 99], [25, 90, 180])
    np.testing.assert_allclose(errors, [25, 40, 0], atol=1e-4)


@pytest.mark.parametrize("symmetry", ["c1", "c4", "d7", "o"])
def test_equivalent_poses_have_no_error(symmetry):
    rng = np.random.default_rng(2)
    true = np.stack([rng.uniform(-180, 180, 20), rng.uniform(1, 179, 20), rng.uniform(-180, 180, 20)], axis=1)
    operators = symmetry_matrices(symmetry)
    matrices = euler_to_matrix(*true.T) @ operators[rng.integers(len(operators), size=20)]
    measured = np.stack(matrix_to_euler(matrices), axis=1)
    assert evaluate.rotation_errors(measured, true, symmetry).max() < 1e-4
    assert evaluate.direction_errors(*measured.T[:2], *true.T[:2], symmetry).max() < 1e-4
    measured[:, 2] += 17
    np.testing.assert_allclose(evaluate.rotation_errors(measured, true, symmetry), 17, atol=1e-4)


def test_purity_counts_majorities_and_unassigned_particles_as_wrong():
    assert evaluate.class_purity([1, 1, 1, 2, 2, 0], [7, 7, 8, 8, 8, 8]) == pytest.approx(4 / 6)


def test_fsc_to_truth_finds_where_noise_takes_over():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(32, 32, 32))
    k = np.fft.fftfreq(32)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    noise = np.fft.ifftn(np.fft.fftn(rng.normal(size=truth.shape)) * (radius > 0.25) * 50).real
    _, curve, resolution = evaluate.fsc_to_truth(truth + noise, truth, 2.0)
    assert curve[1:7].min() > 0.99
    assert resolution == pytest.approx(2 / 0.25, rel=0.08)
