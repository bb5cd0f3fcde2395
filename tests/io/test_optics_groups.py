"""Optics groups: RELION's columns read and written, sets of mixed pixel and box sizes, and who refuses them."""

import dataclasses

import numpy as np
import pytest

from tests.io.samples import counts
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.initial_volume.executor import ReconstructSignificantExecutor
from xmipp_accel.initial_volume.parameters import ReconstructSignificantParameters
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.optics_groups import OpticsGroup, join_groups
from xmipp_accel.io.particles import Particles, read_particles, write_particles
from xmipp_accel.io.tables import read_blocks
from xmipp_accel.particle_alignment.classify2d_executor import Classify2DExecutor
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.classify2d_state import RunState, load_state, save_state, with_earlier
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.gallery import open_references
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters

GROUPS = {
    4: OpticsGroup(
        name="krios",
        sampling_rate=1.2,
        box=10,
        magnification=((1.01, 0.002), (-0.003, 0.99)),
        beam_tilt=(0.15, -0.2),
        odd_zernike=(0.1, 0.0, -12.5),
        premultiplied=True,
    ),
    2: OpticsGroup(name="arctica 2", sampling_rate=1.5, box=8, even_zernike=(1 / 3, -2e-5)),
}


@pytest.fixture
def folder(tmp_path):
    write_stack(tmp_path / "a.mrcs", counts((4, 8, 8), seed=1), 1.5, np.float32)
    write_stack(tmp_path / "b.mrcs", counts((4, 10, 10), seed=2), 1.2, np.float32)
    return tmp_path


def _mixed(folder, groups=GROUPS, **values):
    """Four particles, the first and the last of group 4 (10 px of 1.2 A), the others of 2 (8 px of 1.5 A)."""
    stacks = [str(folder / f"{name}.mrcs") for name in "baab"]
    pose = dict(shift_x=[1.0, 2.0, 3.0, 4.0], shift_y=0.5, rot=10.0, has_pose=True)
    values = {**pose, **dict(voltage=[300, 200, 200, 300], index=[0, 1, 2, 3], has_ctf=True), **values}
    return Particles(stacks, optics_group=[4, 2, 2, 4], groups=groups, **values)


def _star(folder, optics_labels, optics_rows, labels="rlnImageName rlnOpticsGroup", rows=("1@a.mrcs 1",)):
    text = ""
    for name, columns, lines in (("optics", optics_labels, optics_rows), ("particles", labels, rows)):
        head = "".join(f"_{label}\n" for label in columns.split())
        text += f"data_{name}\nloop_\n{head}" + "\n".join(lines) + "\n\n" if columns else ""
    (folder / "p.star").write_text(text)
    return folder / "p.star"


def test_mixed_groups_survive_the_round_trip(folder):
    particles = _mixed(folder)
    write_particles(folder / "out.star", particles)
    read = read_particles(folder / "out.star")
    assert read.optics_group.tolist() == [4, 2, 2, 4]
    for number, group in GROUPS.items():
        found = read.groups[number]
        np.testing.assert_allclose(found.even_zernike, group.even_zernike, rtol=1e-11)
        assert dataclasses.replace(found, even_zernike=group.even_zernike) == group
    np.testing.assert_allclose(read.shift_x, particles.shift_x, rtol=1e-11)
    np.testing.assert_array_equal(read.voltage, particles.voltage)
    # Shifts are px of the particle's own image and A in the file.
    written = read_blocks(folder / "out.star")
    np.testing.assert_allclose(written["particles"]["rlnOriginXAngst"], [1.2, 3.0, 4.5, 4.8])
    assert written["optics"]["rlnOddZernike"] == ["[]", "[0.1,0,-12.5]"]
    assert written["optics"]["rlnOpticsGroupName"] == ["arctica 2", "krios"]


def test_columns_that_no_group_needs_are_not_written(folder):
    plain = {number: OpticsGroup("", group.sampling_rate, group.box) for number, group in GROUPS.items()}
    write_particles(folder / "out.star", _mixed(folder, plain))
    text = (folder / "out.star").read_text()
    for label in ("MagMat", "BeamTilt", "Zernike", "Premultiplied"):
        assert label not in text, label


def test_a_group_of_two_voltages_is_written_as_two(folder):
    write_particles(folder / "out.star", _mixed(folder, voltage=[300, 200, 200, 100]))
    read = read_particles(folder / "out.star")
    assert read.optics_group.tolist() == [5, 2, 2, 4] and read.voltage.tolist() == [300, 200, 200, 100]
    assert read.groups[4] == GROUPS[4]
    assert read.groups[5] == dataclasses.replace(GROUPS[4], name="opticsGroup5")


