import dataclasses
import io

import numpy as np
import pytest
from emtable import Table
from pwem.constants import ALIGN_2D, ALIGN_3D, ALIGN_NONE, ALIGN_PROJ
from pwem.convert.transformations import euler_matrix
from pwem.objects import Acquisition, Movie, Particle, SetOfClasses2D, SetOfMovies, SetOfParticles, Transform
from pyworkflow.object import Float, Integer

from xmipp_accel import convert
from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles
from xmipp_accel.numerics.rotations import euler_to_matrix

ANGLES = np.array(
    [[10, 20, 30], [-170, 179, 5], [0, 0, 0], [35, 0, 60], [0, 180, 40], [90, 180, -90], [12, 90, 359]], float
)
SHIFTS = np.array([[1.5, -2], [0, 0], [3, 4], [-1, 0.25], [2, -7], [0.5, 0.5], [-3, 3]])


def particles(**changes):
    count = len(ANGLES)
    values = dict(
        stack=["a.mrcs"] * 4 + ["b.mrcs"] * 3,
        index=np.array([3, 0, 2, 1, 2, 1, 0]),
        item_id=np.arange(11, 11 + count),
        rot=ANGLES[:, 0],
        tilt=ANGLES[:, 1],
        psi=ANGLES[:, 2],
        shift_x=SHIFTS[:, 0],
        shift_y=SHIFTS[:, 1],
        defocus_u=np.linspace(9000, 20000, count),
        defocus_v=np.linspace(8000, 19000, count),
        defocus_angle=np.linspace(0, 170, count),
        voltage=200.0,
        cs=1.4,
        amplitude_contrast=0.07,
        sampling_rate=1.25,
        has_ctf=True,
        has_pose=True,
    )
    return Particles(**{**values, **changes})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_stack(f"{name}.mrcs", np.zeros((4, 8, 8), np.float32), 1.25)
    return tmp_path


def through_scipion(source, alignment):
    images = SetOfParticles(filename="particles.sqlite")
    convert.fill_set(images, source, alignment)
    images.write()
    images.close()
    reopened = SetOfParticles(filename="particles.sqlite")
    reopened.loadAllProperties()
    return reopened, convert.particles_from_set(reopened)


def test_a_projection_transform_is_the_inverse_of_xmipps_matrix():
    for (rot, tilt, psi), (x, y) in zip(ANGLES, SHIFTS):
        forward = euler_matrix(*-np.deg2rad([rot, tilt, psi]), "szyz")
        forward[:2, 3] = -x, -y
        ours = convert.projection_transform([rot], [tilt], [psi], [x], [y])[0]
        np.testing.assert_allclose(ours, np.linalg.inv(forward), atol=1e-12)


def test_a_planar_transform_is_xmipps_matrix_with_the_first_row_negated_by_a_flip():
    for psi, flip, (x, y) in zip((0, 30, -100, 180), (False, True, True, False), SHIFTS):
        forward = euler_matrix(0, 0, -np.deg2rad(psi), "szyz")
        forward[:2, 3] = x, y
        if flip:
            forward[0, :2] *= -1
            forward[2, 2] = -1
        ours = convert.planar_transform([psi], [x], [y], [flip])[0]
        np.testing.assert_allclose(ours, forward, atol=1e-12)


def test_poses_come_back_from_projection_transforms_also_at_the_poles():
    matrices = convert.projection_transform(*ANGLES.T, *SHIFTS.T)
    rot, tilt, psi, x, y = convert.projection_pose(matrices)
    np.testing.assert_allclose(euler_to_matrix(rot, tilt, psi), euler_to_matrix(*ANGLES.T), atol=1e-9)
    np.testing.assert_allclose(np.stack([x, y], axis=1), SHIFTS, atol=1e-9)
    np.testing.assert_allclose(convert.projection_transform(rot, tilt, psi, x, y), matrices, atol=1e-9)


