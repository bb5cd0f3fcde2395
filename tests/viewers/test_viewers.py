"""The viewers draw what the outputs hold; no window is opened."""

import os
import types

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pwem.constants import ALIGN_2D, ALIGN_NONE, ALIGN_PROJ
from pwem.objects import (
    Micrograph,
    Movie,
    MovieAlignment,
    SetOfAverages,
    SetOfClasses2D,
    SetOfMicrographs,
    SetOfMovies,
    SetOfParticles,
)
from pyworkflow.object import Float, String

from xmipp_accel import convert, protocols, viewers
from xmipp_accel.io.images import write_image, write_stack
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.publish import write_json
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
from xmipp_accel.movie_alignment.result import MovieAlignmentResult
from xmipp_accel.reconstruction.coverage import hemisphere
from xmipp_accel.viewers.base import FigureView

pytestmark = pytest.mark.scipion
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extra").mkdir()
    return tmp_path


def opened(viewer_class, protocol, folder):
    """The viewer as the form of Scipion opens it, less the window."""
    import pyworkflow
    from pwem import Domain

    pyworkflow.Config.setDomain("pwem")
    Domain.getPlugins()
    protocol.setWorkingDir(str(folder))
    viewer = viewer_class(project=types.SimpleNamespace(getTmpPath=lambda *paths: str(folder)))
    viewer.setProtocol(protocol)
    return viewer


def drawn(figure):
    """Check that a figure can be drawn, and return it."""
    assert isinstance(figure, Figure), figure
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.fixture
def movies(folder):
    protocol = protocols.XmippAccelProtMovieAlignment()
    shifts = np.array([[0.0, 0.0], [1.0, -2.0], [1.5, -3.0]])
    result = MovieAlignmentResult(
        name="movie",
        movie="movie.mrc",
        status="global",
        reason="Too few frames.",
        n_frames=3,
        first_frame=0,
        shape=(32, 48),
        sampling_rate=1.0,
        output_sampling_rate=1.0,
        reference_frame=0,
        shifts=shifts,
        shift_errors=0.1 * np.ones_like(shifts),
        control_points=np.zeros((0, 0, 0, 2)),
        quality={},
        outputs={},
        timings={},
        parameters=MovieAlignmentParameters().to_dict(),
        exposures=np.zeros(3),
        group_sizes=(1, 1, 1),
    )
    write_json(folder / "extra/movie.json", result.to_json())
    output = SetOfMovies(filename="movies.sqlite")
    output._firstDim.set((48, 32, 3))
    for number, early in ((1, 2.0), (2, 5.0)):
        movie = Movie(location="movie.mrc")
        movie.setObjId(number)
        movie.setAlignment(MovieAlignment(first=1, last=3, xshifts=[0, -2, -3], yshifts=[0, 1, 1.5]))
        movie._xmipp_accel_result = String("extra/movie.json")
        movie._rlnAccumMotionEarly, movie._rlnAccumMotionLate = Float(early), Float(1.0)
        output.append(movie)
    output.write()
    protocol.outputMovies = output
    write_image("mic.mrc", RNG.normal(size=(32, 48)).astype(np.float32), 1.0)
    micrographs = SetOfMicrographs(filename="mics.sqlite")
    micrograph = Micrograph(location="mic.mrc")
    micrograph.setObjId(1)
    micrograph.setMicName("movie")
    micrographs._firstDim.set((48, 32, 1))
    micrographs.append(micrograph)
    micrographs.write()
    protocol.outputMicrographs = micrographs
    protocol._outputs.set(["outputMovies", "outputMicrographs"])
    protocol._useOutputList.set(True)
    return opened(viewers.XmippAccelMovieAlignmentViewer, protocol, folder), result


def test_the_trace_of_a_movie_is_that_of_its_result(movies):
    viewer, result = movies
    axes = drawn(viewer.figure_trace()).axes
    np.testing.assert_allclose(axes[0].lines[0].get_xydata(), result.shifts[:, ::-1])


def test_a_movie_without_local_motion_says_why(movies):
    viewer, _ = movies
    assert "Too few frames" in viewer.figure_local()


def test_local_motion_is_drawn_over_the_micrograph(movies, folder):
    viewer, result = movies
    values = result.to_json()
    values["control_points"] = RNG.normal(size=(4, 4, 4, 2)).tolist()
    write_json(folder / "extra/movie.json", values)
    axes = drawn(viewer.figure_local()).axes[0]
    assert len(axes.lines) == 2 * 81 and axes.get_xlim() == (0, 48)


def test_the_micrograph_of_the_chosen_movie_is_shown(movies):
    viewer, _ = movies
    assert drawn(viewer.figure_micrograph()).axes[0].images[0].get_array().shape == (32, 48)
    viewer.movieId.set(2)
    assert "no micrograph of movie 2" in viewer.figure_micrograph()
    viewer.movieId.set(7)
    assert "no movie 7" in viewer.figure_trace()


