"""How particles are weighted, subtracted and dealt out to devices and passes, against the phantom."""

import time

import numpy as np
import pytest

from tests.reconstruction.particle_data import SAMPLING, in_band, particles_on_disk, phantom
from xmipp_accel.backend import CPU
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import read_stack, write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.kernels.cpu import fourier_sample, insert, nearest
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.noise import noise_power
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.run import plan_bands
from xmipp_accel.reconstruction.selection import select
from xmipp_accel.reconstruction.views import Views
from xmipp_accel.simulate.phantom import Phantom

BOX = 24


def run(particles, folder, devices=(CPU,), **choices):
    """(map, result)."""
    choices = {"halves": False, **choices}
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(**choices), *devices)
    result = executor.reconstruct(particles, folder)
    return read_volume(folder / result.volume)[0], result


def error_of(particles, folder, **choices):
    return in_band(run(particles, folder, **choices)[0], phantom().volume(BOX, SAMPLING))[0]


def coloured(count, exponent, rng):
    """Noise whose amplitude follows the `exponent`-th power of the frequency."""
    k = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.rfftfreq(BOX)) * BOX + 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(count, BOX, BOX))) * k**exponent, s=(BOX, BOX))
    return noise / noise.std()


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Particles of two groups in turn whose noise is of opposite colours, and stronger in the second one."""
    folder, rng, count = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0), 200
    groups = {number: OpticsGroup(name, SAMPLING, BOX) for number, name in ((1, "low"), (2, "high"))}
    particles = particles_on_disk(folder, count, BOX, optics_group=1 + np.arange(count) % 2, groups=groups)
    images = read_stack(particles.stack[0])
    noise = 3 * images.std() * np.stack([coloured(count, -1.0, rng), 2 * coloured(count, 1.0, rng)])
    write_stack(folder / "particles.mrcs", images + noise[np.arange(count) % 2, np.arange(count)], SAMPLING)
    return particles


def test_the_noise_around_particles_is_measured(tmp_path):
    """Variance of white noise, and the rise of coloured noise by rings, which the particle's hole smooths."""
    particles, rng = particles_on_disk(tmp_path, 200, BOX), np.random.default_rng(5)
    signal = read_stack(particles.stack[0])
    group = OpticsGroup("", SAMPLING, BOX)
    for exponent in (0.0, 1.0):
        noise = 5 * signal.std() * coloured(200, exponent, rng)
        write_stack(tmp_path / "particles.mrcs", signal + noise, SAMPLING)
        power = noise_power(particles, np.arange(200), group, 45.0, seed=0)
        if exponent == 0:
            np.testing.assert_allclose(power[3:], noise.var(), rtol=0.05)
        else:
            np.testing.assert_allclose(power[4:12] / power[8], (np.arange(5, 13) / 9) ** 2, rtol=0.25)