def test_a_mirrored_projection_is_the_view_from_the_other_side():
    flipped = convert.projection_transform(*ANGLES.T, *SHIFTS.T, flip=True)
    rot, tilt, psi = ANGLES.T
    plain = convert.projection_transform(rot, tilt + 180, -psi, -SHIFTS[:, 0], SHIFTS[:, 1])
    np.testing.assert_allclose(flipped, plain, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(flipped[:, :3, :3]), 1, atol=1e-12)


def test_a_mirror_in_a_projection_alignment_is_refused():
    matrix = np.diag([-1.0, 1, 1, 1])
    with pytest.raises(ProcessingError, match="mirror"):
        convert.projection_pose([matrix])


@pytest.mark.parametrize("flip", [False, True])
def test_planar_poses_come_back(flip):
    psi, x, y, found = convert.planar_pose(convert.planar_transform(ANGLES[:, 2], *SHIFTS.T, flip))
    np.testing.assert_allclose((psi - ANGLES[:, 2] + 180) % 360 - 180, 0, atol=1e-9)
    np.testing.assert_allclose(np.stack([x, y], axis=1), SHIFTS, atol=1e-12)
    assert (found == flip).all()


@pytest.mark.parametrize("flip", [False, True])
def test_a_2d_result_becomes_the_transform_that_puts_the_particle_on_its_reference(flip):
    rng = np.random.default_rng(0)
    psi, shift, point = rng.uniform(-180, 180), rng.uniform(-5, 5, 2), rng.uniform(-9, 9, 2)
    mirrored = point * ([-1, 1] if flip else [1, 1])
    expected = euler_to_matrix(0, 0, psi)[:2, :2].T @ (mirrored + shift)
    rows = Particles(stack=["a"], psi=psi, shift_x=shift[0], shift_y=shift[1], flip=flip)
    matrix = convert.aligned_transforms(rows, "2d")[0]
    np.testing.assert_allclose((matrix @ [*point, 0, 1])[:2], expected, atol=1e-9)
    assert convert.planar_pose([matrix])[3][0] == flip
    np.testing.assert_allclose(convert.planar_transform(*convert.planar_pose([matrix]))[0], matrix, atol=1e-9)


def test_particles_come_back_from_a_scipion_set_with_ctf_pose_and_half_sets(folder):
    source = particles(half=[1, 2, 1, 2, 1, 2, 0], enabled=[True, True, False, True, True, True, True])
    images, found = through_scipion(source, ALIGN_PROJ)
    assert images.hasAlignmentProj() and images.hasCTF() and images.getXDim() == 8
    assert found.stack == [str(folder / name) for name in source.stack]
    for name in ("index", "item_id", "half", "enabled", "voltage", "cs", "amplitude_contrast"):
        np.testing.assert_allclose(getattr(found, name), getattr(source, name), err_msg=name)
    for name in ("defocus_u", "defocus_v", "defocus_angle", "phase_shift", "shift_x", "shift_y"):
        np.testing.assert_allclose(getattr(found, name), getattr(source, name), atol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        euler_to_matrix(found.rot, found.tilt, found.psi), euler_to_matrix(*ANGLES.T), atol=1e-6
    )
    assert found.sampling_rate == 1.25 and found.has_ctf and found.has_pose


def test_planar_alignment_weight_and_phase_shift_come_back(folder):
    source = particles(rot=0, tilt=0, flip=np.arange(7) % 2 == 1, weight=np.linspace(0, 1, 7), phase_shift=35.0)
    images, found = through_scipion(source, ALIGN_2D)
    assert images.hasAlignment2D()
    np.testing.assert_array_equal(found.flip, source.flip)
    np.testing.assert_allclose((found.psi - source.psi + 180) % 360 - 180, 0, atol=1e-5)
    np.testing.assert_allclose(found.weight, source.weight, atol=1e-6)
    np.testing.assert_allclose(found.phase_shift, 35)


