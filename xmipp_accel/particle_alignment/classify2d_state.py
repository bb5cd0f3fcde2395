"""What a classification needs to go on, in one file: after an interruption, or with further particles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.optics_groups import OpticsGroup, join_groups
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.publish import atomic_path
from xmipp_accel.parameters import deciding
from xmipp_accel.particle_alignment.classify2d_averages import AverageSums
from xmipp_accel.particle_alignment.classify2d_batch import Sums
from xmipp_accel.particle_alignment.classify2d_model import ClassModel, Typical, fit_model
from xmipp_accel.particle_alignment.classify2d_parameters import Classify2DParameters
from xmipp_accel.particle_alignment.classify2d_poses import Poses, Shares
from xmipp_accel.particle_alignment.classify2d_source import rings_of

logger = logging.getLogger(__name__)

VERSION = 1
SAVE_SECONDS = 10.0  # between states of one run
START, BREATHE, CONVERGE, LEARN, ASSIGN, DONE = "start", "breathe", "converge", "learn", "assign", "done"
# Parameters that the sums depend on, so that further particles must be treated with the same ones.
_OF_THE_SUMS = "number_of_classes", "max_shift", "max_resolution", "mask_radius", "mirrors", "ctf"
_COLUMNS = [field.name for field in dataclasses.fields(Particles) if "dtype" in field.metadata]


@dataclasses.dataclass
class RunState:
    """Where a classification is.

    Attributes
    ----------
    settings : dict
        ``box``, ``sampling_rate`` and ``parameters``, which other particles have to agree with, and ``particles``,
        the :func:`fingerprint` of those that this run was given.
    stage : str
    step, breath : int
        Iteration within the stage, and how many splits are tried at a time.
    earlier, seen : int
        Usable particles of earlier runs in the averages, and of these and this run.
    batches : float
        Full batches that the model has learnt from.
    objective : list of float
    rng : dict
        Of the classifier's generator.
    noise : (K,) array
        Background power on rings.
    model : ClassModel
    total : Sums
        That the model was made from.
    batch : int
        Particles of a full batch.
    sample, used : (m,) int64 array
        Rows of the particles at hand in the stages before `LEARN`, and those of them whose images can be used,
        with their `poses` and `shares`.
    table : dict of (n,) arrays
        What has been found for the particles, in their order.
    blocks : int
        How many blocks of particles the table holds.
    averages : AverageSums
    counts : (C,) int64 array
        Particles of each class.
    kept : Particles
        All of them, while they are few enough to look for better classes among them.
    """

    settings: dict[str, Any]
    stage: str = START
    step: int = 0
    breath: int = 0
    earlier: int = 0
    seen: int = 0
    batches: float = 0.0
    objective: list[float] = dataclasses.field(default_factory=list)
    rng: dict[str, Any] | None = None
    noise: np.ndarray | None = None
    model: ClassModel | None = None
    total: Sums | None = None
    batch: int = 0
    sample: np.ndarray | None = None
    used: np.ndarray | None = None
    poses: Poses | None = None
    shares: Shares | None = None
    table: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    blocks: int = 0
    averages: AverageSums | None = None
    counts: np.ndarray | None = None
    kept: Particles | None = None

    def check(self, path, settings):
        """Refuse particles or parameters that this state, read from `path`, cannot go on with.

        Raises
        ------
        ParameterError
            With the name of what differs.
        """
        mine, theirs = self.settings, settings
        for name in ("box", "sampling_rate"):
            if abs(mine[name] - theirs[name]) > 1e-3 * mine[name]:
                raise ParameterError(
                    f"{path}: expected particles with the {name} {mine[name]:g}, found {theirs[name]:g}"
                )
        if mine["has_ctf"] != theirs["has_ctf"]:
            raise ParameterError(f"{path}: expected particles {_with_ctf(mine)}, found them {_with_ctf(theirs)}")
        mine, theirs = deciding(mine["parameters"]), theirs["parameters"]
        for name in _OF_THE_SUMS if self.stage == DONE else mine:
            if mine[name] != theirs[name]:
                raise ParameterError(f"{path}: expected {name} {mine[name]}, as before, found {theirs[name]}")
        if self.stage != DONE and self.settings["particles"] != settings["particles"]:
            raise ParameterError(
                f"{path}: expected the particles of the run that was interrupted, found others; finish it first"
            )


def _with_ctf(settings):
    return "with a CTF" if settings["has_ctf"] else "without a CTF"


def continued(state, settings) -> RunState:
    """State to begin in with further particles, after a run that is done."""
    fixed = settings["parameters"]["fixed_references"]
    begin = RunState(settings, noise=state.noise, model=state.model, batches=state.batches)
    if not fixed:
        begin.kept = _readable(state.kept)
    if not (fixed or begin.kept is not None) or (fixed and state.settings["parameters"]["fixed_references"]):
        for name in ("total", "seen", "averages", "counts"):
            setattr(begin, name, getattr(state, name))
        begin.earlier = state.seen
    return begin


def _readable(kept):
    gone = [name for name in dict.fromkeys(kept.stack if kept is not None else ()) if not Path(name).is_file()]
    if not gone:
        return kept
    logger.warning("The classes learn from the new particles alone, as earlier images are gone: %s", gone[0])
    return None


def with_earlier(kept, particles) -> Particles:
    """Particles that a state keeps, if any, and then others."""
    if kept is None:
        return particles
    columns = {name: np.concatenate([getattr(kept, name), getattr(particles, name)]) for name in _COLUMNS}
    groups: dict[int, OpticsGroup] = {}
    if kept.groups or particles.groups:
        groups, numbers = join_groups(kept.used_groups(), particles.used_groups())
        columns["optics_group"][len(kept) :] = [numbers[number] for number in particles.optics_group.tolist()]
    stack = kept.stack + particles.stack
    return dataclasses.replace(particles, stack=stack, extra={}, groups=groups, **columns)


class Checkpoint:
    """Writes states to a file, but not more often than is worth the time.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path):
        self.path = path
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether a state would be written now."""
        return time.monotonic() - self._last >= SAVE_SECONDS

    def __call__(self, state):
        """Write a state if it is time."""
        if self.due():
            self.now(state)

    def now(self, state):
        """Write a state whatever the time."""
        save_state(self.path, state)
        self._last = time.monotonic()


def fingerprint(particles) -> str:
    """Digest of which images these are and in what order."""
    names, codes = _coded(particles.stack)
    digest = hashlib.sha256("\n".join(names).encode())
    for column in (codes, particles.index, particles.defocus_u, particles.defocus_v):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _coded(stack):
    """The distinct names, and the number of each one among them."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(stack))}
    return list(numbers), np.array([numbers[name] for name in stack], dtype=np.int32)


