"""Particles: where their images are, and what is known about each of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import relion, tables, xmipp
from xmipp_accel.io.images import image_size, open_stack
from xmipp_accel.io.optics_groups import SAMPLING_TOLERANCE, OpticsGroup

# A field with one value a particle; a single value, such as its default, stands for all of them.
Column = Any
_NUMBER, _WHOLE, _FLAG = ({"dtype": np.dtype(kind)} for kind in (np.float64, np.int64, bool))
MOST_FILES = 64  # that one batch of images keeps open
_CTF = "defocus_u", "defocus_v", "defocus_angle", "voltage", "cs", "amplitude_contrast", "phase_shift"


@dataclasses.dataclass
class Particles:
    """Arrays of equal length n, one value a particle.

    Attributes
    ----------
    stack : list of str
        Absolute path of the stack that holds the image.
    index : int64
        Place in that stack, from 0.
    rot, tilt, psi : float64
        Euler angles ZYZ, degrees.
    shift_x, shift_y : float64
        Translation to apply to the image to centre it, px of that image.
    flip : bool
        Whether the image is mirrored.
    weight : float64
    class_id : int64
        0 if unassigned.
    half : int64
        Half set 1 or 2, 0 if unassigned.
    item_id : int64
        1, 2, 3... by default.
    enabled : bool
    defocus_u, defocus_v, defocus_angle, phase_shift : float64
        A, A, degrees, degrees.
    voltage, cs, amplitude_contrast : float64
        kV, mm, fraction of 1.
    optics_group : int64
        Number of the particle's optics group.
    groups : dict of int to OpticsGroup
        By number; empty if all particles belong to one without aberrations.
    sampling_rate : float
        A/px, 0 if unknown; of the first particle's group if groups differ (`mixed`).
    has_ctf, has_pose : bool
        Whether defocus and optics, and whether angles and shifts, are more than defaults.
    extra : dict of (n,) arrays
        Further columns by label, such as ``maxCC``.
    copies : dict of str to str
        Files that hold what some stacks hold, by these stacks' names, and are read in their place.
    """

    stack: list[str]
    index: Column = dataclasses.field(default=0, metadata=_WHOLE)
    rot: Column = dataclasses.field(default=0, metadata=_NUMBER)
    tilt: Column = dataclasses.field(default=0, metadata=_NUMBER)
    psi: Column = dataclasses.field(default=0, metadata=_NUMBER)
    shift_x: Column = dataclasses.field(default=0, metadata=_NUMBER)
    shift_y: Column = dataclasses.field(default=0, metadata=_NUMBER)
    flip: Column = dataclasses.field(default=False, metadata=_FLAG)
    weight: Column = dataclasses.field(default=1, metadata=_NUMBER)
    class_id: Column = dataclasses.field(default=0, metadata=_WHOLE)
    half: Column = dataclasses.field(default=0, metadata=_WHOLE)
    item_id: Column = dataclasses.field(default=None, metadata=_WHOLE)
    enabled: Column = dataclasses.field(default=True, metadata=_FLAG)
    defocus_u: Column = dataclasses.field(default=0, metadata=_NUMBER)
    defocus_v: Column = dataclasses.field(default=0, metadata=_NUMBER)
    defocus_angle: Column = dataclasses.field(default=0, metadata=_NUMBER)
    phase_shift: Column = dataclasses.field(default=0, metadata=_NUMBER)
    voltage: Column = dataclasses.field(default=300, metadata=_NUMBER)
    cs: Column = dataclasses.field(default=2.7, metadata=_NUMBER)
    amplitude_contrast: Column = dataclasses.field(default=0.1, metadata=_NUMBER)
    optics_group: Column = dataclasses.field(default=1, metadata=_WHOLE)
    groups: dict[int, OpticsGroup] = dataclasses.field(default_factory=dict)
    sampling_rate: float = 0.0
    has_ctf: bool = False
    has_pose: bool = False
    extra: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    copies: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.stack = list(self.stack)
        count = len(self.stack)
        if self.item_id is None:
            self.item_id = np.arange(1, count + 1)
        for field in self._columns():
            setattr(self, field.name, self._as_column(field.name, field.metadata["dtype"], count))
        for label, values in self.extra.items():
            if len(values) != count:
                raise ParameterError(f"particles: expected {count} values of {label}, found {len(values)}")
        unknown = set(self.optics_group.tolist()) - set(self.groups) if self.groups else ()
        if unknown:
            raise ParameterError(f"particles: expected optics groups {sorted(self.groups)}, found {min(unknown)}")
        if self.groups and count:
            self.sampling_rate = self._optics(self.optics_group[0]).sampling_rate or self.sampling_rate

    @classmethod
    def _columns(cls):
        return [field for field in dataclasses.fields(cls) if "dtype" in field.metadata]

    def _as_column(self, name, dtype, count):
        values = np.asarray(getattr(self, name), dtype=dtype)
        if values.shape not in ((), (count,)):
            raise ParameterError(f"particles: expected {count} values of {name}, found shape {values.shape}")
        return values if values.shape else np.full(count, values)

    def __len__(self):
        return len(self.stack)

    def take(self, indices) -> Particles:
        """The particles at `indices` (ints from 0, in any order), as a new object."""
        indices = np.asarray(indices)
        rows = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        columns = {field.name: getattr(self, field.name)[rows] for field in self._columns()}
        extra = {label: np.asarray(values)[rows] for label, values in self.extra.items()}
        return dataclasses.replace(self, stack=[self.stack[row] for row in rows], extra=extra, **columns)

    def images(self, indices=None) -> np.ndarray:
        """Read the images of the particles at `indices`, all by default: (n, y, x) float32.

        Each stack is opened once. Images of another size than that of the first one's optics group, or without
        groups than that of all particles, are an `InputFileError`.
        """
        rows = np.arange(len(self)) if indices is None else np.atleast_1d(np.asarray(indices, dtype=np.int64))
        box = self._box_of(rows[0]) if len(rows) and self.groups else self.box
        images = np.empty((len(rows), box, box), np.float32)
        with self.reading(rows) as read:
            read(rows, images)
        return images

    @contextlib.contextmanager
    def reading(self, rows, stacks=None):
        """Context in which threads read images of the particles at `rows`.

        Parameters
        ----------
        rows : (n,) integer array
        stacks : dict, optional
            Keeps the stacks' headers, by name, from call to call.

        Yields
        ------
        callable
            Puts the images of some of these rows into a C-contiguous float32 array; those of another size are an
            `InputFileError`.
        """
        stacks, names = {} if stacks is None else stacks, dict.fromkeys(self.stack[row] for row in rows)
        with contextlib.ExitStack() as context:
            files = {}
            for name in names:
                if name not in stacks:
                    stacks[name] = dataclasses.replace(open_stack(self.copies.get(name, name)), path=name)
                if len(names) <= MOST_FILES:
                    files[name] = context.enter_context(stacks[name].open())
            yield lambda some, out: self._read(some, out, stacks, files)

    def _read(self, rows, out, stacks, files):
        for name, places in _group([self.stack[row] for row in rows]).items():
            together = slice(places[0], places[-1] + 1)
            if len(places) == together.stop - together.start:
                stacks[name].read(self.index[rows[together]], out[together], files.get(name))
            else:
                room = np.empty_like(out[: len(places)])
                out[places] = stacks[name].read(self.index[rows[places]], room, files.get(name))

    def ctf_parameters(self, rows=slice(None)) -> dict[str, np.ndarray]:
        """Defocus and optics of the particles at `rows`, all by default, under the names of `numerics.ctf`."""
        return {name: getattr(self, name)[rows] for name in _CTF}

    @property
    def box(self) -> int:
        """Side of the images in px, from the first particle's stack, which must have square images."""
        if not self.stack:
            raise ParameterError("particles: expected at least one, found none")
        return _box(self.stack[0])

    def _box_of(self, row) -> int:
        return self._optics(self.optics_group[row]).box or _box(self.stack[row])

    def _optics(self, number) -> OpticsGroup:
        return self.groups.get(int(number)) or OpticsGroup(f"opticsGroup{number}", self.sampling_rate)

    def used_groups(self) -> dict[int, OpticsGroup]:
        """The optics groups that have particles, in the order of their numbers, with sampling rate and box."""
        numbers, first = np.unique(self.optics_group, return_index=True)
        return {
            number: dataclasses.replace(
                self._optics(number),
                sampling_rate=self._optics(number).sampling_rate or self.sampling_rate,
                box=self._box_of(row),
            )
            for number, row in zip(numbers.tolist(), first.tolist())
        }

    @property
    def sampling_rates(self) -> np.ndarray:
        """A/px of each particle's image, (n,) float64."""
        numbers, places = np.unique(self.optics_group, return_inverse=True)
        rates = [self._optics(number).sampling_rate or self.sampling_rate for number in numbers]
        return np.array(rates, dtype=np.float64)[places.reshape(-1)]

    @property
    def mixed(self) -> bool:
        """Whether there are particles of optics groups with different pixel or box sizes."""
        return len(self._sizes()) > 1

    def _sizes(self) -> list[tuple[int, float]]:
        """The boxes and sampling rates of the optics groups; those within the tolerance count once."""
        found: list[tuple[int, float]] = []
        for group in self.used_groups().values() if self.groups else ():
            near = SAMPLING_TOLERANCE * group.sampling_rate
            if not any(group.box == box and abs(group.sampling_rate - rate) <= near for box, rate in found):
                found.append((group.box, group.sampling_rate))
        return found

    def require_uniform(self):
        """Raise a `ParameterError` that tells the sizes if pixels or boxes of several sizes are mixed."""
        if self.mixed:
            found = ", ".join(f"{box} px of {rate:g} A" for box, rate in self._sizes())
            raise ParameterError(
                f"particles: expected one pixel size and one box in all optics groups, found {found}"
            )