def test_without_alignment_and_ctf_there_is_neither(folder):
    images, found = through_scipion(particles(has_ctf=False, has_pose=False), None)
    assert images.getAlignment() == ALIGN_NONE and not images.hasCTF()
    assert not found.has_ctf and not found.has_pose and not found.rot.any()


def test_a_format_behind_the_file_name_is_cut_off(folder):
    images = SetOfParticles(filename="particles.sqlite")
    images.setSamplingRate(1.25)
    item = Particle(location=(2, "a.mrcs:mrcs"))
    images._firstDim.set((8, 8, 1))
    images.append(item)
    found = convert.particles_from_set(images)
    assert found.stack == [str(folder / "a.mrcs")] and found.index[0] == 1
    assert found.voltage[0] == 300, "a set without acquisition gets the defaults"


def test_an_empty_set_and_a_3d_alignment_are_refused(folder):
    with pytest.raises(ProcessingError, match="found none"):
        convert.particles_from_set(SetOfParticles(filename="empty.sqlite"))
    images = SetOfParticles(filename="three.sqlite")
    images.setSamplingRate(1.0)
    images.setAlignment(ALIGN_3D)
    item = Particle(location=(1, "a.mrcs"))
    item.setTransform(Transform(np.eye(4)))
    images.append(item)
    with pytest.raises(ProcessingError, match="found 3D"):
        convert.particles_from_set(images)


def test_the_averages_of_classes_become_references(folder):
    images, _ = through_scipion(particles(), ALIGN_PROJ)
    classes = SetOfClasses2D(filename="classes.sqlite")
    classes._imagesPointer.set(images)
    classes.classifyItems(
        updateItemCallback=lambda item, _: item.setClassId(1 + item.getObjId() % 2),
        updateClassCallback=lambda group: group.getRepresentative().setLocation(group.getObjId(), "b.mrcs"),
    )
    references = convert.references_from_set(classes)
    assert references.stack == [str(folder / "b.mrcs")] * 2
    assert sorted(references.index) == [0, 1] and not references.has_ctf and not references.has_pose
    assert references.sampling_rate == 1.25
    assert not references.tilt.any(), "the particles' directions are not those of the averages"


def test_sizes_and_sampling_rates_are_compared(folder):
    images, _ = through_scipion(particles(), ALIGN_PROJ)
    assert convert.size_errors("references", images, images) == []
    other = SetOfParticles(filename="other.sqlite")
    write_stack("other.mrcs", np.zeros((1, 6, 6), np.float32), 2.0)
    convert.fill_set(other, dataclasses.replace(particles(), stack=["other.mrcs"] * 7, sampling_rate=2.0), None)
    first, second = convert.size_errors("references", other, images)
    assert "6 px" in first and "8 px" in first
    assert "2.000 A/px" in second and "1.250 A/px" in second


def test_particles_of_several_sizes_do_not_fit_into_a_set():
    groups = {1: OpticsGroup("coarse", 1.5, 8), 2: OpticsGroup("fine", 1.2, 10)}
    mixed = particles(optics_group=[1, 2, 2, 2, 2, 2, 2], groups=groups)
    with pytest.raises(ParameterError, match="one pixel size and one box in all optics groups"):
        convert.fill_set(SetOfParticles(filename=":memory:"), mixed)


def optics_text(**columns):
    """An optics table as RELION's plugin keeps it: written by emtable."""
    table = Table(columns=["rlnOpticsGroupName", "rlnOpticsGroup", *columns])
    for number, values in enumerate(zip(*columns.values()), start=1):
        table.addRow(f"group{number}", number, *values)
    stream = io.StringIO()
    table.writeStar(stream, tableName="optics")
    return stream.getvalue()