def test_relions_own_columns_are_read(folder):
    labels = "rlnOpticsGroupName rlnOpticsGroup rlnImagePixelSize rlnImageSize rlnBeamTiltX rlnBeamTiltY "
    labels += "rlnMagMat00 rlnMagMat01 rlnMagMat10 rlnMagMat11 rlnEvenZernike rlnCtfDataAreCtfPremultiplied"
    rows = ["og 7 1.5 8 0.1 -0.2 1.01 0.02 0.03 0.98 [0.5,-1e-3] 1", "other 1 3 64 0 0 1 0 0 1 [] 0"]
    read = read_particles(_star(folder, labels, rows, rows=["1@a.mrcs 7", "2@a.mrcs 7"]))
    magnification = ((1.01, 0.02), (0.03, 0.98))
    expected = OpticsGroup("og", 1.5, 8, magnification, (0.1, -0.2), (), (0.5, -1e-3), premultiplied=True)
    assert read.groups == {7: expected} and read.sampling_rate == 1.5 and not read.mixed


def test_beam_tilts_of_relion_3_0_make_groups(folder):
    labels = "rlnImageName rlnMagnification rlnDetectorPixelSize rlnBeamTiltX rlnBeamTiltY"
    rows = ["1@a.mrcs 40000 5 0.3 0", "2@a.mrcs 40000 5 -0.1 0.2", "3@a.mrcs 40000 5 0.3 0"]
    read = read_particles(_star(folder, "", (), labels, rows))
    assert read.optics_group.tolist() == [1, 2, 1] and read.sampling_rate == 1.25
    assert [read.groups[number].beam_tilt for number in (1, 2)] == [(0.3, 0.0), (-0.1, 0.2)]


@pytest.mark.parametrize(
    "labels, row, expected",
    [
        ("rlnOddZernike", "0.1", r"finite numbers such as \[0.1,-2\] in rlnOddZernike, found '0.1'"),
        ("rlnOddZernike", "[0.1,x]", r"in rlnOddZernike, found '\[0.1,x\]'"),
        ("rlnEvenZernike", "[0.1,nan]", r"in rlnEvenZernike, found '\[0.1,nan\]'"),
        ("rlnEvenZernike", "[0.1,,2]", r"in rlnEvenZernike, found '\[0.1,,2\]'"),
        ("rlnEvenZernike", "[0.1,2", r"in rlnEvenZernike, found '\[0.1,2'"),
        ("rlnBeamTiltX", "0.1", "rlnBeamTiltX together with rlnBeamTiltY"),
        ("rlnMagMat00 rlnMagMat01 rlnMagMat10", "1 0 0", "together with rlnMagMat11"),
        (
            "rlnMagMat00 rlnMagMat01 rlnMagMat10 rlnMagMat11",
            "1 2 1 2",
            r"an invertible matrix in rlnMagMat00 to rlnMagMat11, found \[1.0, 2.0, 1.0, 2.0\] in row 1 of",
        ),
        ("rlnCtfDataAreCtfPremultiplied", "2", "0 or 1 in rlnCtfDataAreCtfPremultiplied"),
        ("rlnImageSize", "12", "expected images of 12 x 12 px in optics group 1, found images of 8 x 8 px"),
        ("rlnImagePixelSize", "-1", "a pixel size above 0"),
        ("rlnOddZernikes", "[1]", None),
        ("rlnEvenZernikf", "[1]", "the label rlnEvenZernike or one less like it"),
    ],
)
def test_bad_tables_are_refused(folder, labels, row, expected):
    path = _star(folder, f"rlnOpticsGroup {labels}", [f"1 {row}"])
    if expected is None:  # not a label of RELION
        assert read_particles(path).groups[1] == OpticsGroup("opticsGroup1")
        return
    with pytest.raises(InputFileError, match=expected):
        read_particles(path)


def test_one_group_has_one_box(folder):
    path = _star(folder, "rlnOpticsGroup", ["1"], rows=["1@a.mrcs 1", "1@b.mrcs 1"])
    with pytest.raises(InputFileError, match="8 x 8 px in optics group 1, found images of 10 x 10 px"):
        read_particles(path)


