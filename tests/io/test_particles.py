import dataclasses
import inspect

import numpy as np
import pytest

from tests.io.samples import counts
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import particles as particles_module
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, read_particles, write_particles
from xmipp_accel.io.tables import read_blocks, write_blocks
from xmipp_accel.numerics.ctf import ctf_at
from xmipp_accel.numerics.rotations import euler_to_matrix

OPTICS = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
OPTICS += "_rlnImagePixelSize\n2 200 1.4 0.07 1.25\n1 300 2.7 0.1 1.25\n"


@pytest.fixture
def folder(tmp_path):
    write_stack(tmp_path / "a.mrcs", counts((5, 8, 8), seed=1), 1.5, np.float32)
    write_stack(tmp_path / "b.stk", counts((3, 8, 8), seed=2), 0.0)
    return tmp_path


def _star(folder, labels, rows, before="", name="p.star"):
    lines = [" ".join(map(str, row)) for row in rows]
    head = "data_particles\nloop_\n" + "".join(f"_{label}\n" for label in labels.split())
    (folder / name).write_text(before + "\n" + head + "\n".join(lines) + "\n")
    return folder / name


def _full(folder, count=5, **changes):
    rng = np.random.default_rng(3)
    values = {name: rng.uniform(-90, 90, count) for name in ("rot", "psi", "shift_x", "shift_y", "defocus_angle")}
    values.update(tilt=rng.uniform(0, 180, count), weight=rng.uniform(0, 1, count))
    values.update(defocus_u=rng.uniform(5e3, 2e4, count), defocus_v=rng.uniform(5e3, 2e4, count))
    values.update(phase_shift=rng.uniform(0, 90, count), class_id=rng.integers(1, 4, count))
    values.update(half=rng.integers(1, 3, count), item_id=np.arange(count) + 10, enabled=rng.random(count) > 0.3)
    values.update(
        voltage=[300, 200, 300, 200, 200][:count], cs=2.7, amplitude_contrast=0.07, index=np.arange(count)
    )
    values.update(
        index=np.arange(count), extra={"maxCC": rng.random(count)}, sampling_rate=1.5, has_ctf=True, has_pose=True
    )
    return Particles(stack=[str(folder / "a.mrcs")] * count, **{**values, **changes})


def test_defaults_and_single_values_stand_for_all():
    particles = Particles(stack=["a.mrcs"] * 3, index=[2, 1, 0], tilt=5.0, enabled=[True, False, True])
    assert len(particles) == 3
    assert particles.tilt.tolist() == [5, 5, 5] and particles.tilt.dtype == np.float64
    assert particles.weight.tolist() == [1, 1, 1] and particles.item_id.tolist() == [1, 2, 3]
    assert particles.flip.dtype == bool and particles.half.tolist() == [0, 0, 0]
    with pytest.raises(ParameterError, match="3 values of psi"):
        Particles(stack=["a.mrcs"] * 3, psi=[1, 2])
    with pytest.raises(ParameterError, match="3 values of maxCC"):
        Particles(stack=["a.mrcs"] * 3, extra={"maxCC": [1]})


def test_taking_some_takes_every_column(folder):
    particles = _full(folder)
    for indices in ([4, 0, 0], np.array([4, 0, 0])):
        some = particles.take(indices)
        assert len(some) == 3
        for field in dataclasses.fields(particles):
            value, taken = getattr(particles, field.name), getattr(some, field.name)
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(taken, value[[4, 0, 0]], err_msg=field.name)
        np.testing.assert_array_equal(some.extra["maxCC"], particles.extra["maxCC"][[4, 0, 0]])
        assert some.has_pose and some.sampling_rate == 1.5
    assert particles.take(particles.half == 1).half.tolist() == [1] * int((particles.half == 1).sum())


def test_ctf_parameters_are_those_of_some_rows_by_the_names_of_the_formula(folder):
    particles, rows = _full(folder), [3, 0]
    found = particles.ctf_parameters(rows)
    assert list(inspect.signature(ctf_at).parameters) == ["k2", "angle", *found, "xp"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, getattr(particles, name)[rows], err_msg=name)
        assert len(particles.ctf_parameters()[name]) == len(particles)


