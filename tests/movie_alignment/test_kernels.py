import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference import others as reference_others
from xmipp_accel.kernels.reference.patches import cut_patches
from xmipp_accel.kernels.reference.warp import warp as reference_warp
from xmipp_accel.movie_alignment import others
from xmipp_accel.movie_alignment.correct import warp
from xmipp_accel.movie_alignment.patches import _cut
from xmipp_accel.movie_alignment.spectra import moving_phases, ring_sums


def grid_for(shape, step, rng, size):
    nodes = [max(2, -(-(s - 1) // step) + 1) for s in shape]
    return (rng.normal(size=(*nodes, 2)) * size).astype(np.float32)


@pytest.mark.parametrize("shape", [(37, 53), (1, 9), (9, 1), (1, 1), (2, 3), (13, 97), (64, 64)])
@pytest.mark.parametrize("size", [0.4, 30.0])
def test_warp_equals_the_reference(device, shape, size):
    """Float32 positions near 100 px are exact to 1e-5, times the steepest slope of such noise."""
    rng = np.random.default_rng(sum(shape))
    image = rng.normal(size=shape).astype(np.float32)
    grid = grid_for(shape, 8, rng, size)
    images, grids = np.stack([image, image[::-1]]), np.stack([grid, -grid])
    expected = [reference_warp(*pair, 8) for pair in zip(images, grids)]
    np.testing.assert_allclose(
        to_host(warp(device.asarray(images), device.asarray(grids), 8)), expected, atol=1e-4
    )


def test_warp_direction(device):
    image = np.zeros((20, 20), dtype=np.float32)
    image[8, 9] = 1
    grid = np.zeros((3, 3, 2), dtype=np.float32)
    grid[..., 0], grid[..., 1] = 3, -2
    moved = to_host(warp(device.asarray(image[None]), device.asarray(grid[None]), 16))[0]
    assert np.unravel_index(moved.argmax(), moved.shape) == (11, 7)


@pytest.mark.parametrize("size", [2, 7, 16])
def test_patches_equal_the_reference(device, size):
    rng = np.random.default_rng(size)
    images = (rng.normal(size=(3, 17, 23)) + 5).astype(np.float32)
    starts = np.stack([rng.integers(0, 17 - size + 1, (4, 3)), rng.integers(0, 23 - size + 1, (4, 3))], axis=-1)
    starts = starts.astype(np.int32)
    window = rng.uniform(0, 1, size).astype(np.float32)
    found = to_host(_cut(device.asarray(images), starts, window))
    np.testing.assert_allclose(found, cut_patches(images, starts, window), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 1), (3, 2, 67, 37), (1, 5, 130, 129)])
def test_frames_against_others_equal_the_reference(device, shape):
    """Single-precision sums over thousands of terms of random sign agree to 1e-5 of the largest."""
    rng = np.random.default_rng(sum(shape))
    spectra = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    shifts = rng.normal(0, 4, (*shape[:2], 2))
    fy, fx = np.fft.fftfreq(shape[2]), np.linspace(0, 0.5, shape[3])
    weighting = others.make_weighting(fy, fx, lambda radius: 1 / (1 + radius), device.xp)
    data = device.asarray(spectra)
    phases = moving_phases(shifts, fy, fx, device.xp)
    total, power = others.aligned_sum(data, phases)
    expected, expected_power = reference_others.aligned_sum(spectra, shifts, fy, fx)
    np.testing.assert_allclose(to_host(total), expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(to_host(power), expected_power, rtol=1e-5)
    moments = to_host(others.correlation_moments(data, total, weighting, phases))
    values = to_host(weighting.values)
    expected = reference_others.correlation_moments(spectra, values, shifts, fy, fx)
    np.testing.assert_allclose(moments, expected, atol=1e-5 * max(1.0, abs(expected).max()))


@pytest.mark.parametrize("grid", [(8, 4), (20, 11), (2, 1), (10, 11)])
def test_higher_frequencies_than_those_of_the_phases_are_left_out(device, grid):
    rng = np.random.default_rng(0)
    spectra = (rng.normal(size=(2, 3, 20, 11)) + 1j * rng.normal(size=(2, 3, 20, 11))).astype(np.complex64)
    rows = np.fft.fftfreq(grid[0], 1 / grid[0]).astype(int)
    shifts, fy, fx = rng.normal(0, 4, (2, 3, 2)), rows / 20, np.arange(grid[1]) / 20
    weighting = others.make_weighting(fy, fx, lambda radius: 1 / (1 + radius), device.xp)
    phases = moving_phases(shifts, fy, fx, device.xp)
    cut = spectra[:, :, rows, : grid[1]]
    total, power = others.aligned_sum(device.asarray(spectra), phases)
    expected, expected_power = reference_others.aligned_sum(cut, shifts, fy, fx)
    np.testing.assert_allclose(to_host(total), expected, atol=1e-5)
    np.testing.assert_allclose(to_host(power), expected_power, rtol=1e-5)
    moments = to_host(others.correlation_moments(device.asarray(spectra), total, weighting, phases))
    expected = reference_others.correlation_moments(cut, to_host(weighting.values), shifts, fy, fx)
    np.testing.assert_allclose(moments, expected, atol=1e-5 * max(1.0, abs(expected).max()))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (2, 130, 257), (7, 300, 2)])
