"""A Scipion project for tests, whose protocols run as they do for a user: each in a process of its own."""

import os
import time
import uuid

import pytest


def make_project():
    """Make an empty project in the tests' own Scipion home and go there."""
    import pyworkflow
    from pwem import Domain
    from pyworkflow.project import Manager

    pyworkflow.Config.setDomain("pwem")
    Domain.getPlugins()
    project = Manager().createProject(f"test_{uuid.uuid4().hex[:8]}")
    os.chdir(project.path)
    return project


def launch(project, kind, resume=None, **values):
    """Run a protocol to its end; with `resume`, go on with that run instead of a new one."""
    from pyworkflow.object import Pointer
    from pyworkflow.protocol.constants import MODE_RESUME

    protocol = resume or project.newProtocol(kind)
    for name, value in values.items():
        attribute = getattr(protocol, name)
        (attribute.copy if isinstance(value, Pointer) else attribute.set)(value)
    if resume is not None:
        protocol.runMode.set(MODE_RESUME)
    project.launchProtocol(protocol, wait=True, force=resume is not None)
    return project.getProtocol(protocol.getObjId())


def output_pointer(protocol, name):
    """What a form holds after a user has chosen an output."""
    from pyworkflow.object import Pointer

    return Pointer(protocol, extended=name)


def log_of(protocol):
    """Text of the run's log, for messages of failed assertions."""
    return "".join(open(path).read() for path in protocol.getLogPaths()[:2] if os.path.exists(path))[-6000:]


def wait_for(protocol, condition, seconds=60):
    """Wait until a run that goes on by itself has come so far."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, log_of(protocol)
        time.sleep(0.3)


@pytest.fixture(scope="module")
def project():
    """A fresh project; the tests of one module share it."""
    before = os.getcwd()
    yield make_project()
    os.chdir(before)
