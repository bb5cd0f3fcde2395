"""The instalments in which particles are classified while they arrive, each in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel import convert
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.publish import read_json, write_json

_RESULT, _STATE, _PARTICLES = "classes.json", "classes_state.npz", "particles.json"


def _done(folder) -> list[Path]:
    return sorted(path.parent for path in Path(folder).glob(f"instalment_*/{_RESULT}"))


def results(folder) -> list[dict[str, Any]]:
    """What the executor reported of each instalment that is done, in their order."""
    return [read_json(one / _RESULT) for one in _done(folder)]


class Instalments:
    """What has been classified so far, in a run's folder; an instalment with a result is done.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    rows : dict
        By the particle's number its class (0 for an image that cannot be used) and its transform (4, 4).
    last_size : int
        Particles that the last instalment assigned.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.rows: dict[int, tuple[int, np.ndarray]] = {}
        self.last_size = 0
        for one in _done(folder):
            self.take(one)

    def _next(self):
        return self.folder / f"instalment_{len(_done(self.folder)) + 1:04d}"

    def interrupted(self) -> dict[str, Any] | None:
        """``numbers`` of the particles of an instalment that is not done, and whether it is the ``final`` one."""
        path = self._next() / _PARTICLES
        return read_json(path) if path.exists() else None

    def begin(self, particles, final) -> tuple[Path, Path | None]:
        """Folder of the next instalment, and the state to go on from: its own if it was interrupted."""
        folder = self._next()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _PARTICLES, dict(numbers=particles.item_id.tolist(), final=final))
        candidates = [folder, *_done(self.folder)[-1:]]
        states = [one / _STATE for one in candidates if (one / _STATE).exists()]
        return folder, states[0] if states else None

    def take(self, folder):
        """Add the classes of an instalment that is done."""
        found = read_particles(folder / "classes.xmd")
        matrices = convert.aligned_transforms(found, "2d")
        for number, label, matrix in zip(found.item_id.tolist(), found.class_id.tolist(), matrices):
            self.rows[number] = label, matrix
        self.last_size = len(found)