def test_images_come_from_several_stacks_in_the_order_of_the_particles(folder):
    a, b = (counts((n, 8, 8), seed=seed).astype(np.float32) for n, seed in ((5, 1), (3, 2)))
    stacks = [str(folder / name) for name in ("b.stk", "a.mrcs", "b.stk", "a.mrcs")]
    particles = Particles(stack=stacks, index=[2, 4, 0, 1])
    truth = np.stack([b[2], a[4], b[0], a[1]])
    assert particles.box == 8
    np.testing.assert_array_equal(particles.images(), truth)
    np.testing.assert_array_equal(particles.images([3, 0, 3]), truth[[3, 0, 3]])


@pytest.mark.parametrize("most_files", [64, 1])
def test_many_reads_share_headers_and_files(folder, monkeypatch, most_files):
    opened = []
    open_stack = particles_module.open_stack
    monkeypatch.setattr(particles_module, "open_stack", lambda name: opened.append(name) or open_stack(name))
    monkeypatch.setattr(particles_module, "MOST_FILES", most_files)
    names = [str(folder / "a.mrcs"), str(folder / "b.stk")]
    particles = Particles(stack=[names[0]] * 5 + [names[1]] * 3, index=[4, 1, 2, 3, 0, 2, 0, 1])
    stacks, out = {}, np.empty((8, 8, 8), np.float32)
    for _ in range(2):
        with particles.reading(np.arange(8), stacks) as read:
            read(np.arange(3), out[:3])
            (folder / "a.mrcs").rename(folder / "moved")
            if most_files == 64:  # the file is open
                read(np.arange(3, 8), out[3:])
            else:
                with pytest.raises(InputFileError, match="No such file"):
                    read(np.arange(3, 8), out[3:])
            (folder / "moved").rename(folder / "a.mrcs")
        assert opened == names
    if most_files == 64:
        np.testing.assert_array_equal(out, particles.images())


def test_relion_3_0_has_everything_in_the_rows(folder):
    labels = "rlnImageName rlnVoltage rlnDefocusU rlnDefocusV rlnDefocusAngle rlnSphericalAberration "
    labels += "rlnAmplitudeContrast rlnMagnification rlnDetectorPixelSize rlnAngleRot rlnAngleTilt rlnAnglePsi "
    labels += "rlnOriginX rlnOriginY rlnRandomSubset rlnClassNumber rlnPhaseShift"
    row = ["000003@a.mrcs", 200, 15000, 14000, 30, 1.4, 0.07, 40000, 5, 10, 20, 30, -1.5, 2, 2, 4, 90]
    particles = read_particles(_star(folder, labels, [row, row]))
    assert particles.stack == [str(folder / "a.mrcs")] * 2 and particles.index.tolist() == [2, 2]
    assert particles.sampling_rate == 1.25
    found = {field.name: getattr(particles, field.name) for field in dataclasses.fields(particles)}
    expected = dict(rot=10, tilt=20, psi=30, shift_x=-1.5, shift_y=2, half=2, class_id=4, voltage=200, cs=1.4)
    expected.update(amplitude_contrast=0.07, defocus_u=15000, defocus_v=14000, defocus_angle=30, phase_shift=90)
    for name, value in expected.items():
        assert found[name].tolist() == [value, value], name
    assert particles.has_ctf and particles.has_pose


def test_relion_3_1_has_optics_groups_and_shifts_in_angstroms(folder):
    labels = "rlnImageName rlnOpticsGroup rlnOriginXAngst rlnOriginYAngst rlnAnglePsi"
    rows = [["1@a.mrcs", 1, 2.5, -5, 45], ["2@a.mrcs", 2, 0, 1.25, 90]]
    for text in (OPTICS, ""):
        path = _star(folder, labels, rows, before=text)
        if not text:
            with path.open("a") as file:  # RELION finds the optics behind the particles as well
                file.write("\n" + OPTICS)
        particles = read_particles(path)
        assert particles.voltage.tolist() == [300, 200] and particles.cs.tolist() == [2.7, 1.4]
        assert particles.shift_x.tolist() == [2, 0] and particles.shift_y.tolist() == [-4, 1]
        assert particles.sampling_rate == 1.25 and particles.has_pose and not particles.has_ctf


