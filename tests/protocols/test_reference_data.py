"""Real and golden input through the protocols of a Scipion project; the numbers are printed with ``pytest -s``."""

import subprocess
import sys

import numpy as np
import pytest

from tests.protocols.scipion_project import launch, log_of, output_pointer, project  # noqa: F401
from tests.shared_data import shared_path
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.report import evaluate

pytestmark = [pytest.mark.scipion, pytest.mark.slow]


def _finished(protocol):
    assert protocol.isFinished(), log_of(protocol)
    return protocol


def _import(project, star):  # noqa: F811
    from xmipp_accel.protocols import XmippAccelProtImportParticles

    return _finished(launch(project, XmippAccelProtImportParticles, particlesFile=str(star)))


def _reconstruct(project, star):  # noqa: F811
    from xmipp_accel.protocols import XmippAccelProtReconstructFourier

    particles = output_pointer(_import(project, star), "outputParticles")
    return _finished(launch(project, XmippAccelProtReconstructFourier, inputParticles=particles))


def test_the_movie_of_a_real_micrograph(project, tmp_path):  # noqa: F811
    from pwem.protocols import ProtImportMovies

    from xmipp_accel.movie_alignment.result import MovieAlignmentResult
    from xmipp_accel.protocols import XmippAccelProtMovieAlignment

    tool, scene = shared_path("tools/make_truth.py"), shared_path("data/micrographs/fei_2048.mrc")
    options = "--size 1024 --frames 16 --apix 0.854 --dose 1 --drift 6 --local 2 --seed 5 --format mrc".split()
    subprocess.run([sys.executable, tool, "movie", "--scene", scene, "--out", tmp_path, *options], check=True)
    movies = _finished(
        launch(
            project,
            ProtImportMovies,
            filesPath=str(tmp_path),
            filesPattern="movie.mrc",
            samplingRate=0.854,
            voltage=300.0,
            dosePerFrame=1.0,
            gainFile=str(tmp_path / "gain.mrc"),
        )
    )
    aligned = _finished(
        launch(project, XmippAccelProtMovieAlignment, inputMovies=output_pointer(movies, "outputMovies"))
    )
    (movie,) = [item.clone() for item in aligned.outputMovies]
    assert aligned.outputMicrographs.getSize() == aligned.outputMicrographsDoseWeighted.getSize() == 1
    from pathlib import Path

    folder = Path(aligned._getExtraPath())
    (path,) = [p for p in folder.glob("*.json") if "shift_errors" in p.read_text()]
    result, truth = MovieAlignmentResult.from_json(path), np.load(tmp_path / "truth.npz", allow_pickle=True)
    frames = np.arange(result.n_aligned)[:, None, None]
    field = result.field(truth["field_y"][:, None], truth["field_x"][None], frames)
    rmse = evaluate.shift_rmse(-field, truth["field"])
    print(f"\nreal micrograph: field RMSE {rmse:.3f} px")
    assert rmse < 0.2
    shifts = movie.getAlignment().getShifts()
    np.testing.assert_allclose(np.stack(shifts[::-1], axis=1), result.shifts, atol=1e-3)


def test_real_particles_of_relion(project):  # noqa: F811
    run = _reconstruct(project, shared_path("data/particles/relion31.star"))
    volume, sampling_rate = read_volume(run.outputVolume.getFileName().split(":")[0])
    particles = read_particles(shared_path("data/particles/relion31.star"))
    assert volume.shape == (particles.box,) * 3
    assert sampling_rate == pytest.approx(particles.sampling_rate, rel=1e-4)
    assert volume.std() > 0
    assert np.isfinite(volume).all()


def test_golden_projections_give_their_volume(project):  # noqa: F811
    run = _reconstruct(project, shared_path("golden/reconstruct_fourier/particles.star"))
    volume, sampling_rate = read_volume(run.outputVolume.getFileName().split(":")[0])
    truth, _ = read_volume(shared_path("golden/reconstruct_fourier/volume_truth.mrc"))
    _, curve, resolution = evaluate.fsc_to_truth(volume, truth, sampling_rate)
    print(f"\ngolden projections: FSC 0.5 at {resolution:.2f} A, {curve[[8, 16, 24, 28, 31]].round(3)}")
    assert curve[1:30].min() > 0.95


def test_golden_particles_find_their_references(project):  # noqa: F811
    from pwem.protocols import ProtImportVolumes

    from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor, AlignSignificantParameters
    from xmipp_accel.protocols import XmippAccelProtAlignSignificant

    golden = shared_path("golden/align_significant")
    imported = _import(project, golden / "particles.star")
    volume = launch(project, ProtImportVolumes, filesPath=str(golden / "volume_truth.mrc"), samplingRate=2.25)
    run = _finished(
        launch(
            project,
            XmippAccelProtAlignSignificant,
            inputParticles=output_pointer(imported, "outputParticles"),
            inputReferences=output_pointer(_finished(volume), "outputVolume"),
        )
    )
    rows, truth = read_particles(run._getExtraPath("aligned.xmd")), read_particles(golden / "particles.star")
    rows = rows.take(np.argsort(rows.index))
    errors = evaluate.direction_errors(rows.rot, rows.tilt, truth.rot, truth.tilt)
    print(f"\ngolden particles within 5, 10 degrees: {(errors <= 5).mean():.3f} / {(errors <= 10).mean():.3f}")
    assert (errors <= 10).mean() >= 0.95

    executor = AlignSignificantExecutor(AlignSignificantParameters())
    result = executor.align(truth, golden / "gallery.doc", run._getExtraPath("gallery"))
    found = read_particles(result.particles_xmd)
    found = found.take(np.argsort(found.index))
    original = read_particles(golden / "align_significant_best1.xmd")
    original = original.take(np.argsort(original.index))
    errors = evaluate.direction_errors(found.rot, found.tilt, truth.rot, truth.tilt)
    equal = (found.class_id == original.class_id).mean()
    print(f"golden gallery: equal references {equal:.3f}, within 10 degrees {(errors <= 10).mean():.3f}")
    assert equal > 0.7
    assert (errors <= 10).mean() > 0.85
