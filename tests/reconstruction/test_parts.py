"""The blob, the shift, the symmetry factorisation, the geometry, the optics and the half sets."""

import numpy as np
import pytest
import scipy.ndimage
from scipy.integrate import quad

from tests.reconstruction.particle_data import SAMPLING, phantom, reconstruct, views
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction import blob
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.finish import join_sides, make_map
from xmipp_accel.reconstruction.geometry import plan_images, plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.halves import assign_groups, assign_halves, compare_halves
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.regularise import added_weights, signal_to_noise
from xmipp_accel.reconstruction.shift import shift_bspline
from xmipp_accel.reconstruction.symmetry import factorise
from xmipp_accel.reconstruction.views import Views


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("alpha", [3.5, 15.0])
@pytest.mark.parametrize("w", [0.0, 0.1, 0.9, 1.5])
def test_blob_transform_is_the_integral_of_the_blob(order, alpha, w):
    def shell(r):
        return 4 * np.pi * r**2 * np.sinc(2 * w * r) * float(blob.blob_values(r, 1.9, order, alpha))

    assert blob.blob_transform(w, 1.9, order, alpha) == pytest.approx(quad(shell, 0, 1.9)[0], abs=1e-7)


def test_blob_table_starts_at_the_origin_and_ends_at_the_radius():
    table = blob.blob_table(1.9, 0, 15.0)
    assert table.shape == (blob.TABLE_SIZE,) and table.dtype == np.float32
    ratio = blob.blob_values(1.9 * np.sqrt(0.5), 1.9, 0, 15.0)
    assert np.interp(0.5, np.linspace(0, 1, len(table)), table / table[0]) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (13, 17)])
