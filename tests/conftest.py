import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from xmipp_accel.backend.devices import CPU, Device, cuda_status


def _prepare_scipion():
    """Give pyworkflow a home of its own; it reads these variables when it is first imported."""
    home = Path(tempfile.mkdtemp(prefix="scipion_home_"))
    import importlib.util

    spec = importlib.util.find_spec("scipion")
    if spec is None:
        return home
    template = Path(spec.origin).parent / "templates" / "hosts.template"
    (home / "config").mkdir()
    shutil.copy(template, home / "config" / "hosts.conf")
    os.environ.update(
        SCIPION_HOME=str(home),
        SCIPION_USER_DATA=str(home / "data"),
        SCIPION_DOMAIN="pwem",
        SCIPION_NOTIFY="False",
        SCIPION_PYTHON=sys.executable,
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    return home


_HOME = _prepare_scipion()


def pytest_unconfigure():
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device that parity is promised for; the GPU is skipped, with the reason, where there is none."""
    if request.param == "cpu":
        yield CPU
        return
    count, reason = cuda_status()
    if count == 0:
        pytest.skip(reason)
    gpu = Device("cuda", 0)
    with gpu.activate():
        yield gpu
