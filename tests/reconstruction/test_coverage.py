"""Coverage from weights against distributions of views whose coverage is known."""

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING
from xmipp_accel.backend import CPU
from xmipp_accel.numerics.rotations import euler_to_matrix, random_matrices
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.coverage import hemisphere, measure_coverage, sampling_compensation
from xmipp_accel.reconstruction.finish import join_sides
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views

BOX, COUNT = 40, 3000


def covered(matrices, device=CPU, **choices):
    """Coverage by empty images: the weights do not ask for more."""
    parameters = ReconstructFourierParameters(halves=False, ctf="none", **choices)
    accumulator = FourierAccumulator(parameters, device, BOX, SAMPLING)
    views = Views(matrices, np.zeros((len(matrices), 2)))
    accumulator.insert(np.zeros((len(matrices), BOX, BOX), np.float32), views)
    (sums,), _ = accumulator.export()
    sums = join_sides(device.asarray(sums), accumulator.gridding, np.eye(3, dtype=int)[None])
    return measure_coverage(sums, accumulator.volume)


def tilted(largest, rng):
    """Views whose direction lies within `largest` degrees of z, at random otherwise."""
    tilt = np.rad2deg(np.arccos(rng.uniform(np.cos(np.deg2rad(largest)), 1, COUNT)))
    return euler_to_matrix(rng.uniform(0, 360, COUNT), tilt, rng.uniform(0, 360, COUNT))


def test_directions_stand_for_all_of_a_hemisphere():
    directions = hemisphere()
    nearest = np.abs(directions @ directions.T) - 2 * np.eye(len(directions))
    assert np.rad2deg(np.arccos(nearest.max(axis=1))).min() > 3, "no opposite pairs"
    np.testing.assert_allclose(
        np.einsum("di,dj->ij", directions, directions) / len(directions), np.eye(3) / 3, atol=0.01
    )


def test_uniform_views_cover_uniformly(device):
    found = covered(random_matrices(COUNT, np.random.default_rng(0)), device)
    assert found.scf == pytest.approx(1, abs=0.02)
    assert found.empty_directions == 0 and found.empty.max() == 0
    assert found.directions.std() < 0.15 and found.directions.mean() == pytest.approx(1, abs=1e-4)
    # A central slice holds 2 pi r of the 4 pi r^2 samples of a shell, on the padded grid: r = 2 shells.
    shells = np.arange(4, BOX // 2)
    np.testing.assert_allclose(found.mean[shells], COUNT / (2 * 2 * shells), rtol=0.05)
    assert len(found.mean) == BOX // 2 + 1 and (found.minimum <= found.mean).all()


def test_views_around_one_axis_have_the_published_factor():
    """Sampling is 2 / (pi sin theta) around the axis: SCF = 8 / pi^2."""
    rng = np.random.default_rng(1)
    found = covered(euler_to_matrix(rng.uniform(0, 360, COUNT), 90.0, rng.uniform(0, 360, COUNT)))
    assert found.scf == pytest.approx(8 / np.pi**2, abs=0.03)
    theta = np.arccos(np.abs(hemisphere()[:, 2]))
    away = theta > np.deg2rad(15)
    ratio = found.directions[away] * np.pi / 2 * np.sin(theta[away])
    assert abs(ratio.mean() - 1) < 0.03 and ratio.std() < 0.15


def test_a_missing_cone_is_found_where_it_is():
    """Views within 60 degrees of an axis leave a cone of 30 degrees around it."""
    matrices = tilted(60, np.random.default_rng(2))
    turn = euler_to_matrix(35.0, 50.0, 0.0)
    found = covered(matrices @ turn)  # what was z lies at rot 35, tilt 50
    axis = turn[2]
    assert found.weakest == pytest.approx((35, 50), abs=3)
    angle = np.rad2deg(np.arccos(np.clip(np.abs(hemisphere() @ axis), 0, 1)))
    assert found.directions[angle < 25].max() < 0.02 < 0.2 < found.directions[angle > 35].min()
    assert found.empty_directions == pytest.approx(1 - np.cos(np.deg2rad(30)), abs=0.01)
    # Views within a of z sample directions at theta by (2 / pi) arccos(cos a / sin theta) of a great circle.
    sine = np.sqrt(1 - np.linspace(0, 1, 100001)[1:-1] ** 2)
    share = np.arccos(0.5 / sine[sine > 0.5])
    assert found.scf == pytest.approx(1 / ((1 / share).mean() * share.mean()), abs=0.06)
    assert 0.08 < found.empty[BOX // 4 :].mean() < 0.16
    assert found.minimum[BOX // 4 :].max() == 0


def test_a_tilt_series_leaves_a_wedge():
    """Directions along which no view of a series around y looks crosswise: x / z beyond the tilts' tangent."""
    tilts = np.random.default_rng(3).uniform(-60, 60, COUNT)
    found = covered(euler_to_matrix(0.0, tilts, 0.0))
    x, y, z = hemisphere().T
    elevation = np.rad2deg(np.arctan2(np.abs(x), np.abs(z)))
    off_axis = np.abs(y) < 0.8
    assert found.directions[off_axis & (elevation < 18)].max() < 0.02
    assert found.directions[off_axis & (elevation > 42)].min() > 0.2
    assert found.weakest[1] < 5


def test_the_factor_is_its_formula_over_what_is_sampled():
    assert sampling_compensation([1, 1, 1]) == 1
    assert sampling_compensation([0.5, 1.5]) == pytest.approx(1 / ((1 / 0.5 + 1 / 1.5) / 2))
    assert sampling_compensation([0.0, 0.5, 1.5]) == sampling_compensation([0.5, 1.5]) < 1
    assert sampling_compensation([0.0, 0.0]) == 0


def test_coverage_ends_at_the_resolution():
    found = covered(random_matrices(200, np.random.default_rng(4)), max_resolution=4 * SAMPLING)
    assert len(found.mean) == BOX // 4 + 1 and found.mean.min() > 0