def relion_set(text, **attributes):
    """A set as RELION's plugin leaves it: the table in its acquisition, columns as attributes of its items."""
    plain, _ = through_scipion(particles(), ALIGN_PROJ)
    images = SetOfParticles(filename="relion.sqlite")
    images.copyInfo(plain)
    images.getAcquisition().opticsGroupInfo.set(text)
    for row, item in enumerate(plain.iterItems()):
        new = item.clone()
        for name, values in attributes.items():
            setattr(new, name, Integer(values[row]) if name.endswith("Group") else Float(values[row]))
        images.append(new)
    images.write()
    images.close()
    reopened = SetOfParticles(filename="relion.sqlite")
    reopened.loadAllProperties()
    return reopened


NUMBERS = [1, 2, 2, 1, 1, 2, 1]
TABLE = dict(
    rlnVoltage=[200.0, 300.0],
    rlnSphericalAberration=[2.7, 2.7],
    rlnImageSize=[4096, 4096],
    rlnImagePixelSize=[0.625, 0.625],
    rlnBeamTiltX=[0.1, -0.3],
    rlnBeamTiltY=[0.2, 0.0],
    rlnMagMat00=[1.0, 1.01],
    rlnMagMat01=[0.0, 0.0],
    rlnMagMat10=[0.0, 0.0],
    rlnMagMat11=[1.0, 0.99],
    rlnOddZernike=["[0.1,-2]", "[]"],
    rlnCtfDataAreCtfPremultiplied=[0, 1],
)


def test_the_optics_groups_of_relions_plugin_are_read(folder):
    """The table is that of micrographs, before the particles were scaled to twice the pixel size."""
    found = convert.particles_from_set(relion_set(optics_text(**TABLE), _rlnOpticsGroup=NUMBERS))
    np.testing.assert_array_equal(found.optics_group, NUMBERS)
    assert found.groups == {
        1: OpticsGroup("group1", 1.25, beam_tilt=(0.1, 0.2), odd_zernike=(0.1, -2)),
        2: OpticsGroup("group2", 1.25, 0, ((1.01, 0), (0, 0.99)), beam_tilt=(-0.3, 0), premultiplied=True),
    }
    np.testing.assert_array_equal(found.voltage, np.where(np.array(NUMBERS) == 1, 200, 300))
    assert (found.cs == 1.4).all(), "the groups agree, and the set's acquisition may have been corrected since"
    assert not found.mixed and found.used_groups()[2].box == 8
    np.testing.assert_allclose(found.shift_x, SHIFTS[:, 0], atol=1e-4)


def test_pixel_sizes_that_differ_between_groups_are_kept_and_shifts_are_in_them(folder):
    text = optics_text(**dict(TABLE, rlnImagePixelSize=[1.25, 1.0]))
    found = convert.particles_from_set(relion_set(text, _rlnOpticsGroup=NUMBERS))
    assert found.mixed and found.sampling_rate == 1.25 and found.groups[2].sampling_rate == 1.0
    factor = np.where(np.array(NUMBERS) == 1, 1.0, 1.25)
    np.testing.assert_allclose(found.shift_x, SHIFTS[:, 0] * factor, atol=1e-4)
    np.testing.assert_allclose(found.shift_y, SHIFTS[:, 1] * factor, atol=1e-4)


def test_optics_groups_that_do_not_fit_the_set_are_refused(folder):
    scaled = optics_text(**dict(TABLE, rlnImagePixelSize=[0.625, 0.5]))
    with pytest.raises(InputFileError, match=r"at the set's 1\.25 A/px, found 0\.5, 0\.625 A/px"):
        convert.particles_from_set(relion_set(scaled, _rlnOpticsGroup=NUMBERS))


def test_a_group_without_optics_is_refused(folder):
    with pytest.raises(InputFileError, match="optics group 3 in data_optics"):
        convert.particles_from_set(relion_set(optics_text(**TABLE), _rlnOpticsGroup=[3] * 7))


def test_beam_tilts_of_particles_make_groups(folder):
    tilts = dict(_rlnBeamTiltX=[0.5] * 3 + [0.0] * 4, _rlnBeamTiltY=[0.25] * 7)
    found = convert.particles_from_set(relion_set("", **tilts))
    np.testing.assert_array_equal(found.optics_group, [1, 1, 1, 2, 2, 2, 2])
    assert {n: group.beam_tilt for n, group in found.groups.items()} == {1: (0.5, 0.25), 2: (0, 0.25)}