def test_noise_weights_are_those_of_the_map_s_units(tmp_path):
    """White noise of one strength in two pixel sizes: variances of values are their weights, as of sums."""
    parameters = ReconstructFourierParameters(ctf="none", halves=False, noise_weights=True)
    accumulator, rng = FourierAccumulator(parameters, CPU, BOX, SAMPLING), np.random.default_rng(3)
    ratios = []
    for group, deviation in ((OpticsGroup("", SAMPLING, 24), 2.0), (OpticsGroup("", 1.8, 40), 5.0)):
        plan = accumulator.plan(group, noise=np.full(group.box // 2 + 1, deviation**2))
        images = deviation * rng.normal(size=(20, group.box, group.box)).astype(np.float32)
        known = Views(np.tile(np.eye(3), (20, 1, 1)), np.zeros((20, 2)))
        slices = plan.slices(images, plan.factors(known, 50.0))
        ratios.append((slices[..., :2] ** 2).sum() / slices[..., 2].sum())
    assert ratios[1] == pytest.approx(ratios[0], rel=0.05)


def test_noise_weights_trust_each_group_where_its_noise_is_low(noisy, tmp_path):
    weighted, plain = (error_of(noisy, tmp_path, noise_weights=w, mask_diameter=45.0) for w in (True, False))
    assert weighted < 0.93 * plain
    with pytest.raises(ProcessingError, match="expected pixels around a particle of 40 px, found none"):
        run(noisy, tmp_path, noise_weights=True, mask_diameter=40 * SAMPLING)
    with pytest.raises(ParameterError, match="noise_weights: expected the method trilinear, blob or nearest"):
        ReconstructFourierParameters(noise_weights=True, method="xmipp")


def test_noise_of_premultiplied_images_is_not_the_noise(tmp_path):
    particles = particles_on_disk(tmp_path, ctf=True, noise=1.0)
    with pytest.raises(ParameterError, match="noise_weights: expected images without their CTF"):
        run(particles, tmp_path, noise_weights=True, ctf="premultiplied")


def test_scores_become_b_factors(tmp_path):
    """Half of the particles have wrong angles and low scores: fine shells do without them."""
    particles = particles_on_disk(tmp_path, 120, BOX)
    wrong = np.arange(120) % 2 == 0
    particles.rot[wrong] += 20
    particles.extra = {"other": np.zeros(120), "maxCC": np.where(wrong, 0.2, 0.4)}
    choices = dict(score_b_factor=500.0)
    weighted, plain = (error_of(particles, tmp_path, **choice) for choice in (choices, {}))
    # The scores deviate by 0.1: these are two deviations.
    views = select(ReconstructFourierParameters(ctf="none", **choices), particles).views
    np.testing.assert_allclose(views.decays, np.where(wrong, 1000.0, 0.0))
    assert weighted < 0.8 * plain
    assert error_of(particles, tmp_path, score_label="other", **choices) == plain
    with pytest.raises(ParameterError, match="expected particles with the column gone, found other, maxCC"):
        run(particles, tmp_path, score_label="gone", **choices)
    particles.extra["maxCC"][3] = np.nan
    with pytest.raises(ParameterError, match="expected finite numbers as maxCC, found nan for particle 4"):
        run(particles, tmp_path, **choices)


@pytest.mark.parametrize("ctf", [False, True])
@pytest.mark.parametrize("method", ["trilinear", "blob"])
def test_subtracting_a_part_leaves_the_rest(tmp_path, method, ctf):
    particles = particles_on_disk(tmp_path, 200, BOX, ctf=ctf)
    whole = phantom()
    first = np.arange(len(whole.masses)) < len(whole.masses) // 2
    part, rest = (
        Phantom(whole.centres[some], whole.sigmas[some], whole.masses[some]).volume(BOX, SAMPLING)
        for some in (first, ~first)
    )
    write_volume(tmp_path / "part.mrc", part, SAMPLING)
    found, _ = run(particles, tmp_path, method=method, subtract=str(tmp_path / "part.mrc"))
    usual, _ = run(particles, tmp_path, method=method)
    error, scale = in_band(found, rest, 8)
    # Few views of a small box lose more where CTFs are zero; the whole map has errors of 0.03 to 0.08, too.
    assert error < (0.12 if ctf else 0.05) and scale == pytest.approx(1, abs=0.03)
    assert in_band(usual, rest, 8)[0] > 0.4


def test_a_volume_to_subtract_has_the_map_s_size(tmp_path):
    particles = particles_on_disk(tmp_path)
    write_volume(tmp_path / "part.mrc", np.ones((20, 20, 20), np.float32), SAMPLING)
    with pytest.raises(InputFileError, match=r"part\.mrc: expected a map of 24 x 24 x 24 voxels, found 20"):
        run(particles, tmp_path / "out", subtract=str(tmp_path / "part.mrc"))
    assert not (tmp_path / "out").exists()


def test_the_preview_is_the_map_of_what_was_in(tmp_path):
    particles = particles_on_disk(tmp_path, 30)
    seen = {}

    def look(done, _):
        if (tmp_path / "volume_preview.mrc").exists():
            seen[done] = read_volume(tmp_path / "volume_preview.mrc")[0]

    parameters = ReconstructFourierParameters(batch_size=10, preview_interval=1e-9)
    ReconstructFourierExecutor(parameters).reconstruct(particles, tmp_path, progress=look)
    assert sorted(seen) == [20, 30]
    for done, found in seen.items():
        expected, _ = run(particles.take(np.arange(done - 10)), tmp_path / str(done))
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    run(particles, tmp_path / "without")
    assert not list((tmp_path / "without").glob("*preview*"))


def test_bands_hold_all_planes_once():
    assert plan_bands(100, 10**6, 10**8, 1e9) == [(0, 100)]
    assert plan_bands(100, 10**7, 10**8, 1e9) == [(0, 50), (50, 100)]
    bands = plan_bands(101, 10**7, 0, 1e8)
    assert [low for low, _ in bands[1:]] == [high for _, high in bands[:-1]]
    assert bands[0][0] == 0 and bands[-1][1] == 101 and max(high - low for low, high in bands) <= 6
    with pytest.raises(ProcessingError, match=r"room for one plane of the sums, 1\.000 GB, found 0\.060 GB"):
        plan_bands(100, 10**9, 0, 1e8)


@pytest.mark.parametrize("method", ["trilinear", "blob", "nearest"])
def test_several_passes_give_the_map_of_one(tmp_path, caplog, method):
    particles = particles_on_disk(tmp_path, 40, BOX, ctf=True)
    choices = dict(halves=True, method=method, batch_size=16)
    expected, once = run(particles, tmp_path, **choices)
    done = []
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(max_memory=0.001, **choices), CPU, CPU)
    result = executor.reconstruct(particles, tmp_path / "passes", progress=lambda *n: done.append(n))
    found, _ = read_volume(tmp_path / "passes" / "volume.mrc")
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())
    assert (result.particles, result.particles_half1) == (once.particles, once.particles_half1)
    passes = 5 if method == "blob" else 4
    assert f"reading the images {passes} times, making maps on the CPU" in caplog.text
    assert done[-1] == (40 * passes,) * 2


