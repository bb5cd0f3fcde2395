"""Least-squares maps through the accumulator and the executor."""

import dataclasses

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, in_band, particles_on_disk, phantom, reconstruct, views
from xmipp_accel.backend import CPU, to_host
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.publish import read_json
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.numerics.fsc import soft_sphere
from xmipp_accel.numerics.rotations import random_matrices
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.result import ReconstructFourierResult
from xmipp_accel.reconstruction.views import Views
from xmipp_accel.simulate.phantom import protein_phantom


@pytest.mark.parametrize("box", [32, 27])
@pytest.mark.parametrize("method", ["trilinear", "blob"])
def test_map_is_many_times_nearer_to_the_truth(device, box, method):
    """Blobs of equal height, so of masses like the cubes of their widths."""
    sharp = protein_phantom(60.0, seed=4)
    sharp = dataclasses.replace(sharp, masses=(sharp.sigmas / sharp.sigmas.mean()) ** 3)
    matrices = random_matrices(400, np.random.default_rng(3))
    shifts = np.random.default_rng(4).uniform(-1.5, 1.5, (400, 2))
    images, truth = sharp.project(matrices, box, SAMPLING, -shifts), sharp.volume(box, SAMPLING)
    direct = reconstruct(images, matrices, shifts, device, method=method)
    found = reconstruct(images, matrices, shifts, device, method=method, refine_iterations=10)
    error, scale = in_band(found, truth)
    assert in_band(direct, truth)[0] > 0.01
    assert error < 0.005
    assert abs(scale - 1) < 1e-3


@pytest.mark.parametrize("padding", [2.5, 3.0])
def test_padding_may_be_more(padding):
    images, matrices, shifts = views(300, 27)
    found = reconstruct(images, matrices, shifts, padding_volume=padding, refine_iterations=10)
    assert in_band(found, phantom().volume(27, SAMPLING))[0] < 0.005


@pytest.mark.parametrize("symmetry, count", [("c3", 45), ("d2", 40), ("d3", 50)])
def test_symmetry_by_cosets_and_by_moved_voxels(device, symmetry, count):
    """d3 has both kinds of operators, c3 and d2 one each; the views alone leave gaps."""
    images, matrices, shifts = views(count, 32, symmetry=symmetry)
    truth = phantom(symmetry).volume(32, SAMPLING)
    found = reconstruct(images, matrices, shifts, device, symmetry=symmetry, refine_iterations=12)
    single = reconstruct(images, matrices, shifts, refine_iterations=12)
    assert in_band(found, truth)[0] < 0.005
    assert in_band(single, truth)[0] > 0.02


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return particles_on_disk(tmp_path_factory.mktemp("noisy"), count=200, ctf=True, noise=0.5)


def _run(particles, folder, device=CPU, **choices):
    """(result, full map, half 1, half 2)."""
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(**choices), device)
    result = executor.reconstruct(particles, folder)
    files = [file for file in (result.volume, result.half1, result.half2) if file]
    return (result, *(read_volume(folder / file)[0] for file in files))


def test_half_maps_and_what_the_result_says(device, noisy, tmp_path):
    direct, *_ = _run(noisy, tmp_path / "direct", device)
    result, full, half1, half2 = _run(noisy, tmp_path, device, refine_iterations=5)
    truth = phantom().volume(24, SAMPLING)
    assert len(result.residuals) == 5 and 0 < result.residuals[-1] < 0.05
    assert result.residuals == sorted(result.residuals, reverse=True)
    assert f"least squares: 5 iterations, residual {result.residuals[-1]:.1e}" in result.summary()
    assert ReconstructFourierResult.from_json(read_json(tmp_path / "volume.json")) == result
    assert result.method == "least_squares" and direct.method == "trilinear"
    assert direct.residuals == [] and "least squares" not in direct.summary()
    assert result.resolution == pytest.approx(direct.resolution, rel=0.05)
    assert result.coverage["scf"] == pytest.approx(direct.coverage["scf"], abs=0.03)
    errors = [in_band(volume, truth)[0] for volume in (full, half1, half2)]
    assert errors[0] < 0.85 * min(errors[1:])
    counts = result.particles_half1, result.particles_half2
    assert counts == (100, 100)


