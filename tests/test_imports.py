"""The import rules of the house: who may load whom, and what a bare import leaves unloaded."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Higher rooms may import lower ones and their own; rooms of one level may not import each other.
LEVELS = [
    {"protocols", "viewers", "wizards", "cli", "demo", "batch", "convert", "plugin"},
    {"engine", "report"},
    {"initial_volume"},
    {"movie_alignment", "particle_alignment", "reconstruction"},
    {"tuning", "io", "numerics", "simulate"},
    {"kernels", "backend"},
    {"errors", "parameters"},
]
SAME_LEVEL = {  # pairs that may meet although they stand on one level
    ("cli", "demo"),
    ("demo", "batch"),
    ("protocols", "convert"),
    ("viewers", "convert"),
    ("viewers", "protocols"),
    ("wizards", "protocols"),
    ("wizards", "convert"),
    ("plugin", "convert"),
    ("simulate", "io"),
    ("tuning", "io"),
    ("simulate", "numerics"),
    ("kernels", "backend"),
    ("engine", "report"),
    ("parameters", "errors"),
}
SCIPION = {"plugin", "convert", "wizards", "protocols", "viewers", "batch"}


def _level(room):
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def _sources():
    for path in sorted(ROOT.glob("xmipp_accel/**/*.py")):
        parts = path.relative_to(ROOT / "xmipp_accel").with_suffix("").parts
        yield (parts[0] if parts[0] != "__init__" else ""), path
    for room in ("protocols", "viewers"):
        for path in sorted(ROOT.glob(f"{room}/**/*.py")):
            yield room, path


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


SOURCES = list(_sources())


@pytest.mark.parametrize(("room", "path"), SOURCES, ids=[str(p.relative_to(ROOT)) for _, p in SOURCES])
def test_imports_go_downwards(room, path):
    for name in _imports(path):
        top = name.split(".")[0]
        if top in ("cupy", "cupyx"):
            assert room == "backend", f"{path} imports {name}: only backend/ may"
        if top in ("pyworkflow", "pwem", "scipion"):
            assert room in SCIPION, f"{path} imports {name}: only {sorted(SCIPION)} may"
        if top != "xmipp_accel" or name.count(".") == 0:
            continue
        other = name.split(".")[1]
        if other in ("__version__", "Plugin", room) or room == "":
            continue
        assert _level(room) < _level(other) or (room, other) in SAME_LEVEL, f"{path} ({room}) imports {name}"


def test_a_bare_import_loads_neither_scipion_nor_cupy():
    code = (
        "import sys, xmipp_accel, xmipp_accel.cli, xmipp_accel.io.particles\n"
        "print([m for m in ('pwem', 'pyworkflow', 'cupy', 'numba') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize(("room", "path"), SOURCES, ids=[str(p.relative_to(ROOT)) for _, p in SOURCES])
def test_a_file_is_short_enough_to_be_read(room, path):
    assert len(path.read_text().splitlines()) <= 400