def test_images_of_one_group_are_read_whatever_their_box(folder):
    unknown = {number: dataclasses.replace(group, box=0) for number, group in GROUPS.items()}
    for groups in (GROUPS, unknown):
        particles = _mixed(folder, groups)
        assert particles.mixed and particles.box == 10 and particles.sampling_rate == 1.2
        assert particles.sampling_rates.tolist() == [1.2, 1.5, 1.5, 1.2]
        assert {number: group.box for number, group in particles.used_groups().items()} == {2: 8, 4: 10}
        a, b = counts((4, 8, 8), seed=1), counts((4, 10, 10), seed=2)
        np.testing.assert_array_equal(particles.images([2, 1]), a[[2, 1]])
        np.testing.assert_array_equal(particles.images([0, 3]), b[[0, 3]])
        with pytest.raises(
            InputFileError, match=r"a\.mrcs: expected images of 10 x 10 px, found images of 8 x 8 px"
        ):
            particles.images()
        # A part of one group is like any other set.
        part = particles.take(particles.optics_group == 2)
        assert not part.mixed and part.sampling_rate == 1.5 and part.box == 8
        part.require_uniform()


def test_nearly_equal_pixel_sizes_count_as_one(folder):
    for rate, box, mixed in ((1.5014, 8, False), (1.502, 8, True), (1.5, 10, True)):
        groups = {4: OpticsGroup("a", rate, box), 2: OpticsGroup("b", 1.5, 8)}
        particles = Particles([str(folder / "a.mrcs")] * 2, optics_group=[2, 4], groups=groups)
        assert particles.mixed == mixed


def test_particles_without_groups_are_one(folder):
    particles = Particles([str(folder / "a.mrcs")] * 2, index=[0, 1], sampling_rate=1.5)
    assert not particles.mixed and particles.sampling_rates.tolist() == [1.5, 1.5]
    assert particles.used_groups() == {1: OpticsGroup("opticsGroup1", 1.5, 8)}
    with pytest.raises(ParameterError, match=r"expected optics groups \[2, 4\], found 1"):
        dataclasses.replace(particles, groups=GROUPS)


SIZES = "expected one pixel size and one box in all optics groups, found 8 px of 1.5 A, 10 px of 1.2 A"


@pytest.mark.parametrize(
    "use",
    [
        lambda particles, folder: AlignSignificantExecutor(AlignSignificantParameters()).align(
            particles, folder / "a.mrcs", folder / "out"
        ),
        lambda particles, folder: Classify2DExecutor(Classify2DParameters(number_of_classes=2)).classify(
            particles, folder / "out"
        ),
        lambda particles, folder: ReconstructSignificantExecutor(ReconstructSignificantParameters()).reconstruct(
            particles, folder / "out"
        ),
        lambda particles, folder: open_references(particles),
        lambda particles, folder: write_particles(folder / "out.xmd", particles),
    ],
    ids=["align", "classify", "initial volume", "references", "xmd"],
)
def test_those_who_cannot_mix_sizes_refuse_by_name(folder, use):
    with pytest.raises(ParameterError, match=SIZES):
        use(_mixed(folder), folder)


def test_groups_that_are_joined_keep_apart():
    one, two, three = (OpticsGroup(name, 1.5, 8) for name in ("one", "two", "three"))
    assert join_groups({1: one}, {1: one, 2: two}) == ({1: one, 2: two}, {1: 1, 2: 2})
    assert join_groups({1: one, 5: two}, {1: two, 5: three}) == (
        {1: one, 5: two, 6: two, 7: three},
        {1: 6, 5: 7},
    )


def test_a_classification_that_goes_on_keeps_the_groups_of_earlier_particles(folder):
    same = dict(sampling_rate=1.5, box=8)
    kept = Particles(
        [str(folder / "a.mrcs")] * 2,
        [0, 1],
        optics_group=3,
        groups={3: OpticsGroup("x", beam_tilt=(1, 0), **same)},
    )
    save_state(folder / "state.npz", RunState({}, kept=kept))
    found = load_state(folder / "state.npz").kept
    assert found.groups == kept.groups and found.optics_group.tolist() == [3, 3]
    more = Particles([str(folder / "a.mrcs")], [2], optics_group=3, groups={3: OpticsGroup("y", **same)})
    both = with_earlier(found, more)
    assert both.optics_group.tolist() == [3, 3, 4] and both.groups[4].name == "y"
    assert both.groups[3].beam_tilt == (1.0, 0.0)