def test_the_spectra_before_and_after_share_a_picture(movies, folder):
    """The left half is without alignment; each half has its own level here."""
    viewer, result = movies
    assert "not computed" in viewer.figure_spectra()
    values = result.to_json()
    values["outputs"] = {"power_spectrum": "a.mrc", "power_spectrum_initial": "b.mrc"}
    write_json(folder / "extra/movie.json", values)
    write_image(folder / "extra/a.mrc", np.full((16, 16), np.exp(2), np.float32), 1.0)
    write_image(folder / "extra/b.mrc", np.full((16, 16), np.exp(1), np.float32), 1.0)
    shown = drawn(viewer.figure_spectra()).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, np.repeat([[1.0] * 8 + [2.0] * 8], 16, axis=0), atol=1e-6)


def test_the_motion_of_all_movies_is_early_plus_late(movies):
    viewer, _ = movies
    total, early = drawn(viewer.figure_motion()).axes[0].lines[:2]
    np.testing.assert_allclose(total.get_ydata(), [3, 6])
    np.testing.assert_allclose(early.get_ydata(), [2, 5])


def test_failed_movies_are_listed_with_their_reasons(movies, folder):
    viewer, _ = movies
    assert viewer.figure_failures() == "No movie failed."
    write_json(folder / "extra/failed_movies.json", {"3": {"movie": "bad.mrc", "reason": "cut short"}})
    assert viewer.figure_failures() == "bad.mrc: cut short"


def test_every_picture_and_output_has_an_action_that_gives_views(movies):
    viewer, _ = movies
    actions = viewer._getVisualizeDict()
    assert set(actions) == {name for name, _ in viewer.PICTURES} | {"output"}
    (view,) = actions["trace"]("trace")
    assert isinstance(view, FigureView) and "Frame shifts" in view.title
    (message,) = actions["local"]("local")
    assert "Too few frames" in message.getMessage()
    assert viewer.getClassLabel() == "xmipp_accel - movie alignment viewer"
    assert viewer._output_names == ["outputMovies", "outputMicrographs"]


def particle_set(kind, name, alignment, **columns):
    write_stack("p.mrcs", RNG.normal(size=(12, 8, 8)).astype(np.float32), 2.0)
    images = kind(filename=name)
    source = Particles(stack=["p.mrcs"] * 12, index=np.arange(12), sampling_rate=2.0, has_pose=True, **columns)
    convert.fill_set(images, source, alignment)
    images.write()
    return images


def aligned_set(alignment):
    angles = dict(tilt=np.linspace(5, 175, 12), rot=np.linspace(0, 300, 12)) if alignment == ALIGN_PROJ else {}
    images = particle_set(SetOfParticles, f"{alignment}.sqlite", None, **angles)
    scored = SetOfParticles(filename=f"scored{alignment}.sqlite")
    scored.copyInfo(images)
    scored.setAlignment(alignment)
    rows = Particles(stack=["p.mrcs"] * 12, shift_x=np.arange(12.0), has_pose=True, **angles)
    matrices = convert.transforms(rows, alignment)
    from pwem.objects import Transform

    for item, matrix in zip(images.iterItems(), matrices):
        item = item.clone()
        item.setTransform(Transform(matrix))
        convert.set_attributes(item, max_cc=0.1 * item.getObjId())
        scored.append(item)
    scored.write()
    return scored


def test_directions_scores_and_shifts_of_aligned_particles_are_drawn(folder):
    protocol = protocols.XmippAccelProtAlignSignificant()
    protocol.outputParticles = aligned_set(ALIGN_PROJ)
    viewer = opened(viewers.XmippAccelAlignSignificantViewer, protocol, folder)
    upper, lower = (axes.get_title() for axes in drawn(viewer.figure_directions()).axes)
    assert "6 particles" in upper and "6 particles" in lower
    histogram, plane = drawn(viewer.figure_scores()).axes
    assert sum(patch.get_height() for patch in histogram.patches) == 12
    np.testing.assert_allclose(np.sort(plane.lines[0].get_xdata()), np.arange(12), atol=1e-4)
    assert "not updated" in viewer.figure_references()
    assert "No classes" in viewer.figure_classes()


def test_particles_on_2d_references_have_no_directions(folder):
    protocol = protocols.XmippAccelProtAlignSignificant()
    protocol.outputParticles = aligned_set(ALIGN_2D)
    viewer = opened(viewers.XmippAccelAlignSignificantViewer, protocol, folder)
    assert "2D references" in viewer.figure_directions()
    drawn(viewer.figure_scores())


