"""The stages of an alignment, one by one."""

import numpy as np
import pytest
import scipy.fft

from xmipp_accel.backend import to_host
from xmipp_accel.errors import ProcessingError
from xmipp_accel.movie_alignment import correlate, prepare, solve
from xmipp_accel.movie_alignment.dose import accumulated, critical_exposure
from xmipp_accel.movie_alignment.frame_grid import FrameGrid
from xmipp_accel.movie_alignment.model import LocalModel, Stiffness, robust_factors
from xmipp_accel.movie_alignment.patches import frame_groups, make_grid
from xmipp_accel.movie_alignment.spectra import (
    Spectra,
    crop_half_plane,
    frame_spectra,
    gaussian,
    smooth_size,
)
from xmipp_accel.movie_alignment.whole_frame import align_whole_frames
from xmipp_accel.numerics import bspline


def smooth_image(shape, rng, width=0.15):
    k2 = np.fft.fftfreq(shape[0])[:, None] ** 2 + np.fft.rfftfreq(shape[1]) ** 2
    return scipy.fft.irfft2(scipy.fft.rfft2(rng.normal(size=shape)) * np.exp(-k2 / (2 * width**2)), shape)


def translated(image, shift):
    fy, fx = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])
    phase = np.exp(-2j * np.pi * (fy * shift[0] + fx * shift[1]))
    return scipy.fft.irfft2(scipy.fft.rfft2(image) * phase, image.shape)


def moving_frames(shape, shifts, rng, noise=0.5):
    scene = smooth_image(shape, rng)
    scene /= scene.std()
    return np.stack([translated(scene, -s) + noise * rng.normal(size=shape) for s in shifts]).astype(np.float32)


# --- preparation


def test_dark_and_gain(device):
    raw = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    gain, dark = np.full((3, 4), 2, np.float32), np.ones((3, 4), np.float32)
    movie = prepare.PreparedMovie(device.asarray(raw), device.asarray(gain), device.asarray(dark))
    np.testing.assert_array_equal(to_host(movie.frames([1])[0]), (raw[1].astype(float) - 1) * 2)


def outliers(device, average, bad=None, sigma=6.0):
    """Mask of the outliers."""
    bad = np.zeros(average.shape, bool) if bad is None else bad
    found = np.zeros(average.shape, bool)
    found.ravel()[prepare.outlier_pixels(device.asarray(average), np.flatnonzero(bad), sigma)] = True
    return found


def test_outliers_are_found_and_their_neighbours_are_not(device):
    rng = np.random.default_rng(0)
    average = rng.poisson(100, (61, 73)).astype(np.float32)
    average[10, 20], average[30, 0], average[60, 72], average[40, 40] = 400, 300, 500, 0
    found = outliers(device, average)
    assert sorted(map(tuple, np.argwhere(found))) == [(10, 20), (30, 0), (40, 40), (60, 72)]
    assert not outliers(device, average, found).any()
    assert not outliers(device, average, sigma=100.0).any()


def test_dead_pixels_are_found_among_few_electrons(device):
    """With 16 electrons a pixel, none at all is 4 standard deviations of the counts, but 7 of their root."""
    rng = np.random.default_rng(1)
    average = rng.poisson(16, (200, 200)).astype(np.float32) / 8
    dead = np.zeros((200, 200), bool)
    dead[5:195:10, 5:195:10] = True
    average[dead] = 0
    found = outliers(device, average)
    assert found[dead].mean() > 0.95
    assert found[~dead].mean() < 1e-4


def test_what_has_too_many_outliers_has_none(device):
    rng = np.random.default_rng(2)
    average = rng.normal(100, 1, (100, 100)).astype(np.float32)
    for fraction, most in ((0.03, 320), (0.1, 0)):
        spotted = np.where(rng.random(average.shape) < fraction, 1000, average).astype(np.float32)
        found = outliers(device, spotted)
        assert (0.8 if most else 0) * most <= found.sum() <= 1.2 * most


