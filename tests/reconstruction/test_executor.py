"""The executor: files, results, errors, and what every parameter changes."""

import dataclasses

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, correlation, in_band, particles_on_disk, phantom
from tests.shared_data import shared_path
from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.publish import read_json
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.numerics.fsc import soft_sphere
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.result import ReconstructFourierResult


def _run(particles, folder, device=CPU, name="volume", **choices):
    """(result, full map, half 1, half 2)."""
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(**choices), device)
    result = executor.reconstruct(particles, folder, name)
    files = (result.volume, result.half1, result.half2)
    return (result, *(read_volume(folder / file)[0] if file else None for file in files))


def test_files_and_result(device, tmp_path):
    particles = particles_on_disk(tmp_path, count=200, box=32, noise=1.0, enabled=np.arange(200) != 7)
    done = []
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(batch_size=64), device)
    result = executor.reconstruct(particles, tmp_path / "out", "map", progress=lambda *n: done.append(n))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "map.json",
        "map.mrc",
        "map_half1.mrc",
        "map_half2.mrc",
    ]
    assert ReconstructFourierResult.from_json(read_json(tmp_path / "out" / "map.json")) == result
    assert done == [(64, 199), (128, 199), (192, 199), (199, 199)]
    assert (result.particles, result.skipped, result.box, result.sampling_rate) == (199, 1, 32, SAMPLING)
    assert result.particles_half1 + result.particles_half2 == 199
    assert result.device == str(device) and result.ctf == "none"
    curves = (getattr(result, f"fsc_{kind}") for kind in ("unmasked", "masked", "randomised", "corrected"))
    assert len(result.frequencies) == 17 and {len(curve) for curve in curves} == {17}
    assert len(result.coverage["mean"]) == len(result.coverage["frequencies"]) == 17
    assert 0.8 < result.coverage["scf"] < 1 and "SCF" in result.summary()
    assert result.frequencies[-1] == pytest.approx(1 / (2 * SAMPLING))
    assert 2 * SAMPLING <= result.resolution <= result.resolution_unmasked < 20
    full, rate = read_volume(tmp_path / "out" / "map.mrc")
    halves = [read_volume(tmp_path / "out" / f"map_half{half}.mrc")[0] for half in (1, 2)]
    assert rate == pytest.approx(SAMPLING)
    truth = phantom().volume(32, SAMPLING)
    assert correlation(full, truth) > max(correlation(half, truth) for half in halves) > 0.5
    assert "resolution at FSC 0.143" in result.summary()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    particles = particles_on_disk(folder, count=60, noise=0.5, weight=np.r_[np.ones(50), np.zeros(10)])
    return particles, _run(particles, folder)


DIFFERENT_MAP = {
    "symmetry": "c3",
    "max_resolution": 12.0,
    "method": "xmipp",
    "padding_images": 1.5,
    "padding_volume": 1.5,
    "regularisation": "fsc",
    "use_weights": True,
}


@pytest.mark.parametrize("name", DIFFERENT_MAP)
def test_parameter_changes_the_map(plain, tmp_path, name):
    particles, (_, usual, *_) = plain
    _, found, *_ = _run(particles, tmp_path, **{name: DIFFERENT_MAP[name]})
    assert np.abs(found - usual).max() > 0.005 * np.abs(usual).max()


@pytest.mark.parametrize("method", ["xmipp", "xmipp_fast"])
@pytest.mark.parametrize("change", [dict(blob_radius=1.5), dict(blob_order=2), dict(blob_alpha=8.0)])
def test_blob_parameters_change_the_map(plain, tmp_path, method, change):
    particles, _ = plain
    _, usual, *_ = _run(particles, tmp_path, method=method, halves=False)
    _, found, *_ = _run(particles, tmp_path, method=method, halves=False, **change)
    assert np.abs(found - usual).max() > 0.002 * np.abs(usual).max()


def test_maximum_resolution_empties_what_is_finer(plain, tmp_path):
    _, found, *_ = _run(plain[0], tmp_path, max_resolution=12.0)
    k = np.fft.fftfreq(24, SAMPLING)
    fine = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 > (1 / 11.0) ** 2
    power = np.abs(np.fft.fftn(found)) ** 2
    assert power[fine].sum() < 0.01 * power.sum()


def test_wiener_damps(plain, tmp_path):
    particles, (_, usual, *_) = plain
    for constant in (1.0, 3.0):
        _, found, *_ = _run(particles, tmp_path, regularisation="constant", wiener_constant=constant)
        assert found.std() == pytest.approx(usual.std() / (1 + constant), rel=0.2)
    _, found, *_ = _run(particles, tmp_path, wiener_constant=1.0)
    np.testing.assert_array_equal(found, usual)


