"""Every parameter that a form shows changes what is computed."""

import os

import numpy as np
import pytest
from pwem.constants import ALIGN_PROJ
from pwem.objects import Acquisition, Movie, SetOfMovies, SetOfParticles, Volume, VolumeMask
from pyworkflow.protocol import params

from xmipp_accel import convert
from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.errors import ParameterError
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.relion_optics import attached_text
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.protocols import (
    XmippAccelProtAlignSignificant,
    XmippAccelProtClassify2D,
    XmippAccelProtMovieAlignment,
    XmippAccelProtReconstructFourier,
    XmippAccelProtReconstructSignificant,
    forms,
)

pytestmark = pytest.mark.scipion
PROTOCOLS = [
    XmippAccelProtMovieAlignment,
    XmippAccelProtAlignSignificant,
    XmippAccelProtClassify2D,
    XmippAccelProtReconstructFourier,
    XmippAccelProtReconstructSignificant,
]
# Values that the parameters accept, where one more than the default is not one of them.
VALUES = {"symmetryGroup": "d7", "maxTilt": 90.0, "numberOfThreads": 1, "pad_proj": 1.5, "pad_vol": 1.5}
VALUES.update(scoreLabel="score", scratchDir="/scratch")
VALUES.update(alpha0=70.0, alphaF=99.0)
VALUES.update(magMajor=1.02, magMinor=0.99)
# Inputs, labels, and what other tests show: these do not go into the parameters.
FROM_INPUT = {"sampling_rate", "voltage", "dose_per_frame", "pre_exposure", "phase_flipped"}
FROM_INPUT.update({"mask_file", "subtract"})
ELSEWHERE = {
    "inputMovies",
    "inputParticles",
    "inputReferences",
    "inputMask",  # below
    "inputSubtract",  # likewise
    "inputSet",
    "thereisRefVolume",  # tests/protocols/test_initial_volume_protocol.py
    "initialClasses",  # tests/protocols/test_particle_protocols.py
    "createClasses",  # likewise
    "doComputeMicThumbnail",  # tests/protocols/test_movie_protocol.py
    "defectFile",  # likewise
    "fmIntFile",  # likewise, and below
    "randomInitialization",
    "useAlignToSum",  # below
    "useGpu",  # below, with the list
    "gpuList",
    "runName",  # Scipion's own
    "runMode",
    "hostName",
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a protocol with an input set, outside any project."""
    import pyworkflow
    from pwem import Domain

    pyworkflow.Config.setDomain("pwem")
    Domain.getPlugins()
    monkeypatch.chdir(tmp_path)

    def make(kind, alignment=ALIGN_PROJ):
        protocol = kind()
        if kind is XmippAccelProtMovieAlignment:
            protocol.inputMovies.set(movie_set())
        elif kind is XmippAccelProtReconstructSignificant:
            protocol.inputSet.set(particle_set(alignment))
        else:
            protocol.inputParticles.set(particle_set(alignment))
        return protocol

    return make


def movie_set():
    movies = SetOfMovies(filename=":memory:")
    movies.setSamplingRate(0.9)
    movies.setAcquisition(Acquisition(magnification=1.0, voltage=300.0, dosePerFrame=1.0))
    movies.setFramesRange([1, 20, 1])
    movies._firstDim.set((64, 64, 20))
    movies.append(Movie(location="movie.mrcs"))
    return movies


def particle_set(alignment=ALIGN_PROJ, **columns):
    write_stack("p.mrcs", np.zeros((20, 8, 8), np.float32), 2.0)
    images = SetOfParticles(filename=":memory:")
    columns.update(index=np.arange(20), sampling_rate=2.0, has_ctf=True, has_pose=True)
    source = Particles(stack=["p.mrcs"] * 20, **columns)
    convert.fill_set(images, source, alignment)
    return images


def computed(protocol):
    """All that the form decides."""
    return (
        protocol._parameters(),
        forms.requested_devices(protocol),
        protocol.numberOfThreads.get(),
    )


def shown(protocol):
    """Names and definitions of the parameters in the form that choose what is computed."""
    skipped = (params.LabelParam, params.PointerParam)
    for name, param in protocol._definition.iterParams():
        if name not in ELSEWHERE and not isinstance(param, skipped):
            yield name, param


def make_visible(protocol, param):
    """Set whatever the condition of a parameter asks for."""
    condition = param.condition.get() or ""
    for name in param._conditionParams:
        negated = f"not {name}" in condition
        value = 1 if f"{name} > 0" in condition or f"{name} == 1" in condition else not negated
        getattr(protocol, name).set(value)


def changed(name, param, value):
    if name in VALUES:
        return VALUES[name]
    if isinstance(param, params.BooleanParam):
        return not value
    if isinstance(param, params.EnumParam):
        return (value + 1) % len(param.choices)
    return value + 4


@pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.__name__)
def test_every_parameter_of_a_form_changes_what_is_computed(make, kind):
    names = [name for name, _ in shown(make(kind))]
    reached = set(FROM_INPUT)
    for name in names:
        protocol = make(kind)
        param = protocol.getParam(name)
        make_visible(protocol, param)
        before = computed(protocol)
        attribute = getattr(protocol, name)
        attribute.set(changed(name, param, attribute.get()))
        assert protocol.evalParamCondition(name), f"{name} is hidden"
        after = computed(protocol)
        assert after != before, f"{name} changes nothing"
        old, new = before[0].to_dict(), after[0].to_dict()
        reached.update(field for field in old if new[field] != old[field])
    assert reached >= set(old), "a parameter that no form sets"


@pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.__name__)
def test_the_defaults_of_a_form_are_those_of_the_parameters(make, kind):
    protocol = make(kind)
    parameters = protocol._parameters()
    from_input = FROM_INPUT | {"last_frame", "sum_last_frame"}
    given = {name: value for name, value in parameters.to_dict().items() if name not in from_input}
    default = type(parameters)().to_dict()
    assert given == {name: default[name] for name in given}


@pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.__name__)
def test_every_parameter_has_a_label_and_a_help(make, kind):
    for name, param in shown(make(kind)):
        assert param.label.get(), name
        in_a_line = param.label.get() in ("X", "Y", "T", "from", "to")
        assert in_a_line or len(param.help.get() or "") > 5, name


def test_a_value_out_of_range_is_reported_before_the_run(make):
    protocol = make(XmippAccelProtReconstructFourier)
    protocol.symmetryGroup.set("c0")
    assert "c0" in protocol._validate()[0]
    protocol = make(XmippAccelProtMovieAlignment)
    protocol.binFactor.set(0.5)
    assert forms.parameter_errors(protocol) == ["bin_factor: expected at least 1, found 0.5"]
    with pytest.raises(ParameterError):
        protocol._parameters()


def test_a_mask_is_for_the_half_maps_and_for_refinement(make):
    protocol = make(XmippAccelProtReconstructFourier)
    protocol.inputMask.set(VolumeMask(location="mask.mrc"))
    assert protocol._parameters().mask_file == os.path.abspath("mask.mrc")
    protocol.useHalves.set(False)
    assert protocol._parameters().mask_file == ""
    protocol.refineIterations.set(5)
    assert protocol._parameters().mask_file == os.path.abspath("mask.mrc"), "it may confine the map"


def test_a_map_to_subtract_comes_from_the_project(make):
    protocol = make(XmippAccelProtReconstructFourier)
    assert protocol._parameters().subtract == ""
    protocol.inputSubtract.set(Volume(location="map.mrc"))
    assert protocol._parameters().subtract == os.path.abspath("map.mrc")


def test_volumes_of_another_size_or_sampling_rate_are_refused_before_the_run(make):
    for name, box, rate in (("right", 8, 2.0), ("large", 10, 2.0), ("fine", 8, 1.5)):
        write_volume(f"{name}.mrc", np.ones((box,) * 3, np.float32), rate)
    for parameter, kind in (("inputMask", VolumeMask), ("inputSubtract", Volume)):
        found = {}
        for name, rate in (("right", 2.0), ("large", 2.0), ("fine", 1.5)):
            protocol = make(XmippAccelProtReconstructFourier)
            volume = kind(location=f"{name}.mrc")
            volume.setSamplingRate(rate)
            getattr(protocol, parameter).set(volume)
            found[name] = protocol._validate()
        label = protocol.getParam(parameter).label.get()
        assert found["right"] == []
        assert found["large"] == [f"{label}: 10 x 10 x 10 px, but the particles have 8 px."]
        assert found["fine"] == [f"{label}: 1.500 A/px, but the particles have 2.000 A/px."]


def test_what_the_executor_would_refuse_is_told_before_the_run(make):
    protocol = make(XmippAccelProtReconstructFourier)
    protocol.symmetryGroup.set("d7h")
    (error,) = protocol._validate()
    assert "symmetry: expected" in error and "d7h" in error
    protocol.symmetryGroup.set("d7")
    protocol.maxRes.set(50.0)
    (error,) = protocol._validate()
    assert "max_resolution: expected finer than" in error
    protocol.maxRes.set(-1)
    assert protocol._validate() == []
    os.remove("p.mrcs")
    (error,) = protocol._validate()
    assert "p.mrcs" in error


def test_mixed_pixel_sizes_are_for_methods_that_know_them(make):
    protocol = make(XmippAccelProtReconstructFourier)
    groups = {1: OpticsGroup("coarse", 2.0, 8), 2: OpticsGroup("other", 2.0, 8)}
    images = particle_set(groups=groups, optics_group=1 + np.arange(20) // 15)
    protocol.inputParticles.set(images)
    protocol.method.set(3)
    assert protocol._validate() == []
    groups[2] = OpticsGroup("fine", 1.0, 8)
    text, _ = attached_text(Particles(stack=["p.mrcs"] * 2, optics_group=[1, 2], groups=groups))
    images.getAcquisition().opticsGroupInfo.set(text)
    protocol.method.set(0)
    assert protocol._validate() == []
    protocol.method.set(3)
    (error,) = protocol._validate()
    assert "one pixel and box size" in error


def test_particles_without_a_ctf_get_a_warning(make):
    protocol = make(XmippAccelProtReconstructFourier)
    assert protocol._warnings() == []
    protocol.inputParticles.get().setHasCTF(False)
    (warning,) = protocol._warnings()
    assert "no CTF" in warning
    protocol.correctCTF.set(False)
    assert protocol._warnings() == []


def test_a_shift_beyond_half_the_box_is_reported(make):
    protocol = make(XmippAccelProtAlignSignificant)
    assert protocol._validate() == []
    protocol.maxShift.set(5.0)
    protocol.maxShiftUnit.set(1)  # px, of 8
    assert protocol._validate() == ["max_shift: expected at most half the box (4 px), found 5 px"]


def test_frames_beyond_the_movie_are_reported(make):
    open("movie.mrcs", "w").close()
    protocol = make(XmippAccelProtMovieAlignment)
    assert protocol._validate() == []
    protocol.alignFrameN.set(25)
    assert "expected at most 20" in protocol._validate()[0]


def test_missing_files_are_reported(make):
    protocol = make(XmippAccelProtMovieAlignment)
    protocol.defectFile.set("nowhere.txt")
    errors = protocol._validate()
    assert any("nowhere.txt" in error for error in errors) and any("movie.mrcs" in error for error in errors)


def test_frame_groups_are_read_before_the_run(make):
    open("movie.mrcs", "w").close()
    protocol = make(XmippAccelProtMovieAlignment)
    protocol.fmIntFile.set("groups.txt")
    assert protocol._validate() == ["The frame groups file groups.txt does not exist."]
    with open("groups.txt", "w") as file:
        file.write("10 5\n10 x\n")
    (error,) = protocol._validate()
    assert "groups.txt: expected" in error and "line 2" in error


def test_frame_groups_change_what_frames_and_doses_mean(make):
    with open("groups.txt", "w") as file:
        file.write("12 3 0.5\n")
    protocol = make(XmippAccelProtMovieAlignment)
    movies = protocol.inputMovies.get()
    movies.getAcquisition().setDosePerFrame(0.0)
    assert protocol._parameters().last_frame == 20 and not protocol._createOutputWeightedMicrographs()
    protocol.fmIntFile.set("groups.txt")
    assert protocol._parameters().last_frame == 0, "the movie's last sum, whichever that is"
    assert protocol._createOutputWeightedMicrographs(), "the file tells the dose"
    protocol.alignFrameN.set(25)
    open("movie.mrcs", "w").close()
    assert protocol._validate() == []


def test_the_dose_of_eer_movies_is_that_of_their_frames_or_of_the_cameras(make):
    protocol = make(XmippAccelProtMovieAlignment)
    movies = protocol.inputMovies.get()
    movie = movies.getFirstItem()
    movie.setFileName("movie.eer")
    movies.update(movie)
    movies.setFramesRange([1, 1003, 1])
    movies.getAcquisition().setDosePerFrame(0.04)
    assert protocol._parameters().dose_per_frame == pytest.approx(0.04 * 25)
    protocol.fmIntFile.set("groups.txt")
    assert protocol._parameters().dose_per_frame == pytest.approx(0.04)


def test_frames_count_from_the_first_one_in_the_file(make):
    protocol = make(XmippAccelProtMovieAlignment)
    movies = protocol.inputMovies.get()
    movies.setFramesRange([3, 20, 1])  # the first two are no longer in the file
    protocol.alignFrame0.set(5)
    found = protocol._parameters()
    assert (found.first_frame, found.last_frame) == (3, 18)
    assert (found.sum_first_frame, found.sum_last_frame) == (3, 18)
    protocol.useAlignToSum.set(False)
    protocol.sumFrame0.set(6)
    protocol.sumFrameN.set(10)
    found = protocol._parameters()
    assert (found.sum_first_frame, found.sum_last_frame) == (4, 8)


def test_particles_without_projection_directions_are_refused(make):
    assert make(XmippAccelProtReconstructFourier)._validate() == []
    errors = make(XmippAccelProtReconstructFourier, alignment=None)._validate()
    assert "projection directions" in errors[0]


def test_flipped_phases_change_the_ctf_correction(make):
    protocol = make(XmippAccelProtReconstructFourier)
    assert protocol._parameters().ctf == "auto"
    protocol.inputParticles.get().setIsPhaseFlipped(True)
    assert protocol._parameters().ctf == "phase_flipped"
    protocol.inputParticles.get().setIsAmplitudeCorrected(True)
    assert protocol._parameters().ctf == "none"
    aligner = make(XmippAccelProtAlignSignificant)
    aligner.inputParticles.get().setIsPhaseFlipped(True)
    assert aligner._parameters().phase_flipped


def test_xmipps_minus_one_means_nyquist(make):
    protocol = make(XmippAccelProtReconstructFourier)
    protocol.maxRes.set(-1)
    assert protocol._parameters().max_resolution == 0


def test_more_classes_than_particles_are_refused(make):
    protocol = make(XmippAccelProtClassify2D)
    assert protocol._validate() == []
    protocol.numberOfClasses.set(21)
    assert "20 particles" in protocol._validate()[0]
    protocol.randomInitialization.set(False)
    assert "initial classes" in protocol._validate()[0]


def test_devices_come_from_the_form_and_the_variable_overrules_it(make, monkeypatch):
    import xmipp_accel

    protocol = make(XmippAccelProtClassify2D)
    protocol.gpuList.set("0, 2-3")
    assert forms.requested_devices(protocol) == ["cuda:0", "cuda:2", "cuda:3"]
    protocol.useGpu.set(False)
    assert forms.requested_devices(protocol) == ["cpu"]
    monkeypatch.setitem(xmipp_accel.Plugin._vars, "XMIPP_ACCEL_DEVICE", "cuda:5")
    assert forms.requested_devices(protocol) == ["cuda:5"]


def test_without_a_gpu_one_line_says_why_and_the_cpu_is_used(make, monkeypatch):
    from xmipp_accel.backend import CPU, devices

    monkeypatch.setattr(devices, "cuda_status", lambda: (0, "no driver"))
    protocol = make(XmippAccelProtClassify2D)
    lines = []
    monkeypatch.setattr(protocol, "info", lines.append)
    assert forms.resolve_devices(protocol) == [CPU]
    assert len(lines) == 1 and "no driver" in lines[0]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores can be limited on Linux only")
def test_the_cores_of_the_form_limit_the_process():
    allowed = os.sched_getaffinity(0)
    try:
        assert forms.limit_cores(1) == 1 == cpu_count()
    finally:
        os.sched_setaffinity(0, allowed)
    assert forms.limit_cores(10_000) == len(allowed)
