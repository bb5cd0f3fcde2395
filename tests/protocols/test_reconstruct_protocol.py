"""The Fourier reconstruction in Scipion: workflows of Xmipp's, what comes out, what is refused headless."""

import dataclasses
import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from pwem.objects import SetOfParticles, Volume, VolumeMask

from tests.protocols.scipion_project import launch, log_of, output_pointer, project, wait_for  # noqa: F401
from xmipp_accel import convert
from xmipp_accel.backend import CPU
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.particles import read_particles, write_particles
from xmipp_accel.io.volumes import read_volume, write_volume
from xmipp_accel.numerics.fsc import fourier_shell_correlation, soft_sphere
from xmipp_accel.protocols import XmippAccelProtImportParticles, XmippAccelProtReconstructFourier
from xmipp_accel.simulate.particles import simulate_particles

pytestmark = pytest.mark.scipion
COUNT, BOX, RATE = 200, 32, 5.0
CPU_ONLY = dict(useGpu=False, numberOfThreads=2)
# What Scipion exports of a run of Xmipp's protocol, less the class.
XMIPP = {
    "object.id": "7",
    "object.label": "xmipp3 - reconstruct fourier",
    "object.comment": "",
    "_useQueue": False,
    "_prerequisites": "",
    "_queueParams": None,
    "runName": None,
    "runMode": 0,
    "hostName": "localhost",
    "numberOfThreads": 4,
    "numberOfMpi": 1,
    "useGpu": False,
    "gpuList": "0",
    "symmetryGroup": "c1",
    "maxRes": -1.0,
    "useHalves": True,
    "correctCTF": True,
    "correctEnvelope": False,
    "pad_proj": 2,
    "pad_vol": 2,
    "legacy": False,
    "approx": True,
    "extraParams": "",
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A file of particles with their true poses, and what they show."""
    folder = tmp_path_factory.mktemp("particles")
    truth = simulate_particles(folder, COUNT, BOX, RATE, snr=1.0, max_shift=2.0, seed=4)
    pose = dict(
        zip(("rot", "tilt", "psi"), truth.eulers.T), shift_y=truth.shifts[:, 0], shift_x=truth.shifts[:, 1]
    )
    particles = dataclasses.replace(read_particles(folder / "particles.star"), **pose, has_pose=True)
    write_particles(folder / "aligned.star", particles)
    return folder / "aligned.star", truth.phantom.volume(BOX, RATE)


@pytest.fixture(scope="module")
def imported(project, simulated):  # noqa: F811
    run = launch(project, XmippAccelProtImportParticles, particlesFile=str(simulated[0]))
    assert run.isFinished(), log_of(run)
    return run


@pytest.fixture(scope="module")
def from_workflow(project, imported, tmp_path_factory):  # noqa: F811
    """A run of Xmipp's workflow after a change of the class's name."""
    path = tmp_path_factory.mktemp("workflow") / "workflow.json"
    node = {"object.className": "XmippAccelProtReconstructFourier", **XMIPP}
    path.write_text(json.dumps([{**node, "inputParticles": f"{imported.getObjId()}.outputParticles"}]))
    (protocol,) = project.loadProtocols(str(path)).values()
    assert protocol.validate() == []
    project.launchProtocol(protocol, wait=True)
    return project.getProtocol(protocol.getObjId())


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def test_a_workflow_of_xmipps_runs_after_a_change_of_the_class(from_workflow, simulated):
    assert from_workflow.isFinished(), log_of(from_workflow)
    used = from_workflow.result()["parameters"]
    expected = dict(symmetry="c1", max_resolution=0, halves=True, padding_images=2, padding_volume=2)
    assert {name: used[name] for name in expected} == expected
    assert from_workflow.result()["ctf"] == "weight" and used["method"] == "trilinear"
    found, _ = read_volume(from_workflow.outputVolume.getFileName())
    assert correlation(found, simulated[1]) > 0.9


def test_the_files_tell_pixels_and_that_they_are_volumes(from_workflow):
    output = from_workflow.outputVolume
    assert output.getSamplingRate() == RATE
    halves = output.getHalfMaps(asList=True)
    assert len(halves) == 2
    for name in (output.getFileName(), *halves):
        with mrcfile.open(name, permissive=False) as file:
            assert file.is_volume() and file.header.ispg == 1
            assert file.voxel_size.tolist() == pytest.approx((RATE,) * 3)
            assert file.header.cella.tolist() == pytest.approx((BOX * RATE,) * 3)
        assert mrcfile.validate(name)


def test_the_curves_of_the_half_maps_are_outputs(from_workflow):
    result = from_workflow.result()
    frequencies, values = (np.array(list(map(float, column))) for column in from_workflow.outputFSC.getData())
    np.testing.assert_allclose(frequencies, np.arange(BOX // 2 + 1) / (BOX * RATE), atol=1e-6)
    np.testing.assert_allclose(values, result["fsc_corrected"], atol=1e-6)
    curves = {
        curve.getObjLabel(): list(map(float, curve.getData()[1])) for curve in from_workflow.outputFSCs.iterItems()
    }
    for word, name in (("corrected", "fsc_corrected"), ("without", "fsc_unmasked"), ("random", "fsc_randomised")):
        (curve,) = (values for label, values in curves.items() if word in label)
        np.testing.assert_allclose(curve, result[name], atol=1e-6)
    assert len(curves) == 4 and not from_workflow.hasAttribute("outputErrorMap")


def test_the_summary_tells_the_resolution_and_the_methods_cite(from_workflow):
    result, summary = from_workflow.result(), "\n".join(from_workflow.summary())
    assert f"{result['resolution']:.2f} A within" in summary and "FSC 0.143" in summary
    assert f"{result['resolution_unmasked']:.2f} A without mask" in summary
    assert f"from {COUNT} particles" in summary and "SCF" in summary
    methods = " ".join(from_workflow.methods())
    assert f"{COUNT} particles" in methods and f"{result['resolution']:.2f} A" in methods
    from xmipp_accel import bibtex

    assert all(f"{{{key}," in bibtex.__doc__ for key in from_workflow._citations())


def test_particles_without_directions_fail_without_a_screen(project, simulated):  # noqa: F811
    """The condition of the pointer is known to the form only."""
    planar = launch(project, XmippAccelProtImportParticles, particlesFile=str(simulated[0]), alignmentType=2)
    run = launch(
        project,
        XmippAccelProtReconstructFourier,
        inputParticles=output_pointer(planar, "outputParticles"),
        **CPU_ONLY,
    )
    assert run.isFailed()
    assert "The particles need projection directions; their alignment is 2D." in run.getErrorMessage()


@pytest.fixture
def compute(project, imported, tmp_path):  # noqa: F811
    """What a step of the protocol does, on the CPU, in this process: gives the protocol."""

    def compute(images=None, **values):
        protocol = project.newProtocol(XmippAccelProtReconstructFourier)
        protocol.setWorkingDir(tempfile.mkdtemp(dir=tmp_path))
        os.mkdir(protocol._getTmpPath())
        protocol.inputParticles.set(images or imported.outputParticles)
        for name, value in values.items():
            getattr(protocol, name).set(value)
        assert protocol._validate() == []
        protocol._compute(protocol._parameters().to_dict(), CPU)
        return protocol

    return compute


def test_scipion_is_right_about_the_pixels_of_a_mask_and_of_a_map_to_subtract(compute, simulated, tmp_path):
    """Their files say 1 A, as those of many programs do."""
    plain = compute()
    full, _ = read_volume(plain._getExtraPath("volume.mrc"))
    mask = soft_sphere(BOX, 8.0, 3.0, np)
    mask_given, map_given = (
        VolumeMask(location=str(tmp_path / "mask.mrc")),
        Volume(location=str(tmp_path / "map.mrc")),
    )
    for volume, content in ((mask_given, mask), (map_given, full)):
        write_volume(volume.getFileName(), content, 1.0)
        volume.setSamplingRate(RATE)
    run = compute(inputMask=mask_given, inputSubtract=map_given)
    assert run.result()["mask_diameter"] == 0 < plain.result()["mask_diameter"]
    rest, _ = read_volume(run._getExtraPath("volume.mrc"))
    assert rest.std() < 0.3 * full.std()
    halves = [read_volume(run._getExtraPath(f"volume_half{number}.mrc"))[0] for number in (1, 2)]
    expected = fourier_shell_correlation(*[mask * half for half in halves])
    np.testing.assert_allclose(run.result()["fsc_masked"][4:], expected[4:], atol=0.01)


def test_stacks_are_read_from_the_scratch_folder(compute, tmp_path):
    run, plain = compute(scratchDir=str(tmp_path)), compute()
    assert list(tmp_path.glob("xmipp_accel_*/*.mrcs"))
    np.testing.assert_array_equal(*[read_volume(one._getExtraPath("volume.mrc"))[0] for one in (run, plain)])


def test_scores_of_particles_come_from_their_attributes(compute, imported, tmp_path):
    scored = SetOfParticles(filename=str(tmp_path / "scored.sqlite"))
    scored.copyInfo(imported.outputParticles)
    for item in imported.outputParticles.iterItems():
        item = item.clone()
        convert.set_attributes(item, max_cc=float(item.getObjId() <= COUNT // 2))
        scored.append(item)
    scored.write()
    weighted = compute(scored, scoreBFactor=2000.0)
    plain = compute(scored)
    found = [read_volume(run._getExtraPath("volume.mrc"))[0] for run in (weighted, plain)]
    assert correlation(*found) < 0.999
    with pytest.raises(ParameterError, match="expected particles with the column maxCC"):
        compute(scoreBFactor=2000.0)


def test_the_map_grows_with_the_input_and_groups_give_errors(project, imported):  # noqa: F811
    path = Path(imported.outputParticles.getFileName())
    whole = shutil.copy(path, path.with_suffix(".whole"))
    with sqlite3.connect(path) as database:
        database.execute(f"DELETE FROM Objects WHERE id > {COUNT - 60}")
        database.execute(f"UPDATE Properties SET value = {COUNT - 60} WHERE key = '_size'")
        database.execute("UPDATE Properties SET value = 1 WHERE key = '_streamState'")
    protocol = project.newProtocol(XmippAccelProtReconstructFourier, errorGroups=2, **CPU_ONLY)
    protocol.inputParticles.copy(output_pointer(imported, "outputParticles"))
    assert protocol.worksInStreaming() and protocol.validate() == []
    project.launchProtocol(protocol, wait=False)
    try:
        wait_for(protocol, lambda: "More particles are to come" in log_of(protocol))
        assert protocol.result()["particles"] == COUNT - 60
        summary = "\n".join(protocol.summary())
        assert "More particles" in summary and not os.path.exists(protocol._getPath("fscs.sqlite"))
    finally:
        shutil.move(whole, path)
    wait_for(protocol, lambda: project._updateProtocol(protocol) is not None and not protocol.isActive())
    run = project.getProtocol(protocol.getObjId())
    assert run.isFinished(), log_of(run)
    assert run.result()["particles"] == COUNT and run.result()["state"]["kept"] == COUNT - 60
    assert not os.path.exists(run._getExtraPath("state"))
    errors, rate = read_volume(run.outputErrorMap.getFileName())
    assert rate == RATE == run.outputErrorMap.getSamplingRate()
    full, _ = read_volume(run.outputVolume.getFileName())
    assert (errors > 0).all() and errors.mean() < full.std()
    assert run.result()["growth"]["particles"][-1] == COUNT