def save_state(path, state: RunState):
    """Publish a state."""
    arrays: dict[str, np.ndarray] = {}
    plain = _plain(state, arrays)
    text = json.dumps(dict(plain, version=VERSION))
    with atomic_path(path) as temporary:
        np.savez(temporary, plain=np.array(text), **arrays)


def _plain(value, arrays, name=""):
    """What JSON can hold of a value; its arrays go to `arrays`, under names that tell where they belong."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, Particles):
        value = _kept_columns(value)
    elif isinstance(value, ClassModel):  # the rest follows from these
        value = {key: getattr(value, key) for key in ("typical", "numerator", "denominator", "noise", "signal")}
    elif isinstance(value, Typical):
        value = {key: getattr(value, key) for key in ("noise_energy", "ctf2", "energy")}
    elif isinstance(value, AverageSums):
        value = {key: getattr(value, key) for key in AverageSums.NAMES}
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(part, arrays, f"{name}.{key}" if name else key) for key, part in value.items()}
    return value


def _kept_columns(particles):
    names, codes = _coded(particles.stack)
    columns = {name: getattr(particles, name) for name in _COLUMNS}
    groups = {number: dataclasses.asdict(group) for number, group in particles.groups.items()}
    more = dict(sampling_rate=particles.sampling_rate, has_ctf=particles.has_ctf, groups=groups)
    return dict(columns, names=names, codes=codes, **more)


def load_state(path) -> RunState:
    """Read a state; `InputFileError` if the file is not one of this version."""
    if not Path(path).is_file():
        raise InputFileError(path, "the state of a 2D classification", "no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            plain = json.loads(str(file["plain"]))
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputFileError(path, "the state of a 2D classification", str(error)) from error
    version = plain.pop("version", None)
    if version != VERSION:
        raise InputFileError(path, f"a state of version {VERSION}", f"version {version}")
    values = _filled(plain, arrays)
    if values["model"] is not None:
        model, settings = values["model"], values["settings"]
        parameters = Classify2DParameters.from_dict(settings["parameters"])
        grid = rings_of(settings["box"], settings["sampling_rate"], parameters)
        typical = Typical(grid, **model.pop("typical"))
        values["model"] = fit_model(model.pop("numerator"), model.pop("denominator"), typical, **model)
    for name, kind in (("total", Sums), ("poses", Poses), ("shares", Shares)):
        values[name] = values[name] and kind(**values[name])
    if values["averages"] is not None:
        values["averages"] = AverageSums.of(**values["averages"])
    if values["kept"] is not None:
        kept = values["kept"]
        names, codes = kept.pop("names"), kept.pop("codes")
        groups = {int(number): OpticsGroup(**group) for number, group in kept.pop("groups", {}).items()}
        values["kept"] = Particles(stack=[names[code] for code in codes], groups=groups, **kept)
    return RunState(**values)


def _filled(value, arrays):
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return arrays[value["array"]]
        return {key: _filled(part, arrays) for key, part in value.items()}
    return value