def test_moving_phases_equal_the_formula(device, shape):
    """Angles are rounded to single precision once whole turns are taken off, however many there are."""
    rng = np.random.default_rng(sum(shape))
    m, ky, kx = shape
    shifts = rng.normal(0, 1000, (2, m, 2))
    fy, fx = rng.uniform(-0.5, 0.5, ky), rng.uniform(0, 0.5, kx)
    found = moving_phases(shifts, fy, fx, device.xp)
    for phases, along, f in zip(found, np.moveaxis(shifts, -1, 0), (fy, fx)):
        assert phases.dtype == np.complex64
        expected = np.exp(-2j * np.pi * along[..., None] * f)
        np.testing.assert_allclose(to_host(phases), expected, rtol=0, atol=5e-7)


def test_weights_stand_for_conjugates_and_end_where_they_are_negligible():
    fy, fx = np.fft.fftfreq(16), np.fft.rfftfreq(16)
    weighting = others.make_weighting(fy, fx, lambda radius: (radius < 0.26).astype(radius.dtype), np)
    assert weighting.values[1, 0] == 1
    assert weighting.values[1, 1] == 2
    assert weighting.values[0, 0] == 0
    np.testing.assert_array_equal(weighting.columns, [5, 5, 4, 3, 2, 0, 0, 0, 0, 0, 0, 0, 2, 3, 4, 5])


def test_slopes_are_derivatives_of_the_correlation():
    """Against finite differences of the correlation itself, computed in double precision."""
    rng = np.random.default_rng(5)
    spectra = (rng.normal(size=(1, 3, 12, 7)) + 1j * rng.normal(size=(1, 3, 12, 7))).astype(np.complex64)
    fy, fx = np.fft.fftfreq(12), np.fft.rfftfreq(12)
    shifts = rng.normal(size=(1, 3, 2))
    weighting = others.make_weighting(fy, fx, lambda radius: 1 - radius, np)
    phases = moving_phases(shifts, fy, fx, np)
    total, _ = others.aligned_sum(spectra, phases)
    found = others.slopes(others.correlation_moments(spectra, total, weighting, phases))

    def correlation(dy, dx):
        moved = reference_others.moved_frames(spectra, shifts, fy, fx)[0]
        rest = moved.sum(axis=0) - moved[1]
        moved = moved[1] * np.exp(-2j * np.pi * (dy * fy[:, None] + dx * fx))
        return (weighting.values * (moved * rest.conj()).real).sum()

    h = 1e-3
    slope = (correlation(h, 0) - correlation(-h, 0)) / (2 * h)
    bend = -(correlation(h, 0) - 2 * correlation(0, 0) + correlation(-h, 0)) / h**2
    twist = -(correlation(h, h) - correlation(h, -h) - correlation(-h, h) + correlation(-h, -h)) / (4 * h * h)
    np.testing.assert_allclose(found.gradient[0, 1, 0], slope, rtol=1e-4)
    np.testing.assert_allclose(found.curvature[0, 1, 0], [bend, twist], rtol=1e-3)


def test_newton_steps():
    curvature = np.array([[[4.0, 1.0], [1.0, 3.0]], [[-1.0, 0.0], [0.0, 2.0]]])
    gradient = np.array([[1.0, 2.0], [1.0, 2.0]])
    step, definite = others.newton_step(gradient, curvature)
    np.testing.assert_allclose(step[0], np.linalg.solve(curvature[0], gradient[0]))
    assert definite.tolist() == [True, False]
    assert step[1] @ gradient[1] > 0
    variance = np.array([[[2.0, 0.5], [0.5, 1.0]], np.zeros((2, 2))])
    information = others.shift_information(curvature, variance)
    np.testing.assert_allclose(information[0], curvature[0] @ np.linalg.solve(variance[0], curvature[0]))
    assert not information[1].any()


def test_ring_sums(device):
    rng = np.random.default_rng(0)
    values, rings = rng.normal(size=(33, 41)).astype(np.float32), rng.integers(0, 7, (33, 41)).astype(np.int32)
    expected = [values[rings == ring].sum(dtype=np.float64) for ring in range(8)]
    np.testing.assert_allclose(ring_sums(device.asarray(values), device.asarray(rings), 8), expected, atol=1e-4)