def test_numbers_of_optics_groups_need_no_table(folder):
    found = convert.particles_from_set(relion_set("", _rlnOpticsGroup=NUMBERS))
    np.testing.assert_array_equal(found.optics_group, NUMBERS)
    assert found.groups == {}


def test_optics_groups_come_back_from_a_scipion_set_and_emtable_reads_them(folder):
    groups = {
        4: OpticsGroup("krios", 1.25, 8, ((1.01, 0.002), (-0.003, 0.99)), (0.15, -0.2), (0.1, 0.0, -12.5)),
        2: OpticsGroup("arctica 2", 1.25, 8, even_zernike=(1 / 3, -2e-5), premultiplied=True),
    }
    source = particles(optics_group=[4, 4, 2, 4, 2, 2, 2], groups=groups)
    images, found = through_scipion(source, ALIGN_PROJ)
    np.testing.assert_array_equal(found.optics_group, source.optics_group)
    assert found.groups[4] == dataclasses.replace(groups[4], box=0)
    assert found.groups[2].even_zernike == pytest.approx(groups[2].even_zernike) and found.groups[2].premultiplied
    table = Table()
    table.readStar(io.StringIO(images.getAcquisition().opticsGroupInfo.get()), tableName="optics")
    assert {row.rlnOpticsGroup: row.rlnBeamTiltX for row in table} == {4: 0.15, 2: 0.0}


def test_attributes_become_columns_on_demand(folder):
    scores = np.linspace(0.1, 0.7, 7)
    images = relion_set("", _xmipp_maxCC=scores, _rlnLogLikeliContribution=10 * scores)
    assert convert.particles_from_set(images).extra == {}
    wanted = ("maxCC", "rlnMaxValueProbDistribution", "rlnLogLikeliContribution")
    extra = convert.particles_from_set(images, labels=wanted).extra
    assert set(extra) == {"maxCC", "rlnLogLikeliContribution"}
    np.testing.assert_allclose(extra["maxCC"], scores, atol=1e-6)


def movie_set(name="movie.mrcs", **acquisition):
    movies = SetOfMovies(filename=":memory:")
    movies.setSamplingRate(0.9)
    movies.setAcquisition(Acquisition(magnification=1.0, voltage=200.0, **acquisition))
    movies.setFramesRange([1, 20, 1])
    movies._firstDim.set((8, 8, 20))
    movie = Movie(location=name)
    movies.append(movie)
    return movies


def test_movie_settings_hold_what_the_set_knows():
    settings = convert.movie_settings(movie_set(dosePerFrame=1.2, doseInitial=3.0))
    assert settings == dict(sampling_rate=0.9, voltage=200.0, dose_per_frame=1.2, pre_exposure=3.0)
    assert convert.movie_settings(movie_set())["dose_per_frame"] == 0


def test_frames_that_are_no_longer_in_the_file_have_exposed_the_sample():
    movies = movie_set(dosePerFrame=1.0, doseInitial=3.0)
    movies.setFramesRange([3, 20, 1])
    assert convert.movie_settings(movies)["pre_exposure"] == 5.0
    movies.setFramesRange([3, 20, 3])
    assert convert.movie_settings(movies)["pre_exposure"] == 3.0, "they are still there"


def test_the_dose_of_an_eer_frame_is_that_of_all_detector_frames_in_it():
    movies = movie_set("movie.eer", dosePerFrame=0.05)
    movies.setFramesRange([1, 1000, 1])
    settings = convert.movie_settings(movies, eer_frames=40, eer_upsampling=2)
    assert settings["dose_per_frame"] == pytest.approx(25 * 0.05)
    assert settings["sampling_rate"] == pytest.approx(0.45)
