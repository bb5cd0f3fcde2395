"""The wheel in an environment of its own: Scipion's pins survive and the protocols are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROTOCOLS = [
    "XmippAccelProtMovieAlignment",
    "XmippAccelProtAlignSignificant",
    "XmippAccelProtClassify2D",
    "XmippAccelProtReconstructFourier",
    "XmippAccelProtReconstructSignificant",
]


def _run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _listed_protocols(python, home, folder, **extra):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SCIPION", "PYTHON"))}
    environment.update(
        SCIPION_HOME=str(home),
        SCIPION_NOTIFY="False",
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        **extra,
    )
    home.mkdir(exist_ok=True)
    _run(python, "-m", "scipion", "config", "--unattended", env=environment, cwd=folder)
    return _run(python, "-m", "scipion", "protocols", env=environment, cwd=folder)


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory):
    """A Python that has the wheel and what it needs, installed as the README says."""
    folder = tmp_path_factory.mktemp("install")
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    _run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    return python


@pytest.mark.slow
def test_the_wheel_keeps_numpy_and_gives_the_protocols(fresh_python, tmp_path):
    version = _run(fresh_python, "-c", "import numpy; print(numpy.__version__)", cwd=tmp_path)
    assert version.strip() == "1.26.1"
    listed = _listed_protocols(fresh_python, tmp_path / "home", tmp_path)
    assert [name for name in PROTOCOLS if name not in listed] == []


@pytest.mark.slow
def test_the_wheel_holds_the_files_that_are_no_python(fresh_python, tmp_path):
    script = (
        "import pathlib, xmipp_accel\n"
        "root = pathlib.Path(xmipp_accel.__file__).parent\n"
        "print(*sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()), sep='\\n')"
    )
    packaged = set(_run(fresh_python, "-c", script, cwd=tmp_path).splitlines())
    source = ROOT / "xmipp_accel"
    suffixes = {".cu", ".cuh", ".conf", ".png", ".template", ".html"}
    wanted = {str(p.relative_to(source)) for p in source.rglob("*") if p.suffix in suffixes}
    assert wanted
    assert wanted - packaged == set()


@pytest.mark.slow
def test_a_checkout_that_was_never_installed_gives_the_protocols(fresh_python, tmp_path):
    """Runs last in this file: it takes the wheel away."""
    _run(fresh_python, "-m", "pip", "uninstall", "--yes", "--quiet", "scipion-em-xmipp-accel")
    home = tmp_path / "home"
    assert PROTOCOLS[0] not in _listed_protocols(fresh_python, home, tmp_path)
    listed = _listed_protocols(fresh_python, home, tmp_path, PYTHONPATH=str(ROOT))
    assert [name for name in PROTOCOLS if name not in listed] == []