def test_sources_are_good_and_differ_between_frames():
    bad = np.zeros((40, 50), bool)
    bad[:, 7] = bad[3, 3] = bad[20:26, 30:36] = True
    index = np.flatnonzero(bad)
    sources = prepare.repair_sources(bad, index)
    assert not bad.ravel()[sources].any()
    assert (sources[0] != sources[1]).all()
    distance = np.hypot(
        *(np.stack(np.unravel_index(sources, bad.shape)) - np.stack(np.unravel_index(index, bad.shape))[:, None])
    )
    assert distance.max() <= prepare.SOURCE_RADIUS


def test_pixels_inside_wide_defects_have_sources_too():
    bad = np.zeros((60, 60), bool)
    bad[:30] = True
    assert not bad.ravel()[prepare.repair_sources(bad, np.flatnonzero(bad))].any()


def test_mostly_bad_frames_are_refused():
    with pytest.raises(ProcessingError, match="75 % of the pixels"):
        prepare.BadPixels((4, 4), np.arange(4, 16))


def test_blank_frames_are_those_without_any_contrast(device):
    """Not those whose first rows are dark alone, nor those with a NaN."""
    raw = np.full((5, 40, 6), 7, np.float32)
    raw[1, 30, 2], raw[2, 0, 1], raw[3, 33, 0] = 8, 6, np.nan
    assert prepare.blank_frames(prepare.PreparedMovie(device.asarray(raw))) == [0, 4]


def test_bad_pixels_with_others():
    known = prepare.BadPixels((5, 5), np.flatnonzero(np.eye(5)))
    both = known.with_others(np.array([1, 3]))
    assert known.with_others(np.zeros(0, np.int64)) is known
    assert len(known.index) == 5
    np.testing.assert_array_equal(both.positions[:3], [[0, 0], [0, 1], [0, 3]])
    assert not both.mask.ravel()[both.sources].any()


# --- spectra


@pytest.mark.parametrize("shape", [(64, 96), (61, 67)])
def test_cropped_spectra_are_those_of_the_frame(device, shape):
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(2, *shape)).astype(np.float32)
    spectra = frame_spectra(prepare.PreparedMovie(device.asarray(raw)), [1], 0.2)
    ny, nx = spectra.extent
    assert (ny, nx) == tuple(smooth_size(s) for s in shape)
    y0, x0 = (shape[0] - ny) // 2, (shape[1] - nx) // 2
    full = np.fft.rfft2(raw[1, y0 : y0 + ny, x0 : x0 + nx])
    data = to_host(spectra.data[0])
    assert spectra.shape[0] < ny
    for ky, kx in ((1, 1), (-3, 2), (5, 7)):
        assert data[ky, kx] == pytest.approx(full[ky, kx], rel=1e-4)
        assert spectra.grid.fy[ky] == pytest.approx(ky / ny)
    assert not data[0].any()
    assert not data[:, 0].any()


def test_crop_keeps_band_limited_images():
    image = smooth_image((48, 60), np.random.default_rng(0), width=0.03)
    small = scipy.fft.irfft2(crop_half_plane(scipy.fft.rfft2(image), (48, 60), (24, 30)), (24, 30)) / 4
    np.testing.assert_allclose(small, image[::2, ::2], atol=2e-3 * image.std())


def test_half_amplitude_of_the_filter():
    """Both images are filtered, so their product has a quarter."""
    assert gaussian(np.array([1.5 / 30]), 30.0, 1.5)[0] == pytest.approx(0.25, rel=1e-6)


# --- correlation


def test_window_and_newton_find_the_shift(device):
    rng = np.random.default_rng(1)
    image = smooth_image((64, 80), rng, 0.1)
    shift = np.array([3.37, -5.21])
    a, b = scipy.fft.rfft2(translated(image, -shift)), scipy.fft.rfft2(image)
    weight = np.full(a.shape, 2.0)
    weight[:, 0] = 1
    cross = device.asarray((a * b.conj() * weight)[None].astype(np.complex64))
    fy, fx = np.fft.fftfreq(64), np.fft.rfftfreq(80)
    start, at_limit = correlate.window_maximum(cross, fy, fx, 12.0, (1.0, 1.0))
    assert np.abs(start[0] - shift).max() < 1
    assert not at_limit[0]
    found, curvature = correlate.newton(cross, fy, fx, start)
    np.testing.assert_allclose(found[0], shift, atol=1e-3)
    assert (np.linalg.eigvalsh(curvature[0]) > 0).all()
    assert correlate.window_maximum(cross, fy, fx, 6.5, (1.0, 1.0))[1][0]


