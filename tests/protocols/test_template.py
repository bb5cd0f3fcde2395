"""The batch template: what it names exists, and Scipion makes a project of it without a screen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

import xmipp_accel
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, write_particles
from xmipp_accel.io.volumes import write_volume

pytestmark = pytest.mark.scipion
TEMPLATE = Path(xmipp_accel.__file__).parent / "templates" / "demo.json.template"


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """The template with its defaults, as Scipion fills it in."""
    from pyworkflow.template import LocalTemplate

    template = LocalTemplate("xmipp_accel", str(TEMPLATE))
    template.replaceEnvVariables()
    template.parseContent()
    template._replaceFields()
    return template, json.loads("".join(template.getContent()))


@pytest.fixture(scope="module")
def classes():
    import pyworkflow
    from pwem import Domain

    pyworkflow.Config.setDomain("pwem")
    return Domain.getProtocols()


def test_every_protocol_and_parameter_of_the_template_exists(workflow, classes):
    for node in workflow[1]:
        protocol = classes[node["object.className"]]()
        for name in node:
            if not name.startswith("object."):
                assert protocol.getParam(name) is not None, f"{node['object.className']} has no {name}"


def test_every_input_of_the_template_is_an_output_before_it(workflow, classes):
    seen, inputs = {}, 0
    for node in workflow[1]:
        for value in node.values():
            number, dot, output = str(value).partition(".output")
            if dot and number.isdigit():
                outputs = classes[seen[number]]._possibleOutputs or {}
                names = [getattr(name, "name", name) for name in outputs]
                assert f"output{output}" in names, value
                inputs += 1
        seen[node["object.id"]] = node["object.className"]
    assert inputs == 5 and len(seen) == 8


def test_the_placeholders_are_those_that_the_description_names(workflow):
    template, _ = workflow
    described = template.description.partition("Placeholders:")[2].partition(".")[0].split(",")
    aliases = {param.getAlias() for param in template.getParams().values()}
    assert {name.strip() for name in described} == aliases


def test_scipion_makes_a_project_of_the_template_without_a_screen(tmp_path):
    with mrcfile.new(tmp_path / "movie_1.mrcs") as file:
        file.set_data(np.ones((3, 16, 16), np.uint8))
        file.set_image_stack()
    write_stack(tmp_path / "images.mrcs", np.ones((3, 16, 16), np.float32), 2.0)
    write_particles(
        tmp_path / "particles.star",
        Particles(stack=[str(tmp_path / "images.mrcs")] * 3, index=np.arange(3), sampling_rate=2.0),
    )
    write_volume(tmp_path / "map.mrc", np.ones((16, 16, 16), np.float32), 2.0)
    values = dict(
        movies=tmp_path,
        pattern="movie_*.mrcs",
        gain="",
        movie_sampling=1.5,
        voltage=200,
        dose=1.2,
        symmetry="d2",
        particles=tmp_path / "particles.star",
        views=tmp_path / "particles.star",
        reference=tmp_path / "map.mrc",
        reference_sampling=2.0,
        classes=2,
        use_gpu="false",
        project_name="from_template",
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, "-m", "scipion", "template", "xmipp_accel-demo"]
        + [f"{name}={value}" for name, value in values.items()]
        + ["--nogui", "--noschedule"],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    from pyworkflow.project import Manager

    before = os.getcwd()
    try:
        project = Manager().loadProject("from_template")
    except Exception as error:
        raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:]) from error
    finally:
        os.chdir(before)
    runs = {run.getClassName(): run for run in project.getRuns()}
    assert len(project.getRuns()) == 8
    assert runs["XmippAccelProtClassify2D"].numberOfClasses.get() == 2
    assert not runs["XmippAccelProtMovieAlignment"].useGpu.get()
    aligner = runs["XmippAccelProtAlignSignificant"]
    assert aligner.symmetryGroup.get() == "d2"
    assert aligner.inputReferences.getObjValue().getClassName() == "ProtImportVolumes"
