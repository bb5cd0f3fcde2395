"""Optics groups: images of several pixel sizes, boxes and lenses in one map, against the phantom."""

import dataclasses

import numpy as np
import pytest

from tests.reconstruction import aberrated_data as data
from tests.reconstruction.particle_data import SAMPLING, in_band, phantom
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.optics_groups import IDENTITY, OpticsGroup
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.rotations import matrix_to_euler, random_matrices
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

COARSE, FINE = OpticsGroup("coarse", SAMPLING, 24), OpticsGroup("fine", 1.8, 40)


def particles_of(folder, views, groups, optics=None):
    """`Particles` whose groups take turns; `views` holds (images, matrices, shifts) of each group."""
    for number, (images, _, _) in enumerate(views):
        write_stack(folder / f"{number}.mrcs", images.astype(np.float32), groups[number].sampling_rate)
    count, kinds = len(views[0][0]), len(views)
    matrices, shifts = (np.stack([view[part] for view in views], axis=1) for part in (1, 2))
    rot, tilt, psi = matrix_to_euler(matrices.reshape(-1, 3, 3))
    shifts = shifts.reshape(-1, 2)
    lens = (
        {}
        if optics is None
        else {name: np.repeat(np.broadcast_to(value, count), kinds) for name, value in vars(optics).items()}
    )
    return Particles(
        [str(folder / f"{number}.mrcs") for number in range(kinds)] * count,
        np.repeat(np.arange(count), kinds),
        **dict(rot=rot, tilt=tilt, psi=psi, shift_y=shifts[:, 0], shift_x=shifts[:, 1], has_pose=True),
        optics_group=np.tile(np.arange(kinds), count),
        groups=dict(enumerate(groups)),
        has_ctf=optics is not None,
        **lens,
    )


def plain_views(count, group, seed):
    """Projections whose pixels are line integrals in the same units for all pixel sizes."""
    rng = np.random.default_rng(seed)
    matrices, shifts = random_matrices(count, rng), rng.uniform(-1, 1, (count, 2))
    images = phantom().project(matrices, group.box, group.sampling_rate, -shifts) * group.sampling_rate
    return images, matrices, shifts


def reconstructed(particles, folder, **choices):
    """(map, A/px, result)."""
    choices = {"halves": False, **choices}
    result = ReconstructFourierExecutor(ReconstructFourierParameters(**choices)).reconstruct(particles, folder)
    return (*read_volume(folder / result.volume), result)


def error_of(particles, folder, **choices):
    """Relative error within the band and the scale to the phantom's density times the pixel size."""
    found, rate, _ = reconstructed(particles, folder, **choices)
    error, scale = in_band(found, phantom().volume(len(found), rate))
    return error, scale * rate


@pytest.mark.parametrize("method", ["trilinear", "blob", "nearest"])
@pytest.mark.parametrize("groups", [(COARSE, FINE), (FINE, COARSE)], ids=["into coarse", "into fine"])
def test_two_pixel_sizes_and_boxes_are_as_good_as_one(tmp_path, groups, method):
    """A relative error of 0.03 would come from amplitudes that differ by a power of the pixels' ratio, 0.6."""
    mixed = particles_of(tmp_path, [plain_views(100, group, n) for n, group in enumerate(groups)], groups)
    error, scale = error_of(mixed, tmp_path / "mixed", method=method)
    (tmp_path / "same").mkdir()
    same = (groups[0], groups[0])
    alike = particles_of(tmp_path / "same", [plain_views(100, groups[0], n) for n in range(2)], same)
    expected, usual = error_of(alike, tmp_path / "same", method=method)
    assert error < 1.1 * expected and error < 0.04
    assert scale == pytest.approx(usual, rel=0.005) == pytest.approx(1, rel=0.05)