def test_memory_for_a_part_of_the_sums_gives_the_same_maps(device, noisy, tmp_path, caplog):
    _, *expected = _run(noisy, tmp_path, device, refine_iterations=4)
    _, *found = _run(noisy, tmp_path, device, refine_iterations=4, max_memory=0.004)
    assert "reading the images" in caplog.text
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected[0].max())


def test_sums_of_several_devices_are_merged(device):
    images, matrices, shifts = views(40, 20, largest_shift=1.0)
    expected = reconstruct(images, matrices, shifts, refine_iterations=6)
    parameters = ReconstructFourierParameters(halves=False, ctf="none", refine_iterations=6)
    first, second = (FourierAccumulator(parameters, place, 20, SAMPLING) for place in (CPU, device))
    for accumulator, part in ((first, slice(0, 25)), (second, slice(25, 40))):
        accumulator.insert(images[part], Views(matrices[part], shifts[part]))
    first.merge(*second.export())
    preview = to_host(first.preview())
    found = to_host(first.finish().full)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    assert np.corrcoef(preview.ravel(), found.ravel())[0, 1] > 0.95


def test_constant_regularisation_damps_and_that_by_fsc_leaves_the_half_maps(noisy, tmp_path):
    result, usual, *halves = _run(noisy, tmp_path, refine_iterations=8)
    _, damped, *_ = _run(noisy, tmp_path, refine_iterations=8, regularisation="constant", wiener_constant=1.0)
    assert damped.std() == pytest.approx(usual.std() / 2, rel=0.2)
    other, found, *same = _run(noisy, tmp_path, refine_iterations=8, regularisation="fsc")
    np.testing.assert_array_equal(same, halves)
    assert other.fsc_corrected == result.fsc_corrected
    truth = phantom().volume(24, SAMPLING)
    assert in_band(found, truth)[0] < 0.97 * in_band(usual, truth)[0]


def test_support_fills_gaps_between_few_views(tmp_path):
    particles = particles_on_disk(tmp_path, count=40, box=32)
    truth, choices = phantom().volume(32, SAMPLING), dict(refine_iterations=12, mask_diameter=66.0, halves=False)
    _, open_map = _run(particles, tmp_path, **choices)
    _, confined = _run(particles, tmp_path, refine_support=True, **choices)
    assert in_band(confined, truth)[0] < 0.5 * in_band(open_map, truth)[0]
    write_volume(tmp_path / "mask.mrc", soft_sphere(32, 11, 6), SAMPLING)
    choices.update(mask_file=str(tmp_path / "mask.mrc"), mask_diameter=20.0)
    _, same = _run(particles, tmp_path, refine_support=True, **choices)
    np.testing.assert_allclose(same, confined, atol=1e-4 * confined.max())


def test_groups_give_errors_of_the_same_map(noisy, tmp_path):
    _, full, half1, _ = _run(noisy, tmp_path, refine_iterations=5)
    result, found, own1, _ = _run(noisy, tmp_path, refine_iterations=5, error_groups=4)
    np.testing.assert_allclose(found, full, atol=1e-3 * full.max())
    np.testing.assert_allclose(own1, half1, atol=1e-3 * half1.max())
    direct, *_ = _run(noisy, tmp_path, error_groups=4)
    np.testing.assert_allclose(result.relative_error[1:10], direct.relative_error[1:10], rtol=0.3)
    assert result.growth["particles"] == [50, 100, 200]


@pytest.mark.parametrize(
    "choices, message",
    [
        (dict(method="nearest"), "the method trilinear or blob, found 'nearest'"),
        (dict(method="xmipp"), "the method trilinear or blob, found 'xmipp'"),
        (dict(method="xmipp_fast"), "the method trilinear or blob, found 'xmipp_fast'"),
        (dict(padding_volume=1.5), "padding_volume of 2 or more, found 1.5"),
        (dict(deterministic=True), "deterministic to be off"),
    ],
)
def test_what_does_not_go_together_is_refused(choices, message):
    with pytest.raises(ParameterError, match=f"refine_iterations: expected {message}"):
        ReconstructFourierParameters(refine_iterations=8, **choices)
    ReconstructFourierParameters(**choices)