def test_untrusted_steps_give_no_information():
    rng = np.random.default_rng(0)
    cross = (rng.normal(size=(5, 16, 9)) + 1j * rng.normal(size=(5, 16, 9))).astype(np.complex64)
    start = np.zeros((5, 2))
    found, curvature = correlate.newton(cross, np.fft.fftfreq(16), np.fft.rfftfreq(16), start, reach=0.0)
    assert not found.any()
    assert not curvature.any()


# --- solving


def test_pairs_with_many_outliers():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 5, (12, 2))
    i, j = solve.frame_pairs(12)
    pairs = truth[i] - truth[j] + 0.01 * rng.normal(size=(len(i), 2))
    wrong = rng.permutation(len(i))[: len(i) // 3]
    pairs[wrong] = rng.uniform(-30, 30, (len(wrong), 2))
    shifts, trusted = solve.shifts_from_pairs(i, j, pairs, np.ones(len(i)), 12)
    np.testing.assert_allclose(shifts, truth - truth.mean(axis=0), atol=0.02)
    assert trusted[wrong].max() == 0.0


def test_whole_frames(device):
    rng = np.random.default_rng(3)
    shifts = np.cumsum(rng.normal(0, 1.2, (8, 2)), axis=0)
    frames = moving_frames((96, 120), shifts, rng)
    spectra = frame_spectra(prepare.PreparedMovie(device.asarray(frames)), range(8), 0.5)
    found = align_whole_frames(spectra, 2.0, 40.0)
    np.testing.assert_allclose(found.shifts, shifts - shifts.mean(axis=0), atol=0.05)
    assert 0.002 < found.errors.mean() < 0.1
    assert found.spectrum.detection() > 50


# --- local model


def local_truth(positions, times, lengths):
    y, x = positions[:, 0] / lengths[1] - 0.5, positions[:, 1] / lengths[2] - 0.5
    growth = (np.asarray(times) / lengths[0])[None, :, None]
    return growth * np.stack([3 * x + 2 * y * y, -2 * y + x * y], axis=-1)[:, None]


def local_model(device, n_control, lengths, times):
    """A model of 5 x 6 patches, their centres, and the matrix (p * g, m) that predicts what they move by."""
    grid = make_grid((500, 600), (500, 600), (0, 0), 150, (5, 6))
    centres = grid.centres_y, grid.centres_x
    model = LocalModel(n_control, lengths, times, centres, (150, 150), device.xp)
    offsets = (np.arange(1000) + 0.5) / 1000
    window = np.sin(np.pi * offsets) ** 2 / 500
    bases = [bspline.basis_matrix(times, lengths[0], n_control[0])]
    for place, length, n in zip(centres, lengths[1:], n_control[1:]):
        inside = np.clip(place[:, None] + 150 * (offsets - 0.5), 0, length)
        bases.append(np.stack([window @ bspline.basis_matrix(p, length, n) for p in inside]))
    design = np.einsum("gt,yj,xk->yxgtjk", *bases).reshape(30 * len(times), -1)
    return model, grid.positions, design


def test_cross_validation_tells_motion_from_noise(device):
    rng = np.random.default_rng(0)
    lengths, times = (10.0, 500.0, 600.0), np.arange(10)
    model, positions, design = local_model(device, (4, 5, 5), lengths, times)
    truth = local_truth(positions, times, lengths)
    noise = rng.normal(0, 0.1, truth.shape)
    information = np.full(truth.shape, 100.0)
    equations = model.equations(truth + noise, information)
    stiffness, gain = model.choose_stiffness(equations, Stiffness(0.3, 0.3))
    assert gain > 0.5

    def fitted(stiffness):
        points, residual = model.fit(equations, stiffness)
        return (design @ points.reshape(-1, 2)).reshape(truth.shape), residual

    centred = truth - truth.mean(axis=0)
    found, residual = fitted(stiffness)
    assert np.sqrt(((found - centred) ** 2).mean()) < 0.05
    assert np.abs(found.mean(axis=0)).max() < 1e-4
    np.testing.assert_allclose(residual, (found - centred - noise + noise.mean(axis=0)).std(), rtol=1e-3)
    assert np.abs(fitted(Stiffness(1e-4, 1e-4))[0] - centred).max() > 0.1
    equations = model.equations(noise, information)
    assert model.choose_stiffness(equations, Stiffness(0.3, 0.3))[1] < 0.02


def test_the_fit_is_the_penalised_least_squares_solution(device):
    """Written out for all measurements, with one more unknown for each group's common shift."""
    rng = np.random.default_rng(3)
    lengths, times, n_control = (6.0, 500.0, 600.0), np.arange(6) + 0.25, (4, 5, 6)
    model, positions, design = local_model(device, n_control, lengths, times)
    values = local_truth(positions, times, lengths) + rng.normal(0, 0.1, (30, 6, 2))
    information = rng.uniform(0, 200, values.shape)
    information[7] = 0
    equations = model.equations(values, information)
    points, _ = model.fit(equations, Stiffness(0.1, 3.0))
    bend_t, bend_y, bend_x = (np.diff(np.eye(n), 2, axis=0) for n in n_control)
    slope_y, slope_x = (np.diff(np.eye(n), axis=0) for n in n_control[1:])
    eye_t, eye_y, eye_x = (np.eye(n) for n in n_control)
    prior = [
        np.kron(eye_t, np.kron(bend_y, eye_x)) / 0.1,
        np.kron(eye_t, np.kron(eye_y, bend_x)) / 0.1,
        np.kron(eye_t, np.kron(slope_y, slope_x)) * np.sqrt(2) / 0.1,
        np.kron(bend_t, np.eye(30)) / 3.0,
        np.eye(120) / 30.0,
    ]
    prior = np.concatenate(prior)
    common = np.tile(np.eye(6), (30, 1))
    for axis in range(2):
        scale = np.sqrt(information[..., axis].ravel())
        rows = np.block([[scale[:, None] * design, scale[:, None] * common], [prior, np.zeros((len(prior), 6))]])
        right = np.concatenate([scale * values[..., axis].ravel(), np.zeros(len(prior))])
        expected = design @ np.linalg.lstsq(rows, right, rcond=None)[0][:120]
        expected = expected.reshape(30, 6) - expected.reshape(30, 6).mean(axis=0)
        found = (design @ points[..., axis].ravel()).reshape(30, 6)
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_softest_model_can_be_chosen(device):
    """The end of the table, where the climb finds only what it has tried."""
    rng = np.random.default_rng(2)
    lengths, times = (10.0, 500.0, 600.0), np.arange(10)
    model, _, design = local_model(device, (5, 5, 5), lengths, times)
    wild = (design @ rng.normal(0, 30, (125, 2))).reshape(30, 10, 2)
    equations = model.equations(wild, np.full(wild.shape, 1e8))
    found, gain = model.choose_stiffness(equations, Stiffness(0.01, 0.01))
    assert found == Stiffness(10.0, 10.0)
    assert gain > 0.5


def test_one_bad_patch_is_discounted():
    residuals = np.full((20, 3, 2), 0.1)
    residuals[4, 1] = 5.0
    factors = robust_factors(residuals, np.ones(residuals.shape))
    assert factors[4, 1] < 0.1
    assert factors[3, 1] == 1.0


@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_factors_are_relative_to_the_median_of_what_was_measured(count):
    residuals = np.random.default_rng(4).normal(size=(5, 3, 2)) ** 5
    information = np.zeros((5, 3, 2))
    information.reshape(-1, 2)[:count] = 4.0
    chi = 2 * np.hypot(*residuals.reshape(-1, 2)[:count].T)
    expected = np.minimum(1, 3 / 1.1774 * np.median(chi) / chi) if count else []
    factors = robust_factors(residuals, information).ravel()
    np.testing.assert_allclose(factors[:count], expected)
    np.testing.assert_array_equal(factors[count:], 1.0)


def test_patches_cover_the_frame():
    grid = make_grid((300, 400), (600, 800), (2, 4), 128.0)
    assert grid.size == 64
    assert grid.centres_y[0] == 2 + 64
    assert grid.centres_y[-1] == 2 + 600 - 64
    assert np.diff(grid.centres_x).max() <= 64 + 1e-9


def test_groups():
    assert [len(g) for g in frame_groups(12, 3)] == [3, 3, 3, 3]
    assert len(frame_groups(5, 10)) == 3
    assert len(frame_groups(5, 1)) == 5


# --- averages


@pytest.mark.parametrize("shape", [(30, 41), (36, 46), (13, 22)])
@pytest.mark.parametrize("shift", [(2.0, -3.0), (-4.0, 1.0), (0.0, 3.0)])
def test_translation_mirrors_at_the_border(device, shape, shift):
    """Also where the frame is continued to a larger grid, by less or more than the shift."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    grid = FrameGrid(image.shape)
    images = device.asarray(np.stack([np.zeros_like(image), image]))
    moved = grid.moved_spectra(images, [[5.0, 5.0], shift])
    moved = to_host(grid.image(moved[1]))
    dy, dx = (int(s) for s in shift)
    padded = np.pad(image, 8, mode="reflect")
    expected = padded[8 - dy : 8 - dy + shape[0], 8 - dx : 8 - dx + shape[1]]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "padded"), [
    ((3838, 3710), (3840, 3750)),
    ((4096, 5760), (4096, 5760)),
    ((33, 62), (36, 64)),
    ((1, 9), (2, 10)),
])  # fmt: skip
def test_frames_are_transformed_on_a_fast_grid(device, shape, padded):
    grid = FrameGrid(shape)
    assert grid.padded == padded
    images = np.random.default_rng(0).normal(size=(2, *(min(s, 62) for s in shape))).astype(np.float32)
    grid = FrameGrid(images.shape[1:])
    spectra = grid.spectra(device.asarray(images.copy()))
    assert spectra.shape == (2, grid.padded[0], grid.padded[1] // 2 + 1)
    np.testing.assert_allclose(to_host(grid.image(spectra[1])), images[1], atol=1e-5)
    continued = np.pad(images[1], [(0, p - s) for s, p in zip(grid.shape, grid.padded)], mode="reflect")
    np.testing.assert_allclose(to_host(spectra[1]), scipy.fft.rfft2(continued), atol=1e-3)


def test_critical_exposure():
    """Published values at 300 kV; smaller voltages do more damage."""
    assert critical_exposure(1 / 3.0) == pytest.approx(0.24499 * 3**1.6649 + 2.8141)
    assert critical_exposure(0.1, 200.0) / critical_exposure(0.1) == pytest.approx(0.8)
    assert critical_exposure(0.1, 100.0) / critical_exposure(0.1) == pytest.approx(0.64)
    assert np.isinf(critical_exposure(0.0))


def test_accumulated_exposure_is_that_at_the_middle_of_each_frame():
    np.testing.assert_allclose(accumulated(np.array([2.0, 2.0, 8.0])), [1.0, 3.0, 8.0])


def test_grids_within_a_limit():
    spectra = Spectra(np.ones((1, 32, 17), np.complex64), (32, 32), (64, 64))
    assert spectra.grid_within(0.5) == spectra.grid
    grid = spectra.grid_within(0.1)
    assert grid.shape == (16, 16) and grid.pixel == (4, 4)
    np.testing.assert_array_equal(grid.fy, np.fft.fftfreq(16, 4))
    np.testing.assert_array_equal(grid.fx, np.fft.rfftfreq(16, 4))
    assert grid.radius(np)[3, 4] == pytest.approx(5 / 64)
