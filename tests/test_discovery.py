import importlib
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import xmipp_accel

PACKAGE = Path(xmipp_accel.__file__).parent
PROTOCOLS = {
    "XmippAccelProtAlignSignificant",
    "XmippAccelProtClassify2D",
    "XmippAccelProtImportParticles",
    "XmippAccelProtMovieAlignment",
    "XmippAccelProtReconstructFourier",
    "XmippAccelProtReconstructSignificant",
}
pytestmark = pytest.mark.scipion


@pytest.fixture(scope="module")
def domain():
    import pyworkflow
    from pwem import Domain

    pyworkflow.Config.setDomain("pwem")
    Domain.getPlugins()
    return Domain


def test_scipion_finds_the_plugin_with_all_its_protocols(domain):
    plugins = domain.getPlugins()
    assert "xmipp_accel" in plugins
    found = {name for name, kind in domain.getProtocols().items() if kind.__module__.startswith("xmipp_accel.")}
    assert found == PROTOCOLS


def test_the_plugin_knows_its_name_folder_and_variable(domain):
    plugin = xmipp_accel.Plugin
    assert domain.getPlugins()["xmipp_accel"]._pluginInstance.name == "xmipp_accel"
    assert Path(domain.getPlugins()["xmipp_accel"]._pluginInstance.getPath()) == PACKAGE
    assert plugin.getVar("XMIPP_ACCEL_DEVICE") == os.environ.get("XMIPP_ACCEL_DEVICE", "auto")
    assert plugin.validateInstallation() == []


def test_a_wrong_device_variable_is_reported(domain, monkeypatch):
    monkeypatch.setitem(xmipp_accel.Plugin._vars, "XMIPP_ACCEL_DEVICE", "tpu")
    assert "found 'tpu'" in xmipp_accel.Plugin.validateInstallation()[0]


def test_the_protocol_tree_names_every_protocol_once():
    text = (PACKAGE / "protocols.conf").read_text()
    tree = json.loads(re.search(r"= (\[.*\])", text, re.DOTALL).group(1))
    named = []

    def walk(node):
        if node["tag"] == "protocol":
            named.append(node["value"])
        for child in node.get("children", []):
            walk(child)

    for node in tree:
        walk(node)
    assert sorted(named) == sorted(PROTOCOLS)


def test_every_citation_has_a_reference(domain):
    bibliography = importlib.import_module("xmipp_accel.bibtex").__doc__
    keys = set(re.findall(r"@\w+\{(\w+),", bibliography))
    cited = set(xmipp_accel._references)
    for name in PROTOCOLS:
        cited.update(domain.getProtocols()[name]()._citations())
    assert cited <= keys
    from pyworkflow.utils import parseBibTex

    assert keys == set(parseBibTex(bibliography))


def test_the_logo_is_a_png_of_the_size_of_an_icon():
    header = (PACKAGE / xmipp_accel._logo).read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width == height <= 64


def test_the_protocols_import_without_numba_and_cupy():
    code = (
        "import sys, pyworkflow; pyworkflow.Config.setDomain('pwem')\n"
        "import xmipp_accel.protocols\n"
        "print([name for name in ('numba', 'cupy', 'distributed') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip().endswith("[]")


def test_every_protocol_has_one_viewer_of_its_own(domain):
    from pwem.viewers import EmProtocolViewer

    viewers = importlib.import_module("xmipp_accel.viewers")
    targets = [
        target.__name__
        for name in viewers.__all__
        for target in getattr(viewers, name)._targets
        if issubclass(getattr(viewers, name), EmProtocolViewer)
    ]
    assert sorted(targets) == sorted(PROTOCOLS - {"XmippAccelProtImportParticles"}), "an import has no results"