def test_shift_is_cubic_spline_interpolation(device, size):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *size)).astype(np.float32)
    shifts = np.array([[0.0, 0.0], [2.0, -3.0], [0.37, 1.81], [-1.5, 0.25]])
    moved = to_host(shift_bspline(device.asarray(images), shifts))
    np.testing.assert_allclose(moved[0], images[0], atol=1e-5)
    np.testing.assert_allclose(moved[1], np.roll(images[1], (2, -3), axis=(0, 1)), atol=1e-5)
    for image, shift, found in zip(images, shifts, moved):
        # Elsewhere SciPy mirrors what comes in over the edge, where Xmipp wraps.
        expected = scipy.ndimage.shift(image.astype(float), shift, order=3, mode="reflect")
        np.testing.assert_allclose(found[4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-5)


@pytest.mark.parametrize(
    "name, permutations",
    [("c1", 1), ("c2", 2), ("c4", 4), ("c7", 1), ("d2", 4), ("d4", 8), ("d7", 2), ("o", 24), ("i1", 12)],
)
def test_factors_run_through_the_group_once(name, permutations):
    group = symmetry_matrices(name)
    on_grid, representatives = factorise(group)
    assert len(on_grid) == permutations
    products = (on_grid[:, None] @ representatives[None]).reshape(-1, 3, 3)
    assert len(products) == len(group)
    distances = np.abs(products[:, None] - group[None]).max(axis=(2, 3))
    assert (distances < 1e-6).sum(axis=0).tolist() == [1] * len(group)


@pytest.mark.parametrize("method", ["trilinear", "xmipp", "xmipp_fast"])
@pytest.mark.parametrize("name", ["c2", "d2", "d3", "o"])
def test_symmetry_equals_inserting_every_operator(device, method, name):
    images, matrices, shifts = views(6, 20)
    once = reconstruct(images, matrices, shifts, device, method=method, symmetry=name)
    group = symmetry_matrices(name)
    copies = np.einsum("nij,gkj->gnik", matrices, group).reshape(-1, 3, 3)
    every = reconstruct(
        np.tile(images, (len(group), 1, 1)), copies, np.zeros((len(copies), 2)), device, method=method
    )
    # float32 sums in another order; --fast also breaks ties between voxels differently.
    tolerance = 2e-3 if method == "xmipp_fast" else 2e-5
    np.testing.assert_allclose(once, every, atol=tolerance * np.abs(every).max())


def _plan(box=50, sampling_rate=2.0, **choices):
    parameters = ReconstructFourierParameters(**choices)
    gridding = plan_gridding(parameters)
    return parameters, gridding, plan_volume(parameters, gridding, box, sampling_rate)


def test_geometry_follows_padding_and_resolution():
    def volume(**choices):
        return _plan(**choices)[2]

    assert volume().padded == 100 and volume().centre == 51
    assert volume(padding_volume=1.0).padded == 50
    assert volume(max_resolution=8.0).centre == 26
    assert volume(max_resolution=1.0) == volume()
    assert volume(method="blob").centre == 52
    assert volume(method="xmipp").shape == (101, 101, 51, 4)
    assert volume(method="xmipp", max_resolution=8.0).shape == (51, 51, 26, 4)
    with pytest.raises(ParameterError, match="max_resolution: expected finer than"):
        volume(max_resolution=500.0)
    for wrong in (dict(sampling_rate=0.0), dict(sampling_rate=np.nan), dict(box=1)):
        with pytest.raises(ParameterError, match="4 px or more and a pixel size, found"):
            _plan(**wrong)


def test_slices_of_another_pixel_size_fill_the_same_frequencies():
    planned = _plan()
    same, finer, coarser = (plan_images(*planned, box, rate) for box, rate in ((50, 2.0), (80, 1.6), (30, 3.0)))
    assert (same.scale, same.gain) == (1.0, 1.0)
    assert finer.scale == pytest.approx(200 / 256) and finer.gain == pytest.approx(0.64)
    # 0.25 and 0.1667 1/A are the finest frequencies of the map and of the coarser images.
    assert (finer.columns - 1) * finer.step == pytest.approx(0.25, abs=finer.step)
    assert (coarser.columns - 1) * coarser.step == pytest.approx(1 / 6)
    assert (finer.columns - 1) * finer.scale <= planned[2].radius


def test_half_sets_keep_what_is_given_and_split_the_rest_evenly():
    np.testing.assert_array_equal(assign_halves([1, 2, 2, 1], 0), [1, 2, 2, 1])
    split = assign_halves([0] * 10 + [2], 5)
    assert sorted(split[:10]) == [1] * 5 + [2] * 5 and split[10] == 2
    np.testing.assert_array_equal(split, assign_halves([0] * 10 + [2], 5))
    assert (split != assign_halves([0] * 10 + [2], 6)).any()


def test_groups_divide_each_half_evenly_and_at_random():
    halves = np.array([1] * 9 + [2] * 8)
    groups = assign_groups(halves, 4, 3)
    counts = [np.bincount(groups[halves == half], minlength=4).tolist() for half in (1, 2)]
    assert [sorted(count) for count in counts] == [[2, 2, 2, 3], [2, 2, 2, 2]]
    np.testing.assert_array_equal(groups, assign_groups(halves, 4, 3))
    assert (groups != assign_groups(halves, 4, 4)).any()


def test_the_signal_to_noise_ratio_of_the_full_map_is_twice_that_of_its_halves():
    fsc = np.array([0.2, 0.5, 0.8])
    np.testing.assert_allclose(signal_to_noise(fsc), 2 * fsc / (1 - fsc))
    full = 2 * fsc / (1 + fsc)
    np.testing.assert_allclose(signal_to_noise(fsc), full / (1 - full))
    assert 0 < signal_to_noise(-0.3) < 0.01 and signal_to_noise(1.0) > 1000


def test_added_weights_follow_the_shells_of_the_box():
    """Radius 2 r of a volume padded twice is shell r."""
    fsc, means = np.array([0.9, 0.8, 0.5, 0.1]), np.array([8.0, 7, 6, 5, 4, 3, 2, 1])
    added = added_weights(means, fsc, 0.5)
    ratio = 2 * fsc / (1 - fsc)
    np.testing.assert_allclose(added[::2], means[::2] / ratio)
    np.testing.assert_allclose(added[1], means[1] / (ratio[:2].mean()))
    assert added[7] == pytest.approx(means[7] / ratio[3])


@pytest.fixture(scope="module")
def uneven():
    """Noisy images, most of them seen within 35 degrees of z, so that weights differ much within each shell."""
    count = 800
    rng = np.random.default_rng(8)
    tilt = np.where(np.arange(count) % 20 == 0, 90.0, rng.uniform(0, 35, count))
    matrices = euler_to_matrix(rng.uniform(0, 360, count), tilt, rng.uniform(0, 360, count))
    images = phantom().project(matrices, 32, SAMPLING, np.zeros((count, 2)))
    images = images + (4 * images.std() * rng.normal(size=images.shape)).astype(np.float32)
    return (images, matrices, np.zeros((count, 2))), 1 + np.arange(count) % 2


def test_a_map_regularised_by_its_fsc_is_nearer_to_the_truth(uneven):
    arguments, halves = uneven
    truth = phantom().volume(32, SAMPLING)

    def error(volume):
        return np.linalg.norm(volume - volume.mean() - truth + truth.mean()) / np.linalg.norm(truth - truth.mean())

    plain, half1, _ = reconstruct(*arguments, halves=halves)
    found, own1, _ = reconstruct(*arguments, halves=halves, regularisation="fsc")
    np.testing.assert_array_equal(half1, own1)
    best_scaled = min(error(scale * plain) for scale in np.linspace(0.05, 1, 20))
    assert error(found) < 0.8 * error(plain)
    assert error(found) < 0.95 * best_scaled


def test_maps_are_regularised_by_the_corrected_fsc(uneven):
    arguments, halves = uneven
    found, half1, half2 = reconstruct(*arguments, halves=halves, regularisation="fsc", mask_diameter=30.0)
    agreement = compare_halves(half1, half2, SAMPLING, mask_diameter=30.0)
    assert np.abs(agreement.fsc_masked - agreement.fsc_corrected).max() > 0.05
    parameters = ReconstructFourierParameters(halves=False, ctf="none")
    accumulator = FourierAccumulator(parameters, CPU, 32, SAMPLING)
    accumulator.insert(arguments[0], Views(*arguments[1:]))
    sums = join_sides(accumulator.sums[0], accumulator.gridding, np.eye(3, dtype=int)[None])
    expected = make_map(sums, accumulator.volume, accumulator.gridding, fsc=agreement.fsc_corrected)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
