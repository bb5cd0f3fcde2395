"""The 2D classification in Scipion: particles that arrive during the run, resumed runs, fixed references."""

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tests.protocols.scipion_project import launch, log_of, output_pointer, project, wait_for  # noqa: F401
from xmipp_accel import convert
from xmipp_accel.io.publish import read_json
from xmipp_accel.protocols import XmippAccelProtClassify2D, XmippAccelProtImportParticles
from xmipp_accel.simulate.particles import simulate_particles

pytestmark = pytest.mark.scipion
COUNT, FIRST, VIEWS = 150, 80, 3
SETTINGS = dict(
    numberOfClasses=VIEWS, numberOfIterations=5, splitMergeRounds=2, seed=1, useGpu=False, numberOfThreads=2
)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    return folder, simulate_particles(folder, COUNT, 32, 5.0, snr=0.5, max_shift=2.0, seed=2, views=VIEWS)


@pytest.fixture(scope="module")
def imported(project, views):  # noqa: F811
    run = launch(project, XmippAccelProtImportParticles, particlesFile=str(views[0] / "particles.star"))
    assert run.isFinished(), log_of(run)
    return run


def purity(classes, truth):
    """Share of particles in a class of mostly their view; particles are numbered from 1."""
    numbers = [np.array(sorted(group.getIdSet())) for group in classes.iterItems()]
    return sum(np.bincount(truth[members - 1]).max() for members in numbers) / len(truth)


@pytest.fixture(scope="module")
def streamed(project, imported):  # noqa: F811
    """A run whose input had `FIRST` particles when it began; the rest came when these were classified."""
    path = Path(imported.outputParticles.getFileName())
    whole = shutil.copy(path, path.with_suffix(".whole"))
    with sqlite3.connect(path) as database:
        database.execute(f"DELETE FROM Objects WHERE id > {FIRST}")
        database.execute(f"UPDATE Properties SET value = {FIRST} WHERE key = '_size'")
        database.execute("UPDATE Properties SET value = 1 WHERE key = '_streamState'")
    protocol = project.newProtocol(XmippAccelProtClassify2D)
    protocol.inputParticles.copy(output_pointer(imported, "outputParticles"))
    for name, value in SETTINGS.items():
        getattr(protocol, name).set(value)
    assert protocol.worksInStreaming() and not protocol.validate()
    project.launchProtocol(protocol, wait=False)
    try:
        wait_for(protocol, lambda: os.path.exists(protocol._getPath("averages.sqlite")))
    finally:
        with sqlite3.connect(path) as database:
            database.execute(f"ATTACH '{whole}' AS whole")
            database.execute(f"INSERT INTO Objects SELECT * FROM whole.Objects WHERE id > {FIRST}")
            database.execute("DELETE FROM Properties")
            database.execute("INSERT INTO Properties SELECT * FROM whole.Properties")
    wait_for(protocol, lambda: project._updateProtocol(protocol) is not None and not protocol.isActive())
    return project.getProtocol(protocol.getObjId())


def test_particles_that_arrive_during_the_run_are_classified(streamed, views):
    assert streamed.isFinished(), log_of(streamed)
    classes, averages = streamed.outputClasses, streamed.outputAverages
    assert classes.isStreamClosed() and averages.isStreamClosed()
    assert sum(group.getSize() for group in classes.iterItems()) == COUNT
    assert classes.getSize() == averages.getSize() == VIEWS
    assert purity(classes, views[1].views) >= 0.95
    numbers = [
        read_json(path)["numbers"] for path in sorted(Path(streamed._getExtraPath()).glob("*/particles.json"))
    ]
    assert numbers[0] == list(range(1, FIRST + 1)) and numbers[1] == list(range(FIRST + 1, COUNT + 1))
    assert f"{COUNT} particles in {VIEWS} classes" in "\n".join(streamed.summary())


def test_a_continued_run_finishes_its_instalment(project, streamed):  # noqa: F811
    before = {group.getObjId(): sorted(group.getIdSet()) for group in streamed.outputClasses.iterItems()}
    last = sorted(Path(streamed._getExtraPath()).glob("instalment_*"))[-1]
    (last / "classes.json").unlink()
    (last / "classes_state.npz").unlink()
    run = launch(project, None, resume=streamed)
    assert run.isFinished(), log_of(run)
    assert (last / "classes.json").exists()
    after = {group.getObjId(): sorted(group.getIdSet()) for group in run.outputClasses.iterItems()}
    assert after == before


def test_a_continued_run_with_other_parameters_is_refused(project, streamed):  # noqa: F811
    run = launch(project, None, resume=streamed, maxShift=3.0)
    assert run.isFailed() and "restart" in run.getErrorMessage()


def test_a_continued_run_may_read_its_stacks_from_elsewhere(project, streamed, tmp_path):  # noqa: F811
    streamed.maxShift.set(XmippAccelProtClassify2D().maxShift.get())
    last = sorted(Path(streamed._getExtraPath()).glob("instalment_*"))[-1]
    (last / "classes.json").unlink()
    run = launch(project, None, resume=streamed, scratchDir=str(tmp_path))
    assert run.isFinished(), log_of(run)
    assert read_json(last / "classes.json")["parameters"]["scratch"] == str(tmp_path)
    assert list(tmp_path.glob("xmipp_accel_*/*.mrcs"))


def test_particles_are_assigned_to_classes_that_stay(project, imported, streamed, views):  # noqa: F811
    run = launch(
        project,
        XmippAccelProtClassify2D,
        inputParticles=output_pointer(imported, "outputParticles"),
        randomInitialization=False,
        initialClasses=output_pointer(streamed, "outputClasses"),
        fixedReferences=True,
        assignment=1,  # soft
        **dict(SETTINGS, numberOfClasses=7),
    )
    assert run.isFinished(), log_of(run)
    assert purity(run.outputClasses, views[1].views) >= 0.95
    given = {group.getObjId(): group.getIdSet() for group in streamed.outputClasses.iterItems()}
    found = {group.getObjId(): group.getIdSet() for group in run.outputClasses.iterItems()}
    assert sum(len(given[number] & found[number]) for number in found) > 0.97 * COUNT
    assert list(Path(run._getExtraPath()).glob("*/shares.star"))
    assert convert.particles_from_set(run.outputAverages).images().shape == (VIEWS, 32, 32)


def test_fewer_particles_than_classes_are_refused_before_the_run(project, imported):  # noqa: F811
    protocol = project.newProtocol(XmippAccelProtClassify2D, numberOfClasses=COUNT + 1)
    protocol.inputParticles.copy(output_pointer(imported, "outputParticles"))
    assert f"{COUNT + 1} classes are more than the {COUNT} particles" in protocol.validate()[0]