def test_half_maps_of_a_mixed_set_hold_both_groups(tmp_path):
    groups = COARSE, FINE
    mixed = particles_of(tmp_path, [plain_views(60, group, n) for n, group in enumerate(groups)], groups)
    mixed.half[:] = 1 + (np.arange(120) // 2) % 2
    _, _, result = reconstructed(mixed, tmp_path, halves=True, batch_size=16)
    half1 = read_volume(tmp_path / result.half1)[0]
    members = mixed.take(mixed.half == 1)
    alone, *_ = reconstructed(members, tmp_path / "alone")
    np.testing.assert_allclose(half1, alone, atol=1e-5 * alone.max())
    assert result.particles_half1 == result.particles_half2 == 60 and result.resolution < 10


def test_xmipp_sums_take_one_pixel_size_only(tmp_path):
    groups = COARSE, FINE
    mixed = particles_of(tmp_path, [plain_views(3, group, n) for n, group in enumerate(groups)], groups)
    with pytest.raises(ParameterError, match="method: expected one pixel and box size for Xmipp's sums"):
        reconstructed(mixed, tmp_path, method="xmipp")


def test_a_group_of_another_box_than_its_stack_is_refused(tmp_path):
    particles = particles_of(tmp_path, [plain_views(3, COARSE, 0)], [dataclasses.replace(COARSE, box=26)])
    with pytest.raises(InputFileError, match=r"0\.mrcs: expected images of 26 x 26 px, found images of 24 x 24"):
        reconstructed(particles, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_group_without_a_pixel_size_is_refused(tmp_path):
    unknown = dataclasses.replace(COARSE, sampling_rate=0.0)
    particles = particles_of(tmp_path, [plain_views(3, COARSE, 0)], [COARSE])
    particles.groups, particles.sampling_rate = {0: unknown}, 0.0
    with pytest.raises(ParameterError, match="a pixel size, found 24, 0"):
        reconstructed(particles, tmp_path)


# Other values than ABERRATED's, in other pixels, so that a mistaken group shows.
OTHER = dataclasses.replace(
    data.ABERRATED,
    name="other",
    sampling_rate=2.4,
    box=40,
    magnification=np.linalg.inv(data.STRETCH),
    beam_tilt=(-4.0, 2.0),
    odd_zernike=(0.0, 0.0, -150.0, 0.0, 0.0, 60.0),
    even_zernike=(-0.3, -4.0, 0.0, 5.0, -900.0),
)
LENSES = dataclasses.replace(data.ABERRATED, box=32), OTHER
WITHOUT = dict(magnification=IDENTITY, beam_tilt=(0, 0), odd_zernike=(), even_zernike=())


def lens_views(lenses, count, seed=8):
    """(images, matrices, shifts) of each group, and the optics that they share."""
    rng, optics, views = np.random.default_rng(seed), data.optics(count), []
    for group in lenses:
        matrices, shifts = random_matrices(count, rng), rng.uniform(-1, 1, (count, 2))
        images = data.aberrated_views(phantom(), matrices, group.box, group, optics, shifts, extent=2)
        views.append((images * group.sampling_rate, matrices, shifts))
    return views, optics


@pytest.fixture(scope="module")
def aberrated(tmp_path_factory):
    """Particles of two aberrated groups in turn."""
    views, optics = lens_views(LENSES, count=50)
    return particles_of(tmp_path_factory.mktemp("aberrated"), views, LENSES, optics)


def fine_error(particles, folder, **choices):
    """Relative error from 10 to 6.4 A, where aberrations matter."""
    found, rate, _ = reconstructed(particles, folder, **choices)
    k = np.fft.fftfreq(len(found), rate)
    k2 = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    band = (k2 > 1 / 10**2) & (k2 < 1 / 6.4**2)
    a, b = (np.fft.fftn(volume)[band] for volume in (found / rate, phantom().volume(len(found), rate)))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_aberrations_of_each_group_are_undone(aberrated, tmp_path):
    """What is left, 0.128, so few views leave of images without aberrations, too (0.126)."""
    error = fine_error(aberrated, tmp_path / "right")
    assert error < 0.14
    for name, plain in WITHOUT.items():
        without = [dataclasses.replace(group, **{name: plain}) for group in LENSES]
        for place, groups in enumerate(((without[0], LENSES[1]), (LENSES[0], without[1]), without)):
            wrong = dataclasses.replace(aberrated, groups=dict(enumerate(groups)))
            least = 1.25 if place == 2 else 1.1
            assert fine_error(wrong, tmp_path / f"{name}{place}") > least * error, (name, place)
    nothing = dict(enumerate(dataclasses.replace(group, **WITHOUT) for group in LENSES))
    assert fine_error(dataclasses.replace(aberrated, groups=nothing), tmp_path / "none") > 3 * error


def test_beam_tilt_without_the_lens_is_refused(aberrated, tmp_path):
    with pytest.raises(ParameterError, match="beam tilt: expected voltage and Cs of optics group 'aberrated'"):
        reconstructed(dataclasses.replace(aberrated, has_ctf=False), tmp_path)


@pytest.fixture(scope="module")
def premultiplied(tmp_path_factory):
    """Particles of two groups in turn, the second one's images multiplied by their CTF."""
    groups = [
        OpticsGroup(name, SAMPLING, 32, premultiplied=name == "multiplied") for name in ("plain", "multiplied")
    ]
    edge, count = 65, 40
    rng, optics, views = np.random.default_rng(3), data.optics(count), []
    for group in groups:
        matrices, shifts = random_matrices(count, rng), rng.uniform(-1, 1, (count, 2))
        fields = data.aberrated_views(phantom(), matrices, edge, group, optics, shifts, extent=1) * SAMPLING
        if group.premultiplied:
            transfer = np.sin(data.chi(*data.frequencies(edge, SAMPLING), optics, np.eye(2)))
            fields = np.fft.ifft2(np.fft.fft2(fields) * transfer).real
        views.append((fields[:, 16:48, 16:48], matrices, shifts))
    return particles_of(tmp_path_factory.mktemp("premultiplied"), views, groups, optics)


def test_premultiplied_images_are_weighted_only(premultiplied, tmp_path):
    error = fine_error(premultiplied, tmp_path / "right")
    assert error < 0.15
    for number, flag in ((0, True), (1, False)):
        group = dataclasses.replace(premultiplied.groups[number], premultiplied=flag)
        wrong = dataclasses.replace(premultiplied, groups={**premultiplied.groups, number: group})
        assert fine_error(wrong, tmp_path / str(number)) > 2 * error


def test_the_mark_of_a_group_and_the_parameter_are_the_same(premultiplied, tmp_path):
    multiplied = premultiplied.take(premultiplied.optics_group == 1)
    marked, *_ = reconstructed(multiplied, tmp_path / "marked")
    unmarked = {1: dataclasses.replace(multiplied.groups[1], premultiplied=False)}
    unmarked = dataclasses.replace(multiplied, groups=unmarked)
    told, *_ = reconstructed(unmarked, tmp_path / "told", ctf="premultiplied")
    np.testing.assert_array_equal(told, marked)


def test_the_curved_sphere_needs_images_that_are_not_multiplied(premultiplied, tmp_path):
    with pytest.raises(ParameterError, match="found them multiplied in optics group 'multiplied'"):
        reconstructed(premultiplied, tmp_path, ewald="standard")