def test_batches_keep_optics_groups_together_and_copy_nothing(tmp_path):
    particles = particles_on_disk(
        tmp_path, 20, BOX, optics_group=[3, 1] * 10, ctf=True, enabled=np.arange(20) != 4
    )
    particles.groups = {1: OpticsGroup("a", SAMPLING, BOX), 3: OpticsGroup("b", 1.5, 2 * BOX)}
    selection = select(ReconstructFourierParameters(ctf="weight"), particles)
    assert selection.rows.tolist() == [*range(1, 20, 2), 0, 2, *range(6, 20, 2)]
    batches = selection.batches(lambda box: {BOX: 7, 2 * BOX: 4}[box])
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 7), (7, 10), (10, 14), (14, 18), (18, 19)]
    assert [selection.group(batch).name for batch in batches] == list("aabbb")
    taken = selection.views.take(batches[2])
    np.testing.assert_array_equal(taken.optics.defocus_u, particles.defocus_u[selection.rows[10:14]])
    for name in ("matrices", "shifts", "weights", "halves"):
        assert np.shares_memory(getattr(taken, name), getattr(selection.views, name)), name


def test_several_devices_share_the_particles(tmp_path, monkeypatch):
    particles = particles_on_disk(tmp_path, 60, BOX)
    expected, _ = run(particles, tmp_path, batch_size=7)
    insert_batch, rng = FourierAccumulator.insert, np.random.default_rng(0)

    def slowly(*arguments):
        time.sleep(rng.uniform(0, 0.01))
        insert_batch(*arguments)

    monkeypatch.setattr(FourierAccumulator, "insert", slowly)
    found, result = run(particles, tmp_path / "three", [CPU] * 3, batch_size=7)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    assert (result.particles, result.device) == (60, "cpu, cpu, cpu")
    maps = [run(particles, tmp_path / "same", [CPU] * 3, batch_size=7, deterministic=True)[0] for _ in range(4)]
    for other in maps[1:]:
        np.testing.assert_array_equal(other, maps[0])


def test_an_unreadable_image_stops_all_devices(tmp_path):
    """The second device fails at its first batch, while the first one still reports its own."""
    particles = particles_on_disk(tmp_path, 60, BOX)
    particles.stack[2:4] = [str(tmp_path / "absent.mrcs")] * 2
    done = []

    def report(number, _):
        done.append(number)
        time.sleep(0.1)

    parameters = ReconstructFourierParameters(halves=False, batch_size=2, deterministic=True)
    with pytest.raises(InputFileError, match=r"absent\.mrcs"):
        ReconstructFourierExecutor(parameters, CPU, CPU).reconstruct(particles, tmp_path / "out", progress=report)
    assert 1 <= len(done) <= 5


@pytest.mark.parametrize("method", ["trilinear", "blob", "nearest"])
def test_devices_take_turns_at_parallel_kernels(tmp_path, monkeypatch, method):
    """Numba's threading layer "workqueue" ends the process if two threads call them at a time."""
    inside, most = [0], [0]

    def alone(kernel):
        def called(*arguments):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)
            try:
                return kernel(*arguments)
            finally:
                inside[0] -= 1

        return called

    for module, kernel in (
        (insert, "insert_trilinear"),
        (insert, "insert_blob"),
        (nearest, "insert_nearest"),
        (fourier_sample, "fourier_sample"),
    ):
        monkeypatch.setattr(module, kernel, alone(getattr(module, kernel)))
    particles = particles_on_disk(tmp_path, 30, BOX)
    write_volume(tmp_path / "map.mrc", phantom().volume(BOX, SAMPLING), SAMPLING)
    run(particles, tmp_path, [CPU] * 3, batch_size=5, method=method, subtract=str(tmp_path / "map.mrc"))
    assert most == [1]


ERRORS = {
    # padding of images and volume: trilinear, blob, nearest
    (2, 2): (0.0256, 0.0323, 0.0259),
    (2, 3): (0.0121, 0.0150, 0.0175),
    (3, 2): (0.0258, 0.0319, 0.0187),
    (1.5, 2): (0.0328, 0.0348, 0.0409),
    (1, 2): (0.0927, 0.0517, 0.0662),
    (2, 1): (0.1043, 0.1363, 0.1170),
}


@pytest.mark.parametrize("paddings", ERRORS)
def test_errors_of_each_kernel_and_padding(tmp_path, paddings):
    """Measured with 400 exact views."""
    particles = particles_on_disk(tmp_path, 400, BOX)
    choices = dict(padding_images=paddings[0], padding_volume=paddings[1])
    for method, expected in zip(("trilinear", "blob", "nearest"), ERRORS[paddings]):
        assert error_of(particles, tmp_path, method=method, **choices) < 1.02 * expected, method
