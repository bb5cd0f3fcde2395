"""Runs every protocol of a Scipion project, one after the other, without a screen.

Scipion's scheduler starts a process for each protocol, which waits at least 30 s for every level of the workflow;
this runs them in the order of their inputs as fast as they finish.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from xmipp_accel.errors import ProcessingError


def scipion_environment(home: Path, device: str = "auto") -> dict[str, str]:
    """Environment in which ``python -m scipion`` keeps everything in `home`, on this Python and `device`."""
    bin_folder = os.path.dirname(os.path.abspath(sys.executable))
    return {
        **os.environ,
        "SCIPION_HOME": str(home),
        "SCIPION_USER_DATA": str(home / "data"),
        "SCIPION_PYTHON": sys.executable,
        "SCIPION_NOTIFY": "False",
        "SCIPION_DOMAIN": "pwem",
        "XMIPP_ACCEL_DEVICE": device,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def run_template(
    template: str, project_name: str, values: dict[str, object], home: Path, device: str = "auto"
) -> list[dict]:
    """Make a project from a batch template and run all of it.

    Parameters
    ----------
    template : str
        Identifier, as ``python -m scipion template`` takes it.
    project_name : str
        A project of this name in `home` is replaced.
    values : dict
        The template's placeholders.
    home : pathlib.Path
        ``SCIPION_HOME``; made and configured if absent.
    device : str
        As `xmipp_accel.backend.resolve_device` takes it.

    Returns
    -------
    list of dict
        For each protocol in the order of their runs: ``class``, ``label``, ``folder`` (absolute), ``status`` and
        ``error``.

    Raises
    ------
    ProcessingError
        Scipion could not make the project or its protocols.
    """
    home.mkdir(parents=True, exist_ok=True)
    environment = scipion_environment(home, device)
    scipion = [sys.executable, "-m", "scipion"]
    if not (home / "config" / "hosts.conf").exists():
        _run([*scipion, "config", "--unattended"], environment)
    shutil.rmtree(home / "data" / "projects" / project_name, ignore_errors=True)
    pairs = [f"{name}={value}" for name, value in {**values, "project_name": project_name}.items()]
    said = _run([*scipion, "template", template, *pairs, "--nogui", "--noschedule"], environment)
    if not (home / "data" / "projects" / project_name).exists():
        raise ProcessingError(f"Scipion made no project of the template {template!r} with {' '.join(pairs)}")
    summary = home / f"{project_name}.json"
    summary.unlink(missing_ok=True)
    command = [*scipion, "python", "-m", "xmipp_accel.batch", project_name, str(summary)]
    _run(command, environment, show=True)
    states = json.loads(summary.read_text())
    if not states:  # such as when the plugin that defines them cannot be imported
        raise ProcessingError(f"Scipion made no protocol of the template {template!r}:\n{said}")
    return states


def _run(command, environment, show=False):
    """Run a command and return what it printed, which is shown if it fails; `show` lets standard error through."""
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    if done.returncode != 0:
        raise ProcessingError(
            f"{' '.join(command[1:4])} failed with exit status {done.returncode}:\n{done.stdout}"
        )
    return done.stdout


def run_project(project_name: str, progress=None) -> list[dict]:
    """Run the protocols of an existing project; one whose input failed is reported as not run.

    Must be called in the environment of :func:`scipion_environment`. Returns what :func:`run_template` does.
    """
    from pyworkflow.project import Manager

    project = Manager().loadProject(project_name)
    runs = sorted(project.getRuns(), key=lambda run: run.getObjId())
    states = []
    for number, run in enumerate(runs):
        if progress is not None:
            progress(number, len(runs), run.getRunName())
        states.append(_run_protocol(project, run))
    if progress is not None:
        progress(len(runs), len(runs), "done")
    return states


def _run_protocol(project, run) -> dict:
    state = {
        "class": run.getClassName(),
        "label": run.getRunName(),
        "folder": os.path.join(project.path, run.getWorkingDir() or ""),
    }
    missing = [name for name, pointer in run.iterInputPointers() if pointer.hasValue() and pointer.get() is None]
    if missing:
        return {**state, "status": "not run", "error": f"no input {', '.join(missing)}"}
    problems = run.validate()
    if problems:
        return {**state, "status": "not run", "error": "; ".join(map(str, problems))}
    project.launchProtocol(run)
    while run.isActive():  # a queue may run it; its database is all that says how far it is
        time.sleep(0.3)
        project._updateProtocol(run, checkPid=True)
    state["folder"] = os.path.join(project.path, run.getWorkingDir())
    return {**state, "status": run.getStatus(), "error": run.getErrorMessage() or ""}


def main(arguments) -> int:
    """Run a project, show a progress bar on standard error, and write the outcome as JSON."""
    from tqdm import tqdm

    project_name, summary = arguments
    with tqdm(bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}] {postfix}") as bar:

        def progress(done, total, label):
            bar.total = total
            bar.n = done
            bar.set_postfix_str(label)

        states = run_project(project_name, progress)
    Path(summary).write_text(json.dumps(states, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
