import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.particle_alignment.test_polar import blobs, draw
from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference.polar_search import polar_search as oracle
from xmipp_accel.particle_alignment import polar, search_kernels
from xmipp_accel.particle_alignment.polish import _derivatives, refine_poses
from xmipp_accel.particle_alignment.search import PolarSearch, normalize_references, shift_grid


def random_case(rng, n_particles, n_references, grid):
    # Drawn as images, so that the harmonics end where those of images do.
    images = rng.normal(size=(n_particles + n_references, grid.box, grid.box)).astype(np.float32)
    images *= polar.soft_circle(grid.box, grid.box * 0.3)
    samples = polar.polar_samples(images, grid)
    return samples[:n_particles], polar.angular_coefficients(samples[n_particles:], grid)


@pytest.fixture(params=["fastest", "plain"])
def kernels(request, device, monkeypatch):
    """The kernel that is chosen for the device, and the one for GPUs without tensor cores."""
    if request.param == "plain":
        if device.kind == "cpu":
            pytest.skip("the CPU has one kernel")
        monkeypatch.setattr(search_kernels.TensorKernel, "fits", lambda _: False)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "particles, references, rings, radius",
    [(1, 1, 1, 0.0), (3, 5, 5, 2.0), (2, 131, 7, 1.5), (2, 3, 6, 9.5), (2, 17, 10, 12.0)],
)
def test_search_against_the_oracle(device, particles, references, rings, radius):
    rng = np.random.default_rng(0)
    assert_oracle(device, rng, particles, references, polar.polar_grid(20, rings, 7, radius), radius)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rings, radius", [(31, 25), (8, 15), (17, 18), (30, 31), (9, 3)])
def test_many_and_few_harmonics_against_the_oracle(device, rings, radius):
    """One to five chunks of harmonics, one to three of angles."""
    assert_oracle(device, np.random.default_rng(6), 3, 19, polar.polar_grid(64, rings, radius, 2), 2.0)