def _box(stack) -> int:
    shape = open_stack(stack).shape
    if shape[1] != shape[2]:
        raise InputFileError(stack, "square images", image_size(shape[1:]))
    return shape[2]


def _group(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Places of each distinct name."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return {name: np.array(values) for name, values in places.items()}


def read_particles(path) -> Particles:
    """Read particles from a STAR file of RELION 3.0, 3.1, 4 or 5, or from an Xmipp metadata file (.xmd, .doc).

    The stacks are looked for relative to the file's folder, the current folder and the folders above the file
    (RELION's paths start at the project). Their headers are checked, the images are not read.

    Raises
    ------
    InputFileError
        The file or a stack is missing, damaged, or does not hold what is needed.
    """
    blocks = tables.read_blocks(path)
    dialect = relion if any(label.startswith("rln") for block in blocks.values() for label in block) else xmipp
    values = dialect.particle_values(path, blocks)
    places = [_parse_image(path, name) for name in values.pop("image")]
    if not places:
        raise InputFileError(path, "at least one particle", "none")
    stacks, indices = zip(*places)
    found = {name: _find(path, name) for name in dict.fromkeys(stacks)}
    particles = Particles(stack=[found[name] for name in stacks], index=np.array(indices), **values)
    _check(path, particles)
    return particles


def _parse_image(path, name) -> tuple[str, int]:
    """Split ``000012@stack.mrcs`` (from 1) into the stack and the index (from 0)."""
    number, at, stack = str(name).partition("@")
    if not at:
        return str(name), 0
    if not (number.isascii() and number.isdigit() and int(number) > 0 and stack):
        raise InputFileError(path, "image names such as 000001@stack.mrcs", repr(str(name)[:60]))
    return stack, int(number) - 1


def _find(path, name) -> str:
    folder = Path(path).resolve().parent
    for candidate in (folder, Path.cwd(), *folder.parents):
        if (candidate / name).is_file():
            return str((candidate / name).resolve())
    raise InputFileError(path, f"the stack {name} beside it, in the current folder or in a folder above", "none")


def _check(path, particles):
    """Compare with the headers of the stacks, and take the sampling rate from there if the file has none."""
    sizes: dict[int, list[int]] = {}
    for stack, places in _group(particles.stack).items():
        header = open_stack(stack)
        count, *shape = header.shape
        last = int(particles.index[places].max())
        if last >= count:
            raise InputFileError(
                stack, f"an image {last + 1}, as {os.path.basename(path)} says", f"{count} images"
            )
        # Without groups all particles are of group 1.
        for number in np.unique(particles.optics_group[places]).tolist():
            box = particles.groups[number].box if particles.groups else 0
            expected = sizes.setdefault(number, [box, box] if box else shape)
            if shape != expected:
                raise InputFileError(stack, f"{image_size(expected)} in optics group {number}", image_size(shape))
        if not particles.sampling_rate:
            particles.sampling_rate = header.sampling_rate


def write_particles(path, particles: Particles):
    """Publish particles with absolute paths as a STAR file of RELION 3.1 (.star) or an Xmipp file (.xmd).

    RELION knows no mirrored images: with `flip`, the pose is written as the equivalent one from the other side
    (tilt + 180, -psi, -shift_x). Xmipp knows no optics groups: their aberrations are lost, and particles of
    several pixel or box sizes are a `ParameterError`.
    """
    dialect = relion if Path(path).suffix.lower() == ".star" else xmipp
    absolute = {stack: os.path.abspath(stack) for stack in set(particles.stack)}
    names = [
        f"{index + 1:06d}@{absolute[stack]}" for index, stack in zip(particles.index.tolist(), particles.stack)
    ]
    tables.write_blocks(path, dialect.particle_blocks(particles, names))