@pytest.mark.parametrize("method", ["trilinear", "xmipp"])
def test_regularisation_by_fsc_leaves_the_half_maps(plain, tmp_path, method):
    particles, _ = plain
    result, usual, half1, half2 = _run(particles, tmp_path, method=method)
    other, found, *halves = _run(particles, tmp_path, method=method, regularisation="fsc")
    np.testing.assert_array_equal(halves, [half1, half2])
    assert other.fsc_corrected == result.fsc_corrected
    assert found.std() < 0.95 * usual.std()
    with pytest.raises(ParameterError, match="regularisation: expected halves"):
        ReconstructFourierParameters(regularisation="fsc", halves=False)


def test_weight_zero_is_left_out(plain, tmp_path):
    particles, _ = plain
    result, weighted, *_ = _run(particles, tmp_path, use_weights=True, halves=False)
    assert (result.particles, result.skipped) == (50, 10)
    _, part, *_ = _run(particles.take(np.arange(50)), tmp_path, halves=False)
    np.testing.assert_allclose(weighted, part, atol=1e-6 * part.max())


def test_weights_weigh(tmp_path):
    particles = particles_on_disk(tmp_path, count=60, noise=0.0)
    wrong = np.arange(60) % 2 == 0
    particles.rot[wrong] += 90
    particles.weight[wrong] = 0.01
    truth = phantom().volume(24, SAMPLING)
    _, weighted, *_ = _run(particles, tmp_path, use_weights=True, halves=False)
    _, unweighted, *_ = _run(particles, tmp_path, halves=False)
    assert correlation(weighted, truth) > correlation(unweighted, truth) + 0.05


def test_halves_can_be_switched_off(plain, tmp_path):
    particles, (_, usual, *_) = plain
    result, found, half1, half2 = _run(particles, tmp_path, halves=False)
    assert half1 is None and half2 is None and result.frequencies == [] and result.resolution == 0
    assert [p.name for p in tmp_path.glob("*half*")] == []
    np.testing.assert_allclose(found, usual, atol=1e-5 * usual.max())


def test_given_half_sets_are_kept(plain, tmp_path):
    particles, _ = plain
    half = np.where(np.arange(60) < 20, 1, 2)
    result, _, half1, _ = _run(dataclasses.replace(particles, half=half), tmp_path)
    assert (result.particles_half1, result.particles_half2) == (20, 40)
    _, alone, *_ = _run(particles.take(np.arange(20)), tmp_path, halves=False)
    np.testing.assert_allclose(half1, alone, atol=1e-5 * alone.max())


def test_one_half_set_alone_is_split(plain, tmp_path, caplog):
    particles, (_, _, half1, _) = plain
    result, _, found, _ = _run(dataclasses.replace(particles, half=np.full(60, 2)), tmp_path)
    assert (result.particles_half1, result.particles_half2) == (30, 30)
    assert "All 60 particles are of half set 2" in caplog.text
    np.testing.assert_array_equal(found, half1)


def test_seed_splits_at_random(plain, tmp_path):
    particles, (_, usual, half1, _) = plain
    _, _, same1, _ = _run(particles, tmp_path, seed=0)
    _, other_full, other1, _ = _run(particles, tmp_path, seed=1)
    np.testing.assert_array_equal(half1, same1)
    assert np.abs(other1 - half1).max() > 0.05 * half1.max()
    np.testing.assert_allclose(other_full, usual, atol=1e-5 * usual.max())


def test_batch_size_does_not_change_the_map(plain, tmp_path):
    particles, (_, usual, *_) = plain
    _, found, *_ = _run(particles, tmp_path, batch_size=7)
    np.testing.assert_allclose(found, usual, atol=1e-5 * usual.max())


def test_mask_diameter_changes_the_masked_curve_only(plain, tmp_path):
    particles, (usual, *_) = plain
    found, *_ = _run(particles, tmp_path, mask_diameter=40.0)
    assert found.mask_diameter == 40.0 and usual.mask_diameter == pytest.approx(0.8 * 24 * SAMPLING)
    assert np.abs(np.subtract(found.fsc_masked, usual.fsc_masked)).max() > 0.02
    np.testing.assert_allclose(found.fsc_unmasked, usual.fsc_unmasked, atol=1e-6)