def test_without_a_pixel_size_the_stack_is_asked(folder):
    particles = read_particles(_star(folder, "rlnImageName", [["1@a.mrcs"]]))
    assert particles.sampling_rate == 1.5 and not particles.has_pose and not particles.has_ctf
    assert read_particles(_star(folder, "rlnImageName", [["1@b.stk"]])).sampling_rate == 0


@pytest.mark.parametrize(
    "labels, row, before, expected",
    [
        ("rlnAnglePsi", [1], "", "rlnImageName"),
        ("rlnImageName rlnTomoName", ["1@a.mrcs", "t"], "", "rlnTomo"),
        ("rlnTomoName rlnTomoSubtomogramBinning", ["t", 1], "", "tomography"),
        ("rlnImageName", ["6@a.mrcs"], "", "an image 6, as p.star says, found 5 images"),
        ("rlnImageName", ["1@none.mrcs"], "", r"the stack none\.mrcs"),
        ("rlnImageName", ["0@a.mrcs"], "", "image names such as"),
        ("rlnImageName", ["x@a.mrcs"], "", "image names such as"),
        ("rlnImageName rlnAnglePsi", ["1@a.mrcs", "abc"], "", "numbers in rlnAnglePsi"),
        ("rlnImageName rlnAnglePsi", ["1@a.mrcs", "nan"], "", "finite numbers in rlnAnglePsi"),
        ("rlnImageName rlnClassNumber", ["1@a.mrcs", 1.5], "", "whole numbers in rlnClassNumber"),
        ("rlnImageName rlnRandomSubset", ["1@a.mrcs", 3], "", "0 or 1 or 2 in rlnRandomSubset"),
        ("rlnImageName rlnOriginXAngst rlnOriginYAngst", ["1@b.stk", 1, 1], "", "a pixel size"),
        ("rlnImageName rlnOriginX", ["1@a.mrcs", 1], "", "rlnOriginX together with rlnOriginY"),
        ("rlnImageName rlnAngleRot rlnAngleTilt", ["1@a.mrcs", 1, 1], "", "together with rlnAnglePsi"),
        ("rlnImageName rlnAngleRot rlnAnglePsi", ["1@a.mrcs", 1, 1], "", "together with rlnAngleTilt"),
        ("rlnImageName rlnDefocusU rlnDefocusV", ["1@a.mrcs", 1, 1], "", "together with rlnDefocusAngle"),
        ("rlnImageName rlnDefocusU rlnDefocusV rlnDefocusAngle", ["1@a.mrcs", 1, 1, 1], "", "rlnVoltage"),
        ("rlnImageName rlnOpticsGroup", ["1@a.mrcs", 1], "", "data_optics"),
        ("rlnImageName rlnOpticsGroup", ["1@a.mrcs", 3], OPTICS, "optics group 3"),
        ("rlnImageName", ["1@a.mrcs"], OPTICS, "rlnOpticsGroup in the particles' table"),
        ("rlnImageName rlnMagnification rlnDetectorPixelSize", ["1@a.mrcs", 0, 5], "", "rlnMagnification above 0"),
        ("rlnImageName rlnPixelSize", ["1@a.mrcs", 0], "", "a pixel size above 0"),
        ("image angleRot", ["1@a.mrcs", 1], "", "together with angleTilt"),
        ("image flip", ["1@a.mrcs", 2], "", "0 or 1 in flip"),
        ("image ctfDefocusU ctfDefocusV ctfDefocusAngle", ["1@a.mrcs", 1, 1, 1], "", "ctfVoltage"),
        ("image ctfSamplingRate", ["1@a.mrcs", 0], "", "ctfSamplingRate above 0"),
        ("angleRot", [1], "", "a column image"),
        ("image enablet", ["1@a.mrcs", 1], "", "the label enabled or one less like it"),
        ("rlnImageName rlnAnglePsy", ["1@a.mrcs", 1], "", "the label rlnAnglePsi or one less like it"),
    ],
)
def test_files_that_do_not_hold_what_is_needed_are_refused(folder, labels, row, before, expected):
    with pytest.raises(InputFileError, match=expected):
        read_particles(_star(folder, labels, [row], before))