def two_classes(images):
    """Classes of three particles and of the others, and the images that they show."""
    averages_stack = RNG.normal(size=(2, 8, 8)).astype(np.float32)
    write_stack("classes.mrcs", averages_stack, 2.0)
    # Scipion keeps connections by name, also those of other tests' folders.
    classes = SetOfClasses2D(filename=os.path.abspath("classes.sqlite"))
    classes._imagesPointer.set(images)
    classes.classifyItems(
        updateItemCallback=lambda item, _: item.setClassId(1 if item.getObjId() < 4 else 2),
        updateClassCallback=lambda group: group.getRepresentative().setLocation(group.getObjId(), "classes.mrcs"),
    )
    return classes, averages_stack


def test_classes_of_references_stand_in_the_order_of_their_sizes(folder):
    protocol = protocols.XmippAccelProtAlignSignificant()
    protocol.outputClasses, shown = two_classes(particle_set(SetOfParticles, "particles.sqlite", None))
    viewer = opened(viewers.XmippAccelAlignSignificantViewer, protocol, folder)
    cells = drawn(viewer.figure_classes()).axes
    assert [cell.get_title() for cell in cells[:2]] == ["2: 9", "1: 3"]
    np.testing.assert_allclose(cells[0].images[0].get_array(), shown[1])


def test_class_averages_stand_in_the_order_of_their_sizes(folder):
    protocol = protocols.XmippAccelProtClassify2D()
    images = particle_set(SetOfParticles, "particles.sqlite", None)
    protocol.inputParticles.set(images)
    classes, averages_stack = two_classes(images)
    averages = SetOfAverages(filename="averages.sqlite")
    averages.setSamplingRate(2.0)
    averages.setAlignment(ALIGN_NONE)
    convert.fill_averages(averages, Particles(stack=["classes.mrcs"] * 2, index=np.arange(2), sampling_rate=2.0))
    averages.write()
    protocol.outputClasses, protocol.outputAverages = classes, averages
    viewer = opened(viewers.XmippAccelClassify2DViewer, protocol, folder)
    (folder / "extra/instalment_0001").mkdir(parents=True)
    write_json(
        folder / "extra/instalment_0001/classes.json", {"resolutions": [20.0, 0.0], "objective": [1.0, 2.0, 2.5]}
    )
    cells = drawn(viewer.figure_montage()).axes
    assert [cell.get_title() for cell in cells[:2]] == ["2: 9", "1: 3, 20 A"]
    np.testing.assert_allclose(cells[0].images[0].get_array(), averages_stack[1])
    np.testing.assert_allclose(drawn(viewer.figure_convergence()).axes[0].lines[0].get_ydata(), [1, 2, 2.5])
    members = drawn(viewer.figure_particles())
    assert [cell.get_title() for cell in members.axes if cell.get_title()] == ["1", "2", "3"]
    viewer.classId.set(9)
    assert "no class 9" in viewer.figure_particles()


@pytest.fixture
def reconstruction(folder):
    protocol = protocols.XmippAccelProtReconstructFourier()
    volume = np.zeros((16, 16, 16), np.float32)
    volume[5:11, 5:11, 5:11] = 1
    write_volume("extra/volume.mrc", volume, 3.0)
    protocol.inputParticles.set(particle_set(SetOfParticles, "p.sqlite", ALIGN_PROJ, tilt=30.0))
    write_json(
        folder / "extra/volume.json",
        dict(
            volume="volume.mrc",
            resolution=5.0,
            frequencies=[0.0, 0.1, 0.2],
            fsc_corrected=[1, 0.85, 0.15],
            fsc_masked=[1, 0.9, 0.2],
            fsc_unmasked=[1, 0.8, 0.1],
            fsc_randomised=[1, 0.9, 0.05],
            error_map="",
            growth={},
        ),
    )
    return opened(viewers.XmippAccelReconstructFourierViewer, protocol, folder), volume


def test_the_chosen_slice_of_the_map_is_shown(reconstruction):
    viewer, volume = reconstruction
    central = drawn(viewer.figure_slices()).axes
    np.testing.assert_array_equal(central[0].images[0].get_array(), volume[8])
    viewer.sliceNumber.set(2)
    assert not np.any(drawn(viewer.figure_slices()).axes[0].images[0].get_array())
    viewer.sliceNumber.set(99)
    assert "16 slices" in viewer.figure_slices()


def test_the_surface_lies_where_the_map_is(reconstruction):
    viewer, _ = reconstruction
    (polygons,) = drawn(viewer.figure_surface()).axes[0].collections
    corners = polygons._vec[:3].T
    assert corners.min() > 12 and corners.max() < 33, "voxels 5 to 10 of 3 A"
    viewer.surfaceLevel.set(100.0)
    assert "100 standard deviations" in viewer.figure_surface()


