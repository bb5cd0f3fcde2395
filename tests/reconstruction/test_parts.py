"""The blob, the shift, the symmetry factorisation, the geometry, the optics and the half sets."""

import numpy as np
import pytest
import scipy.ndimage
from scipy.integrate import quad

from tests.reconstruction.particle_data import reconstruct, views
from xmipp_accel.backend import to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.symmetry import symmetry_matrices
from xmipp_accel.reconstruction import blob
from xmipp_accel.reconstruction.geometry import plan_images, plan_volume
from xmipp_accel.reconstruction.gridding import plan_gridding
from xmipp_accel.reconstruction.halves import assign_halves, weigh_by_fsc
from xmipp_accel.reconstruction.optics import ParticleOptics
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.shift import shift_bspline
from xmipp_accel.reconstruction.symmetry import factorise


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


def test_phase_coefficients_give_the_ctf():
    optics = dict(
        defocus_u=np.array([15000.0, 9000.0]),
        defocus_v=np.array([14000.0, 9500.0]),
        defocus_angle=np.array([33.0, -70.0]),
        phase_shift=np.array([0.0, 90.0]),
        voltage=300.0,
        cs=2.7,
        amplitude_contrast=0.1,
    )
    expected = ctf_image(32, 1.5, **optics)
    coefficients = ParticleOptics(**optics).phase_coefficients(2, 1 / (32 * 1.5)).astype(float)
    kx, ky = np.arange(17), np.fft.fftfreq(32)[:, None] * 32
    k2 = kx**2 + ky**2
    for o, ctf in zip(coefficients, expected):
        phase = o[0] * k2 + o[1] * (kx**2 - ky**2) + o[2] * 2 * kx * ky - o[3] * k2**2 + o[4]
        np.testing.assert_allclose(np.sin(phase), ctf, atol=1e-4)


def test_half_sets_keep_what_is_given_and_split_the_rest_evenly():
    np.testing.assert_array_equal(assign_halves([1, 2, 2, 1], 0), [1, 2, 2, 1])
    split = assign_halves([0] * 10 + [2], 5)
    assert sorted(split[:10]) == [1] * 5 + [2] * 5 and split[10] == 2
    np.testing.assert_array_equal(split, assign_halves([0] * 10 + [2], 5))
    assert (split != assign_halves([0] * 10 + [2], 6)).any()


def test_fsc_weights_act_on_shells():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(16, 16, 16)).astype(np.float32)
    curve = np.linspace(1, 0, 9)
    before, after = np.fft.rfftn(volume), np.fft.rfftn(weigh_by_fsc(volume, curve))
    np.testing.assert_allclose(after[0, 0, 4], before[0, 0, 4] * np.sqrt(2 * 0.5 / 1.5), rtol=1e-4)
    np.testing.assert_allclose(after[8, 8, 8], 0, atol=1e-3)
