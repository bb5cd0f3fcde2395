"""Reconstruct Significant as Scipion runs it: of particles, of classes, and from a given volume."""

import numpy as np
import pytest

from tests.initial_volume.agreement import share_within
from tests.particle_alignment.simulated import centres, make_particles, make_volume
from tests.protocols.scipion_project import launch, log_of, output_pointer, project  # noqa: F401
from xmipp_accel import convert
from xmipp_accel.io.particles import write_particles
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.numerics.rotations import euler_to_matrix
from xmipp_accel.protocols import (
    XmippAccelProtClassify2D,
    XmippAccelProtImportParticles,
    XmippAccelProtReconstructSignificant,
)

pytestmark = pytest.mark.scipion
CPU_ONLY = dict(useGpu=False, numberOfThreads=2)
QUICK = dict(angularSampling=10.0, maxResolution=16.0, **CPU_ONLY)
POINTS = centres(np.random.default_rng(8))


@pytest.fixture(scope="module")
def imported(project, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("images")
    particles = make_particles(folder, POINTS, n=100, snr=2.0, shift=1.0, ctf=True, seed=3)
    write_particles(folder / "particles.star", particles)
    run = launch(project, XmippAccelProtImportParticles, particlesFile=str(folder / "particles.star"))
    assert run.isFinished(), log_of(run)
    return run, particles, folder


@pytest.fixture(scope="module")
def given(project, imported):  # noqa: F811
    from pwem.protocols import ProtImportVolumes

    run = launch(project, ProtImportVolumes, filesPath=str(imported[2] / "volume.mrc"), samplingRate=4.0)
    assert run.isFinished(), log_of(run)
    return run


def made(project, pointer, **values):  # noqa: F811
    run = launch(project, XmippAccelProtReconstructSignificant, inputSet=pointer, **{**QUICK, **values})
    assert run.isFinished(), log_of(run)
    return run


def test_particles_get_a_volume_and_poses(project, imported):  # noqa: F811
    source, particles, _ = imported
    run = made(project, output_pointer(source, "outputParticles"), numberOfStarts=4, iter=24)
    volume, rate = read_volume(run.outputVolume.getFileName())
    assert volume.shape == (32, 32, 32) and rate == pytest.approx(4.0)
    assert run.outputVolume.getSamplingRate() == 4.0
    output = run.outputParticles
    assert output.hasAlignmentProj() and output.hasCTF() and output.getSize() == 100
    found = convert.particles_from_set(output)
    np.testing.assert_array_equal(found.item_id, particles.item_id)
    poses = euler_to_matrix(found.rot, found.tilt, found.psi)
    assert share_within(poses, euler_to_matrix(particles.rot, particles.tilt, particles.psi)) > 0.9
    assert "Start" in "\n".join(run.summary())


def test_a_given_volume_is_started_from(project, imported, given):  # noqa: F811
    source = imported[0]
    values = dict(thereisRefVolume=True, refVolume=output_pointer(given, "outputVolume"), iter=2)
    run = made(project, output_pointer(source, "outputParticles"), **values)
    volume = read_volume(run.outputVolume.getFileName())[0]
    assert np.corrcoef(volume.ravel(), make_volume(POINTS).ravel())[0, 1] > 0.8, "in its orientation"


def test_classes_give_a_volume_alone(project, imported):  # noqa: F811
    classified = launch(
        project,
        XmippAccelProtClassify2D,
        inputParticles=output_pointer(imported[0], "outputParticles"),
        numberOfClasses=6,
        numberOfIterations=4,
        splitMergeRounds=0,
        **CPU_ONLY,
    )
    assert classified.isFinished(), log_of(classified)
    run = made(project, output_pointer(classified, "outputClasses"), numberOfStarts=1, iter=2)
    assert run.outputVolume.getDim() == (32, 32, 32) and not run.hasAttribute("outputParticles")
    assert run.result()["n_images"] == classified.outputClasses.getSize()


def test_a_missing_volume_is_reported_before_the_run(project, imported):  # noqa: F811
    protocol = project.newProtocol(XmippAccelProtReconstructSignificant, thereisRefVolume=True)
    protocol.inputSet.copy(output_pointer(imported[0], "outputParticles"))
    assert "Give the reference volume." in protocol.validate()
