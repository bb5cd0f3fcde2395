"""Saved sums: a folder from which a reconstruction goes on when particles come, go or change.

``state.json`` is renamed into place last; it names the subfolder of the arrays that it belongs to, ``sums_<id>``,
with one file for each array of :meth:`FourierAccumulator.export` and one with a table of the particles. The arrays
of an older state are deleted only then, so that a folder holds a complete state at any time, and for a while two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import math
import shutil
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError, ProcessingError
from xmipp_accel.io.optics_groups import OpticsGroup
from xmipp_accel.io.publish import atomic_path, read_json, write_json
from xmipp_accel.numerics.symmetry import normalize_symmetry
from xmipp_accel.reconstruction.members import Members
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters

logger = logging.getLogger(__name__)

VERSION = 1
FILE = "state.json"
SAMPLING_TOLERANCE = 1e-6  # relative; more would shift the sums' frequencies against each other
# The sums do not depend on these; parameters that are not named here must not change.
MAPS_ONLY = (
    "regularisation",
    "wiener_constant",
    "mask_file",
    "refine_support",
    "deterministic",
    "max_memory",
    "preview_interval",
    "batch_size",
    "tune",
    "scratch",
)


@dataclasses.dataclass(frozen=True)
class State:
    """Sums, and the particles in them.

    Attributes
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`.
    settings : dict
        What the sums depend on besides particles, by name.
    members : Members
    sums : list of arrays
        As :meth:`FourierAccumulator.export` returns them; those that were read are mapped from their files.
    counts : list of int
    inserted, taken_out : int
        How many insertions of a particle made these sums, and how many of them were undone since.
    noise : dict of OpticsGroup to array
        Power of the noise by which the particles were weighted, if they were.
    scores : (float, float), optional
        See :class:`~.selection.Selection`.
    """

    parameters: ReconstructFourierParameters
    settings: dict[str, Any]
    members: Members
    sums: list
    counts: list[int]
    inserted: int
    taken_out: int
    noise: dict[OpticsGroup, np.ndarray]
    scores: tuple[float, float] | None


def sum_settings(parameters, particles, reference=None) -> dict[str, Any]:
    """What sums depend on besides the particles in them, as plain values.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
        With a definite `ctf`.
    particles : Particles
    reference : (box, box, box) array, optional
        Whose projections are subtracted.
    """
    values = {name: value for name, value in parameters.to_dict().items() if name not in MAPS_ONLY}
    values["symmetry"] = normalize_symmetry(parameters.symmetry)
    if parameters.ewald == "none":  # else it is the distance at which the two spheres part
        del values["mask_diameter"]
    values["for_least_squares"] = values.pop("refine_iterations") > 0
    # A volume may change under the same name.
    values["subtract"] = "" if reference is None else f"CRC {zlib.crc32(np.ascontiguousarray(reference).data):08x}"
    values.update(box=particles.box, sampling_rate=particles.sampling_rate, has_ctf=particles.has_ctf)
    return values


def check_settings(path, expected, found):
    """Refuse the state at `path` if its settings are not the expected ones: `InputFileError` with one of them."""
    for name in [*expected, *(set(found) - set(expected))]:
        wanted, there = expected.get(name), found.get(name)
        if name == "sampling_rate" and there and math.isclose(wanted, there, rel_tol=SAMPLING_TOLERANCE):
            continue
        if wanted != there:
            raise InputFileError(path, f"sums with {name} {_shown(wanted)}", _shown(there))


def _shown(value):
    return "none" if value is None or value == "" else str(value)


@contextlib.contextmanager
def held(folder):
    """Keep other runs from a state's folder, which is made if absent.

    Raises
    ------
    ProcessingError
        Another run holds it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise InputFileError(folder, "a folder for the state", error.strerror) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ProcessingError(f"{folder}: expected a state that no other run uses") from error
        yield folder


def has_state(folder) -> bool:
    """Whether a folder holds a state."""
    return (Path(folder) / FILE).exists()


def save_state(folder, state: State):
    """Publish a state in a folder in place of the one that is there.

    The sums are written from where they lie; the disk must have room for the old and the new ones.
    """
    arrays = Path(folder) / f"sums_{uuid.uuid4().hex}"
    arrays.mkdir()
    try:
        for number, sums in enumerate(state.sums):
            with atomic_path(arrays / f"{number}.npy") as temporary:
                np.save(temporary, sums)
        with atomic_path(arrays / "members.npz") as temporary:
            np.savez(temporary, **state.members.columns())
    except BaseException:
        shutil.rmtree(arrays, onerror=_warn)
        raise
    write_json(arrays.parent / FILE, _plain(state, arrays.name))
    for other in arrays.parent.glob("sums_*"):
        if other != arrays:
            shutil.rmtree(other, onerror=_warn)


def _plain(state, name):
    """The content of the JSON file of a state whose arrays stand in the subfolder `name`."""
    return dict(
        version=VERSION,
        arrays=name,
        parameters=state.parameters.to_dict(),
        settings=state.settings,
        stacks=state.members.stacks,
        kinds=[dataclasses.asdict(group) for group in state.members.kinds],
        shapes=[sums.shape for sums in state.sums],
        counts=state.counts,
        inserted=state.inserted,
        taken_out=state.taken_out,
        noise=[[dataclasses.asdict(group), power.tolist()] for group, power in state.noise.items()],
        scores=state.scores,
    )


def _warn(_, path, error):
    logger.warning("%s: not deleted, although no state needs it any more: %s", path, error[1])


def load_state(folder) -> State:
    """Read a state; its sums stay in their files until they are used.

    Raises
    ------
    InputFileError
        A file is missing, damaged, or of another version.
    """
    path = Path(folder) / FILE
    content = read_json(path)
    if content.get("version") != VERSION:
        raise InputFileError(path, f"a state of version {VERSION}", f"version {content.get('version')}")
    try:
        arrays = path.parent / content["arrays"]
        shapes, counts = content["shapes"], content["counts"]
        kinds = [OpticsGroup(**group) for group in content["kinds"]]
        noise = {OpticsGroup(**group): np.array(power) for group, power in content["noise"]}
        known = dict(
            parameters=ReconstructFourierParameters.from_dict(content["parameters"]),
            settings=content["settings"],
            inserted=content["inserted"],
            taken_out=content["taken_out"],
            scores=content["scores"] and tuple(content["scores"]),
        )
        stacks = content["stacks"]
    except (KeyError, TypeError, ValueError, ParameterError) as error:
        raise InputFileError(path, f"a state of version {VERSION}", repr(error)) from error
    sums = [_mapped(arrays / f"{number}.npy", tuple(shape)) for number, shape in enumerate(shapes)]
    members = _read_members(arrays / "members.npz", stacks, kinds)
    if sum(counts) != len(members):
        raise InputFileError(arrays / "members.npz", f"{sum(counts)} particles", str(len(members)))
    return State(members=members, sums=sums, counts=counts, noise=noise, **known)


def _mapped(path, shape):
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputFileError(path, f"sums of shape {shape}", str(error)) from error
    if array.shape != shape or array.dtype != np.float32:
        raise InputFileError(path, f"float32 sums of shape {shape}", f"{array.dtype} of shape {array.shape}")
    return array


def _read_members(path, stacks, kinds):
    try:
        with np.load(path, allow_pickle=False) as file:
            members = Members.from_columns(stacks, kinds, dict(file))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputFileError(path, "the table of the particles in the sums", str(error)) from error
    for codes, values, what in ((members.places, stacks, "stacks"), (members.numbers, kinds, "optics groups")):
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(values):
            raise InputFileError(path, f"particles of {len(values)} {what}", f"number {codes.max() + 1}")
    return members