def test_the_fsc_and_the_directions_are_drawn(reconstruction, folder):
    viewer, _ = reconstruction
    axes = drawn(viewer.figure_fsc()).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines["corrected"], [1, 0.85, 0.15])
    np.testing.assert_allclose(lines["masked"], [1, 0.9, 0.2])
    np.testing.assert_allclose(lines["unmasked"], [1, 0.8, 0.1])
    np.testing.assert_allclose(lines["randomised"], [1, 0.9, 0.05])
    assert [0.143, 0.143] in [list(line.get_ydata()) for line in axes.lines]
    (mark,) = (line.get_xydata() for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_allclose(mark, [[0.2, 0.143]])
    assert [text.get_text() for text in axes.texts] == ["5.00 A at 0.143"]
    assert "12 particles" in drawn(viewer.figure_directions()).axes[0].get_title()
    write_json(folder / "extra/volume.json", {"frequencies": []})
    assert "no half maps" in viewer.figure_fsc()


def test_coverage_is_drawn_by_direction_and_shell(reconstruction, folder):
    viewer, _ = reconstruction
    directions = hemisphere()
    coverage = dict(
        frequencies=[0.0, 0.1, 0.2],
        mean=[40.0, 20.0, 10.0],
        minimum=[40.0, 5.0, 0.0],
        empty=[0.0, 0.0, 0.25],
        directions=np.where(directions[:, 2] > 0.9, 0.0, 1.1).tolist(),
        scf=0.9,
        empty_directions=0.1,
        weakest=[0.0, 0.0],
    )
    write_json(folder / "extra/volume.json", {"coverage": coverage})
    sphere, shells, *others = drawn(viewer.figure_coverage()).axes
    places = sphere.collections[0].get_offsets()
    empty = sphere.collections[0].get_array() == 0
    radius = np.hypot(*np.asarray(places).T)
    assert radius.max() <= 1.001 and radius[empty].max() < radius[~empty].min(), "the cone lies in the middle"
    assert "SCF 0.90, 10.0% of the directions empty" in sphere.get_title()
    np.testing.assert_allclose(shells.lines[0].get_ydata(), [20, 10])
    assert any(np.allclose(line.get_ydata(), [0, 0.25]) for axes in others for line in axes.lines)


def test_errors_and_growth_are_drawn_where_there_are_groups(reconstruction, folder):
    viewer, _ = reconstruction
    assert "no groups" in viewer.figure_errors() and "no groups" in viewer.figure_growth()
    errors = RNG.normal(size=(8, 8, 8)).astype(np.float32)
    write_volume(folder / "extra/volume_error.mrc", errors, 3.0)
    growth = dict(particles=[100, 200, 400], resolutions=[9.0, 8.0, 7.0], b_factor=300.0)
    result = dict(error_map="volume_error.mrc", relative_error=[0.1] * 5, box=8, sampling_rate=3.0, growth=growth)
    write_json(folder / "extra/volume.json", result)
    picture, shells = drawn(viewer.figure_errors()).axes[:2]
    np.testing.assert_allclose(picture.images[0].get_array(), errors[4])
    assert shells.lines[0].get_xdata()[-1] == pytest.approx(1 / 6)
    points, line = drawn(viewer.figure_growth()).axes[0].lines
    np.testing.assert_allclose(points.get_ydata(), 1 / np.array([9.0, 8.0, 7.0]) ** 2)
    assert np.ptp(line.get_ydata()) == pytest.approx(2 / 300 * np.log(4))


def test_the_starts_of_an_initial_volume_and_its_directions_are_drawn(folder):
    from xmipp_accel.io.particles import write_particles

    protocol = protocols.XmippAccelProtReconstructSignificant()
    viewer = opened(viewers.XmippAccelReconstructSignificantViewer, protocol, folder)
    starts = [dict(iterations=[dict(mean_cc=value) for value in curve]) for curve in ([0.1, 0.2], [0.1, 0.4])]
    write_json(
        folder / "extra/initial_volume.json",
        {"starts": starts, "best_start": 1, "iterations": [{"mean_cc": 0.3}, {"mean_cc": 0.35}]},
    )
    lines = drawn(viewer.figure_convergence()).axes[0].lines
    np.testing.assert_allclose(lines[2].get_xdata(), [3, 4])
    np.testing.assert_allclose(lines[2].get_ydata(), [0.3, 0.35])
    assert [line.get_color() for line in lines[:2]] == ["0.7", "C0"]
    write_stack("p.mrcs", np.zeros((5, 8, 8), np.float32), 2.0)
    poses = Particles(stack=["p.mrcs"] * 5, index=np.arange(5), tilt=30.0, sampling_rate=2.0, has_pose=True)
    write_particles(folder / "extra/aligned.xmd", poses)
    assert "5 particles" in drawn(viewer.figure_directions()).axes[0].get_title()