def assert_oracle(device, rng, particles, references, grid, radius):
    samples, coefficients = random_case(rng, particles, references, grid)
    samples *= rng.uniform(1e-4, 1e4, (particles, 1, 1)).astype(np.float32)
    coefficients *= rng.uniform(1e-4, 1e4, (references, 1, 1)).astype(np.float32)
    weights = polar.ring_weights(grid)
    shifts = shift_grid(radius, 1.0)
    search = PolarSearch(grid, device.asarray(coefficients), weights)
    score, psi, shift = (to_host(a) for a in search(device.asarray(samples), shifts))
    factors = weights[:, None] * grid.harmonic_weights
    shifted = polar.angular_coefficients(samples[:, None] * polar.shift_phases(grid, shifts), grid)
    best, psi_index, shift_index = oracle(coefficients * factors, shifted, search.n_psi)
    norms = [np.sqrt(polar.ring_energy(values, grid) @ weights) for values in (shifted[:, 0], coefficients)]
    largest = np.outer(*norms)
    np.testing.assert_allclose(score / largest, best / largest, atol=5e-5 * (best / largest).max())
    # In float32 two nearly equal maxima may change places.
    same = (np.abs(psi - psi_index * 360 / search.n_psi) < 1e-3) & (shift == shift_index)
    assert same.mean() > 0.98


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions that are asked for are those of x86")
def test_processors_with_other_vectors_find_the_same(tmp_path):
    """One process computes with short vectors, which this processor may not take by itself."""
    features = dict(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2", NUMBA_CACHE_DIR=str(tmp_path))
    check = f"{__file__}::test_search_against_the_oracle"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", check, "-k", "cpu"]
    done = subprocess.run(command, env=os.environ | features, capture_output=True, text=True)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout
    width = [sys.executable, "-c", "from xmipp_accel.kernels.cpu import harmonics; print(harmonics.WIDTH)"]
    assert subprocess.run(width, env=os.environ | features, capture_output=True, text=True).stdout == "8\n"


@pytest.mark.usefixtures("kernels")
def test_search_in_small_batches_is_the_same(device):
    rng = np.random.default_rng(1)
    grid = polar.polar_grid(20, 5, 7, 2)
    samples, coefficients = random_case(rng, 5, 9, grid)
    arguments = grid, device.asarray(coefficients), polar.ring_weights(grid)
    whole = PolarSearch(*arguments)(device.asarray(samples), shift_grid(2, 1))
    parts = PolarSearch(*arguments, memory=1)(device.asarray(samples), shift_grid(2, 1))
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(to_host(a), to_host(b), rtol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_candidates_and_shifts_of_each_particle(device):
    rng = np.random.default_rng(2)
    grid = polar.polar_grid(20, 5, 7, 2)
    samples, coefficients = random_case(rng, 4, 6, grid)
    search = PolarSearch(grid, device.asarray(coefficients), polar.ring_weights(grid))
    shifts = rng.uniform(-2, 2, (4, 3, 2))
    candidates = rng.integers(-1, 6, (4, 5))
    some = [to_host(a) for a in search(device.asarray(samples), shifts, candidates)]
    for i in range(4):
        every = [to_host(a)[0] for a in search(device.asarray(samples[i : i + 1]), shifts[i])]
        none = candidates[i] < 0
        assert np.isneginf(some[0][i][none]).all()
        for found, expected in zip(some, every):
            np.testing.assert_allclose(found[i][~none], expected[candidates[i][~none]], rtol=1e-5)


def test_a_known_pose_is_found_and_refined(device):
    rng = np.random.default_rng(3)
    centres, heights, axis = blobs(rng, 40, 4, spread=0.25)
    centres = np.clip(centres, -9, 9)
    psi, shift = np.array([12.3, 100.7, 211.1, 333.3]), np.array([[1.3, -2.2], [0.4, 0.0], [-2.6, 1.1], [0, 2.9]])
    particles = []
    for i in range(4):
        c, s = np.cos(np.deg2rad(psi[i])), np.sin(np.deg2rad(psi[i]))
        turn = np.array([[c, s], [-s, c]])
        particles.append(draw(centres[i : i + 1], heights[i : i + 1], axis, 1.5, turn, -shift[i])[0])
    grid = polar.polar_grid(40, 12, 15, 4)
    weights = polar.ring_weights(grid)
    references = draw(centres, heights, axis, 1.5)
    coefficients = polar.angular_coefficients(polar.polar_samples(device.asarray(references), grid), grid)
    coefficients = normalize_references(coefficients, grid, weights)
    samples = polar.polar_samples(device.asarray(np.array(particles)), grid)
    shifts = shift_grid(4, 1.5)
    score, found_psi, found_shift = (to_host(a) for a in PolarSearch(grid, coefficients, weights)(samples, shifts))
    np.testing.assert_array_equal(score.argmax(1), np.arange(4))
    own = np.arange(4)
    start = found_psi[own, own], shifts[found_shift[own, own]]
    value, new_psi, new_shift = refine_poses(grid, coefficients, weights, samples, *start, max_shift=4)
    assert (value > score[own, own]).all()
    np.testing.assert_allclose(new_psi, psi, atol=0.1)
    np.testing.assert_allclose(new_shift, shift, atol=0.02)
    limited = refine_poses(grid, coefficients, weights, samples, *start, max_shift=1)[2]
    assert np.hypot(*limited.T).max() <= 1 + 1e-9


def test_derivatives_are_those_of_the_score(device):
    rng = np.random.default_rng(4)
    grid = polar.polar_grid(20, 5, 7, 2)
    samples, coefficients = random_case(rng, 3, 3, grid)
    arguments = grid, device.asarray(coefficients), polar.ring_weights(grid), device.asarray(samples)
    pose = rng.normal(size=(3, 3))
    value, gradient, hessian = _derivatives(*arguments, pose)
    shifted = polar.angular_coefficients(samples * polar.shift_phases(grid, pose[:, 1:]), grid)
    weights = polar.ring_weights(grid)[:, None] * grid.harmonic_weights
    turn = np.exp(-1j * pose[:, :1, None] * np.arange(grid.n_harmonics))
    expected = (np.conj(coefficients) * shifted * weights * turn).real.sum((1, 2))
    np.testing.assert_allclose(value, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-2
        plus, minus = (_derivatives(*arguments, pose + sign * step) for sign in (1, -1))
        scale = np.abs(gradient).max()
        np.testing.assert_allclose((plus[0] - minus[0]) / 2e-2, gradient[:, i], atol=5e-3 * scale)
        np.testing.assert_allclose((plus[1] - minus[1]) / 2e-2, hessian[:, i], atol=5e-3 * np.abs(hessian).max())


def test_normalize_references(device):
    rng = np.random.default_rng(5)
    grid = polar.polar_grid(20, 5, 7)
    weights = polar.ring_weights(grid)
    references = random_case(rng, 1, 3, grid)[1]
    references[2] = 0
    unit = to_host(normalize_references(device.asarray(references), grid, weights))
    np.testing.assert_allclose(polar.ring_energy(unit, grid) @ weights, [1, 1, 0], rtol=1e-5)


def test_shift_grid():
    np.testing.assert_array_equal(shift_grid(0, 1), [[0, 0]])
    points = shift_grid(4.5, 1.5)
    assert np.hypot(*points.T).max() <= 4.5 and (points[0] == 0).all()
    distances = np.hypot(*(points[:, None] - points[None]).T) + 10 * np.eye(len(points))
    np.testing.assert_allclose(distances.min(0), 1.5)
    assert 30 <= len(points) <= 38


class Launches:
    """A kernel whose limit of shared memory is set without Python's lock, as the driver does it."""

    def __init__(self):
        self.limit, self.refused = 0, 0

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self.limit = size
        time.sleep(0.01)

    def __call__(self, blocks, threads, arguments, shared_mem=0):
        self.refused += shared_mem > self.limit


@pytest.mark.parametrize(
    "limits, harmonics, fits",
    [((75, 65536), 10, False), ((80, 166912), 160, True), ((86, 101376), 96, True), ((86, 101376), 97, False)],
)
def test_tensor_cores_are_used_where_they_are_and_the_products_fit(monkeypatch, limits, harmonics, fits):
    monkeypatch.setattr(search_kernels, "gpu_limits", lambda: limits)
    assert search_kernels.TensorKernel.fits(harmonics) == fits


@pytest.mark.parametrize("kind", [search_kernels.PlainKernel, search_kernels.TensorKernel])
def test_stages_that_run_at_once_leave_each_other_shared_memory(monkeypatch, kind):
    """Two batches of one GPU, one in the first stage and one in the second, use one kernel with 8 and 30 rings."""
    kernel = Launches()
    monkeypatch.setattr(search_kernels, "cuda_kernel", lambda *_: kernel)
    nothing = np.zeros((2, 2), np.float32)

    def launch(rings):
        grid = polar.polar_grid(64, rings, 25)
        references = np.ones((2, rings, grid.n_harmonics), np.complex64)
        stage = kind(grid, references, polar.ring_weights(grid), 4 * grid.n_harmonics)
        particles = stage.arranged(np.ones((2, rings, grid.n_angles // 2), np.complex64), references[:, None])
        for _ in range(5):
            stage(particles, 1, nothing, nothing, nothing, nothing)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(launch, (8, 30)))
    assert kernel.refused == 0