def test_different_pixel_sizes_without_optics_groups_are_refused(folder):
    labels, rows = "rlnImageName rlnMagnification rlnDetectorPixelSize", [["1@a.mrcs", 40000, 5]]
    with pytest.raises(InputFileError, match=r"one pixel size for all particles, found 1\.25 to 2\.5 A/px"):
        read_particles(_star(folder, labels, [*rows, ["2@a.mrcs", 20000, 5]]))


def test_a_table_without_rows_is_refused(folder):
    with pytest.raises(InputFileError, match="at least one particle"):
        read_particles(_star(folder, "rlnImageName rlnAnglePsi", []))


def test_stacks_of_different_sizes_are_refused(folder):
    write_stack(folder / "c.mrcs", counts((2, 9, 9)), 1.5, np.float32)
    with pytest.raises(InputFileError, match="8 x 8 px in optics group 1, found images of 9 x 9"):
        read_particles(_star(folder, "image", [["1@a.mrcs"], ["1@c.mrcs"]], name="p.xmd"))
    particles = Particles(stack=[str(folder / "a.mrcs"), str(folder / "c.mrcs")])
    with pytest.raises(InputFileError, match="8 x 8 px, found images of 9 x 9"):
        particles.images()


def test_stacks_that_are_not_square_have_no_box(folder):
    write_stack(folder / "c.mrcs", counts((2, 9, 8)), 1.5, np.float32)
    with pytest.raises(InputFileError, match="square images"):
        _ = Particles(stack=[str(folder / "c.mrcs")]).box


def test_stacks_are_looked_for_beside_here_and_above(folder, monkeypatch, tmp_path_factory):
    job = folder / "Extract" / "job001"
    job.mkdir(parents=True)
    above = read_particles(_star(job, "rlnImageName", [["1@a.mrcs"]]))
    assert above.stack == [str(folder / "a.mrcs")]
    other = tmp_path_factory.mktemp("other")
    path = _star(other, "rlnImageName", [["1@a.mrcs"]])
    with pytest.raises(InputFileError, match="found none"):
        read_particles(path)
    monkeypatch.chdir(folder)
    assert read_particles(path).stack == [str(folder / "a.mrcs")]
    write_stack(other / "a.mrcs", counts((1, 8, 8)), 1.5, np.float32)
    assert read_particles(path).stack == [str(other / "a.mrcs")]


def test_xmipp_files_keep_further_numbers(folder):
    labels = (
        "image itemId enabled angleRot angleTilt anglePsi shiftX shiftY flip ref weight maxCC comment ctfVoltage "
    )
    labels += (
        "ctfDefocusU ctfDefocusV ctfDefocusAngle ctfSphericalAberration ctfQ0 ctfVPPphaseshift ctfSamplingRate"
    )
    rows = [["4@a.mrcs", 7, -1, 10, 20, 30, -1.5, 2, 1, 4, 0.5, 0.25, "x", 300, 1e4, 9e3, 12, 2.7, -0.1, 60, 1.25]]
    particles = read_particles(_star(folder, labels, rows, name="p.xmd"))
    expected = dict(index=3, item_id=7, enabled=False, rot=10, tilt=20, psi=30, shift_x=-1.5, shift_y=2, flip=True)
    expected.update(class_id=4, weight=0.5, voltage=300, defocus_u=1e4, defocus_v=9e3, defocus_angle=12, cs=2.7)
    expected.update(amplitude_contrast=0.1, phase_shift=60)
    for name, value in expected.items():
        assert getattr(particles, name).tolist() == [value], name
    assert particles.sampling_rate == 1.25
    assert list(particles.extra) == ["maxCC"] and particles.extra["maxCC"].tolist() == [0.25]


LOST = {".star": {"item_id", "enabled", "flip"}, ".xmd": set()}