def test_a_mask_file_takes_the_place_of_the_sphere(plain, tmp_path):
    particles, (usual, *_) = plain
    write_volume(tmp_path / "mask.mrc", soft_sphere(24, 5, 3), SAMPLING)
    found, *_ = _run(particles, tmp_path, mask_file=str(tmp_path / "mask.mrc"), mask_diameter=70.0)
    same, *_ = _run(particles, tmp_path, mask_file=str(tmp_path / "mask.mrc"))
    assert (
        found.mask_diameter == 0 and found.fsc_masked == same.fsc_masked and "within the mask" in found.summary()
    )
    assert np.abs(np.subtract(found.fsc_masked, usual.fsc_masked)).max() > 0.02
    write_volume(tmp_path / "mask.mrc", soft_sphere(20, 5, 3), SAMPLING)
    with pytest.raises(
        InputFileError, match=r"mask\.mrc: expected a mask of 24 x 24 x 24 voxels, found 20 x 20 x 20"
    ):
        _run(particles, tmp_path / "refused", mask_file=str(tmp_path / "mask.mrc"))
    assert not (tmp_path / "refused").exists()


def test_groups_give_errors_and_resolutions_but_the_same_map(plain, tmp_path):
    particles, (usual, full, half1, _) = plain
    result, found, own1, _ = _run(particles, tmp_path, error_groups=3)
    np.testing.assert_allclose(found, full, atol=1e-5 * full.max())
    np.testing.assert_allclose(own1, half1, atol=1e-5 * half1.max())
    assert (result.particles, result.particles_half1) == (60, 30)
    error, rate = read_volume(tmp_path / result.error_map)
    assert result.error_map == "volume_error.mrc" and rate == pytest.approx(SAMPLING)
    assert 0.1 * full.std() < error.mean() < 2 * full.std() and len(result.relative_error) == 13
    assert result.growth["particles"] == [20, 40, 60] and result.growth["resolutions"][-1] == result.resolution
    assert usual.error_map == "" and usual.growth == {} and usual.relative_error == []
    alone, *_ = _run(particles, tmp_path, error_groups=4, halves=False)
    assert len(alone.relative_error) == 13 and alone.growth == {}
    with pytest.raises(ParameterError, match="error_groups: expected 0, or at least 2"):
        ReconstructFourierParameters(error_groups=1)
    with pytest.raises(ProcessingError, match="expected images in every group"):
        _run(particles.take(np.arange(20)), tmp_path, error_groups=11)


def test_ctf_is_used_where_there_is_one(tmp_path):
    particles = particles_on_disk(tmp_path, count=200, ctf=True)
    truth = phantom().volume(24, SAMPLING)
    errors = {}
    for ctf in ("auto", "weight", "none", "phase_flipped"):
        result, found, *_ = _run(particles, tmp_path, ctf=ctf, halves=False)
        assert result.ctf == ("weight" if ctf == "auto" else ctf)
        errors[ctf] = in_band(found, truth)[0]
    assert errors["auto"] == errors["weight"] < 0.25
    assert min(errors["none"], errors["phase_flipped"]) > 0.35


@pytest.mark.parametrize(
    "change, choices, message",
    [
        (dict(has_pose=False), {}, "particles: expected angles"),
        (dict(), dict(ctf="weight"), "ctf: expected particles with a CTF"),
        (dict(sampling_rate=0.0), {}, "a pixel size, found 24, 0"),
        (dict(weight=np.full(60, -1.0)), dict(use_weights=True), "use_weights: expected weights of 0 or more"),
        (dict(enabled=np.zeros(60, bool)), {}, "expected 2 or more enabled particles, found 0"),
        (dict(), dict(symmetry="x9"), "symmetry: expected"),
    ],
)
def test_unusable_particles_are_refused(plain, tmp_path, change, choices, message):
    with pytest.raises((ParameterError, ProcessingError), match=message):
        _run(dataclasses.replace(plain[0], **change), tmp_path, **choices)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_stack_leaves_nothing_behind(plain, tmp_path):
    broken = dataclasses.replace(plain[0], stack=plain[0].stack[:-1] + [str(tmp_path / "gone.mrcs")])
    with pytest.raises(InputFileError, match=r"gone\.mrcs"):
        _run(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_particles_give_maps(tmp_path):
    particles = read_particles(shared_path("data/particles/relion31.star"))
    result, full, half1, half2 = _run(particles, tmp_path, max_resolution=20.0)
    assert result.ctf == "weight" and result.particles == len(particles)
    assert result.particles_half1 + result.particles_half2 == len(particles) and result.resolution > 0
    assert all(np.isfinite(volume).all() and volume.std() > 0 for volume in (full, half1, half2))
    assert np.isfinite(result.fsc_masked).all()
