import os
import sqlite3
import types

import mrcfile
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.protocols.scipion_project import launch, log_of, output_pointer, project  # noqa: F401
from xmipp_accel.io.images import read_image
from xmipp_accel.protocols import XmippAccelProtMovieAlignment

pytestmark = pytest.mark.scipion
SIZE, FRAMES = 192, 6
DRIFT = np.stack([np.arange(FRAMES) * 0.8, -np.arange(FRAMES) * 0.5], axis=1)  # (y, x), px that the sample moves
OUTPUTS = (
    "outputMovies",
    "outputMicrographs",
    "outputMicrographsDoseWeighted",
    "outputMicrographsEven",
    "outputMicrographsOdd",
)


def write_movie(path, seed, keep=None):
    """Counts of a drifting random pattern; `keep` cuts the file after so many bytes."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.fft2(gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.5, mode="wrap"))
    fy, fx = np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE), indexing="ij")
    frames = [np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (fy * y + fx * x))).real for y, x in DRIFT]
    counts = rng.poisson((40 + 60 * np.array(frames)).clip(1)).clip(0, 255).astype(np.uint8)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(counts)
        file.set_image_stack()
        file.voxel_size = 2.0
    if keep:
        os.truncate(path, keep)


@pytest.fixture(scope="module")
def imported(project, tmp_path_factory):  # noqa: F811
    """Three movies in the project, the second of which is cut short."""
    from pwem.protocols import ProtImportMovies

    folder = tmp_path_factory.mktemp("movies")
    for number in (1, 2, 3):
        write_movie(folder / f"movie_{number}.mrcs", number, keep=100_000 if number == 2 else None)
    with mrcfile.new(folder / "gain.mrc") as file:
        file.set_data(np.ones((SIZE, SIZE), np.float32))
    run = launch(
        project,
        ProtImportMovies,
        filesPath=str(folder),
        filesPattern="movie_*.mrcs",
        samplingRate=2.0,
        voltage=300.0,
        dosePerFrame=1.5,
        gainFile=str(folder / "gain.mrc"),
    )
    assert run.outputMovies.getSize() == 3, log_of(run)
    return run


@pytest.fixture(scope="module")
def aligned(project, imported):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtMovieAlignment,
        inputMovies=output_pointer(imported, "outputMovies"),
        binFactor=2.0,
        doLocalAlignment=False,
        splitEvenOdd=True,
        doComputePSD=True,
        useGpu=False,
        numberOfThreads=2,
    )
    assert run.isFinished(), log_of(run)
    return run


def test_every_output_holds_the_movies_that_could_be_aligned(aligned):
    for name in OUTPUTS:
        output = getattr(aligned, name)
        assert sorted(output.getIdSet()) == [1, 3], name
        assert output.isStreamClosed()
    assert aligned.outputMovies.getSamplingRate() == 2.0
    assert aligned.outputMicrographs.getSamplingRate() == 4.0
    assert aligned.outputMicrographs.getDim()[:2] == (SIZE // 2, SIZE // 2)


def test_the_shifts_undo_the_drift_and_stand_where_others_look_for_them(aligned):
    for movie in aligned.outputMovies.iterItems():
        x, y = movie.getAlignment().getShifts()
        found = np.stack([y, x], axis=1).astype(float)
        expected = -(DRIFT - DRIFT.mean(axis=0))
        np.testing.assert_allclose(found - found.mean(axis=0), expected, atol=0.15)
        np.testing.assert_allclose([float(v) for v in movie._xmipp_ShiftX], found[:, 1], atol=1e-3)
        assert movie.getAlignment().getRange() == (1, FRAMES)
        assert movie.getFramesRange().getRange() == (1, FRAMES)


def test_micrographs_carry_names_pictures_and_motion(aligned):
    total = 2.0 * np.hypot(*np.diff(DRIFT, axis=0).T).sum()
    for name in OUTPUTS[1:]:
        for micrograph in getattr(aligned, name).iterItems():
            assert micrograph.getMicName() == f"movie_{micrograph.getObjId()}.mrcs"
            assert os.path.exists(micrograph.getFileName())
            for attribute in ("plotGlobal", "plotCart", "thumbnail", "psdCorr", "psdJpeg"):
                assert os.path.exists(getattr(micrograph, attribute).getFileName()), attribute
            assert float(micrograph._rlnAccumMotionTotal) == pytest.approx(total, rel=0.15)
            early = float(micrograph._rlnAccumMotionEarly) + float(micrograph._rlnAccumMotionLate)
            assert early == pytest.approx(float(micrograph._rlnAccumMotionTotal), rel=1e-4)


def test_the_kinds_of_micrographs_differ(aligned):
    images = [read_image(getattr(aligned, name)[1].getFileName())[0] for name in OUTPUTS[1:]]
    for first in range(len(images)):
        for second in range(first):
            assert not np.allclose(images[first], images[second])


def test_a_movie_that_cannot_be_read_is_reported_with_its_reason(aligned):
    (failure,) = aligned.failed_movies()
    assert "movie_2" in failure[0] and "expected" in failure[1]
    assert aligned._readFailedList() == [2]
    summary = "\n".join(aligned.summary())
    assert "2 movies aligned" in summary and "1 movies failed" in summary and "movie_2" in summary
    assert "movie_2" in log_of(aligned)


def test_the_monitors_of_facilities_accept_the_run(aligned):
    from pwem.protocols import ProtAlignMovies

    assert isinstance(aligned, ProtAlignMovies) and aligned._doComputeMicThumbnail()
    assert "align" in aligned.getRunName() and aligned.worksInStreaming()
    assert aligned._createOutputWeightedMicrographs()


def test_the_next_protocol_takes_the_outputs(project, aligned):  # noqa: F811
    from pwem.protocols import ProtSubSet

    run = launch(
        project,
        ProtSubSet,
        inputFullSet=output_pointer(aligned, "outputMicrographsDoseWeighted"),
        chooseAtRandom=True,
        nElements=1,
    )
    assert run.outputMicrographs.getSize() == 1, log_of(run)
    assert run.outputMicrographs.getSamplingRate() == 4.0


def test_a_continued_run_completes_what_is_missing_and_repeats_nothing(project, imported, aligned):  # noqa: F811
    kept = {number: os.stat(aligned._getExtraPath(f"movie_{number}.json")).st_mtime_ns for number in (1, 3)}
    # As if the run had been killed before the last set knew of movie 3, and the bad file had been replaced since.
    with sqlite3.connect(aligned._getPath("micrographs_odd.sqlite")) as database:
        database.execute("DELETE FROM Objects WHERE id = 3")
        database.execute("UPDATE Properties SET value = 1 WHERE key = '_size'")
    write_movie(os.path.realpath(imported.outputMovies[2].getFileName()), 2)
    run = launch(project, None, resume=aligned)
    assert run.isFinished(), log_of(run)
    for name in OUTPUTS:
        assert sorted(getattr(run, name).getIdSet()) == [1, 2, 3], name
        assert getattr(run, name).getSize() == 3
    for number, time_before in kept.items():
        assert os.stat(run._getExtraPath(f"movie_{number}.json")).st_mtime_ns == time_before
    assert run.failed_movies() == [] and run._readFailedList() == []


def test_a_continued_run_with_other_parameters_is_refused(project, aligned):  # noqa: F811
    run = launch(project, None, resume=aligned, binFactor=1.0)
    assert run.isFailed()
    assert "restart" in run.getErrorMessage()
    assert run.outputMicrographs.getSize() == 3


class Recorder:
    """Stands in for an executor: says which movies it was given."""

    def __init__(self):
        self.names = []

    def process(self, path, folder, name):
        self.names.append(name)
        return types.SimpleNamespace(name=name)


def test_movies_that_arrive_during_the_run_are_aligned(tmp_path, monkeypatch):
    import concurrent.futures
    import queue

    from pwem.objects import Acquisition, Movie, SetOfMovies

    from xmipp_accel.protocols import protocol_movie_alignment as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(module, "REGISTER_SECONDS", 0.05)

    def write(numbers, state):
        movies = SetOfMovies(filename="input.sqlite")
        if numbers != [1]:
            movies.loadAllProperties()
            movies.enableAppend()
        else:
            movies.setAcquisition(Acquisition(voltage=300.0))
            movies.setSamplingRate(1.0)
            movies._firstDim.set((8, 8, 2))
        for number in numbers:
            movie = Movie(location=f"{number}/movie.mrcs")
            movie.setObjId(number)
            movies.append(movie)
        movies.setStreamState(state)
        movies.write()
        movies.close()
        return movies

    protocol = XmippAccelProtMovieAlignment()
    protocol.setWorkingDir(str(tmp_path))
    os.makedirs(protocol._getExtraPath())
    protocol.inputMovies.set(write([1], SetOfMovies.STREAM_OPEN))
    protocol._failed, protocol._names = {}, {}
    batches = []

    def register(finished, _state):
        if not batches:  # the input grows, and ends, once the first of it is an output
            write([2, 3], SetOfMovies.STREAM_CLOSED)
        batches.append([movie.getObjId() for movie, _ in finished])

    outputs = types.SimpleNamespace(complete_ids=list, register=register)
    workers, recorder = queue.Queue(), Recorder()
    workers.put(recorder)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        protocol._pump(pool, workers, outputs, None)
    assert sorted(number for batch in batches for number in batch) == [1, 2, 3] and len(batches) >= 2
    assert sorted(recorder.names) == ["movie", "movie_2", "movie_3"], "files of one name must not meet"


def bare_protocol(folder):
    """A protocol outside any project."""
    from pwem.objects import SetOfMovies

    protocol = XmippAccelProtMovieAlignment()
    protocol.setWorkingDir(str(folder))
    os.makedirs(protocol._getExtraPath())
    movies = SetOfMovies(filename=":memory:")
    movies.setGain("gain.mrc")
    protocol.inputMovies.set(movies)
    return protocol


def test_references_frame_groups_and_every_gpu_get_to_the_executors(tmp_path, monkeypatch):
    from xmipp_accel.backend import Device
    from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Device, "free_memory", lambda self: 8 << 30)  # no GPU is needed here
    protocol = bare_protocol(tmp_path)
    protocol.defectFile.set("defects.txt")
    (tmp_path / "groups.txt").write_text("8 2 0.5\n")
    protocol.fmIntFile.set("groups.txt")
    workers = protocol._workers(MovieAlignmentParameters(), [Device("cuda", 0), Device("cuda", 2)])
    first, second = workers.get(), workers.get()
    assert [first.device.index, second.device.index] == [0, 2]
    assert first.reference_paths == (str(tmp_path / "gain.mrc"), str(tmp_path / "defects.txt"))
    assert first.frame_groups.path == tmp_path / "groups.txt"


def test_thumbnails_are_made_on_request_only(tmp_path):
    from xmipp_accel.io.images import write_image
    from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
    from xmipp_accel.protocols.movie_outputs import MovieOutputs

    protocol = bare_protocol(tmp_path)
    write_image(protocol._getExtraPath("m.mrc"), np.random.default_rng(0).normal(size=(16, 16)), 1.0)
    outputs = MovieOutputs(protocol, MovieAlignmentParameters())
    result = types.SimpleNamespace(
        name="m", shifts=np.zeros((2, 2)), shift_errors=np.ones((2, 2)), outputs={"unweighted": "m.mrc"}
    )
    assert os.path.exists(outputs._pictures(result)["thumbnail"])
    protocol.doComputeMicThumbnail.set(False)
    assert "thumbnail" not in outputs._pictures(result)


def test_aligned_movies_say_which_frames_they_hold(project, imported):  # noqa: F811
    """Those that were summed, without shifts that others would apply again."""
    run = launch(
        project,
        XmippAccelProtMovieAlignment,
        inputMovies=output_pointer(imported, "outputMovies"),
        useAlignToSum=False,
        sumFrame0=2,
        sumFrameN=5,
        doSaveMovie=True,
        doComputePSD=False,
        doLocalAlignment=False,
        useGpu=False,
    )
    assert run.isFinished(), log_of(run)
    for movie in run.outputMovies.iterItems():
        assert movie.getFramesRange().getRange() == (2, 5)
        assert movie.getAlignment().getRange() == (2, 5)
        assert movie.getAlignment().getShifts() == ([0.0] * 4, [0.0] * 4)
        with mrcfile.open(movie.getFileName()) as file:
            assert file.data.shape == (4, SIZE, SIZE)


def test_a_movie_without_an_even_half_is_left_out_of_its_set(tmp_path):
    from pwem.objects import Movie, SetOfMicrographs

    from xmipp_accel.movie_alignment.parameters import MovieAlignmentParameters
    from xmipp_accel.protocols.movie_outputs import MovieOutputs

    outputs = MovieOutputs(bare_protocol(tmp_path), MovieAlignmentParameters(save_even_odd=True))
    result = types.SimpleNamespace(name="m", outputs={"unweighted": "m.mrc"}, output_sampling_rate=1.0)
    finished = [(Movie(location="m.mrc"), result)]
    name, file = "outputMicrographsEven", "micrographs_even.sqlite"
    outputs._extend(name, file, SetOfMicrographs, finished, 0, outputs._micrograph, "even", {})
    assert outputs.ids[name] == set() and not outputs.protocol.hasAttribute(name)