@pytest.mark.parametrize("suffix", LOST)
def test_particles_survive_the_round_trip(folder, suffix):
    particles = _full(folder)
    write_particles(folder / f"out{suffix}", particles)
    read = read_particles(folder / f"out{suffix}")
    assert read.stack == particles.stack
    for field in dataclasses.fields(particles):
        if field.name in {"stack", "extra", "groups", "optics_group", "copies"} | LOST[suffix]:
            continue
        expected, found = getattr(particles, field.name), getattr(read, field.name)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-9, err_msg=field.name)
    written = read_blocks(folder / f"out{suffix}")["particles"]
    np.testing.assert_allclose(written["maxCC"], particles.extra["maxCC"], rtol=1e-10)
    np.testing.assert_allclose(read.extra["maxCC"], particles.extra["maxCC"], rtol=1e-10)


def test_relions_scores_are_kept_and_its_other_columns_are_not(folder):
    labels = "rlnImageName rlnMaxValueProbDistribution rlnAutopickFigureOfMerit"
    read = read_particles(_star(folder, labels, [["1@a.mrcs", 0.25, 3], ["2@a.mrcs", 0.75, 4]]))
    assert {label: values.tolist() for label, values in read.extra.items()} == {
        "rlnMaxValueProbDistribution": [0.25, 0.75]
    }


@pytest.mark.parametrize("suffix", LOST)
def test_what_is_not_known_is_not_written(folder, suffix):
    particles = Particles(stack=[str(folder / "a.mrcs")] * 2, index=[0, 1])
    write_particles(folder / f"out{suffix}", particles)
    read = read_particles(folder / f"out{suffix}")
    assert not read.has_pose and not read.has_ctf
    text = (folder / f"out{suffix}").read_text()
    for label in ("ngleRot", "efocus", "ubset", "ClassNumber", "ref", "PixelSize", "SamplingRate"):
        assert label not in text, label


def test_paths_are_written_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_particles("out.star", Particles(stack=["a.mrcs"], index=[1]))
    assert read_blocks("out.star")["particles"]["rlnImageName"] == [f"000002@{folder}/a.mrcs"]


def test_groups_of_equal_optics_are_written_once(folder):
    write_particles(folder / "out.star", _full(folder))
    blocks = read_blocks(folder / "out.star")
    assert blocks["optics"]["rlnVoltage"].tolist() == [200, 300]
    assert blocks["particles"]["rlnOpticsGroup"].tolist() == [2, 1, 2, 1, 1]
    assert blocks["optics"]["rlnImageSize"].tolist() == [8, 8]


def test_mirrored_images_are_written_for_relion_as_projections_from_the_other_side(folder):
    """A mirrored projection is the projection along the opposite direction: M A, M = diag(-1, 1, -1)."""
    particles = _full(folder, flip=[True, False, True, False, True])
    write_particles(folder / "out.star", particles)
    read = read_particles(folder / "out.star")
    assert not read.flip.any()
    before = euler_to_matrix(particles.rot, particles.tilt, particles.psi)
    after = euler_to_matrix(read.rot, read.tilt, read.psi)
    mirror = np.where(particles.flip[:, None], [-1.0, 1.0, -1.0], 1.0)
    np.testing.assert_allclose(after, mirror[:, :, None] * before, atol=1e-9)
    np.testing.assert_allclose(read.shift_x, np.where(particles.flip, -1, 1) * particles.shift_x, atol=1e-9)
    np.testing.assert_allclose(read.shift_y, particles.shift_y, atol=1e-9)


def test_a_stack_that_is_cut_after_reading_is_an_input_file_error(folder):
    particles = read_particles(_star(folder, "image", [["5@a.mrcs"]], name="p.xmd"))
    raw = (folder / "a.mrcs").read_bytes()
    (folder / "a.mrcs").write_bytes(raw[:-10])
    with pytest.raises(InputFileError, match="bytes"):
        particles.images()


def test_the_names_of_images_may_look_like_numbers(folder):
    write_blocks(folder / "p.xmd", {"particles": {"image": ["7"]}})
    with pytest.raises(InputFileError, match="the stack 7"):
        read_particles(folder / "p.xmd")
