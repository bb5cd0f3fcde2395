"""How a parameter is declared once and then checked, shown in ``--help`` and written to JSON everywhere alike.

A capability declares a frozen dataclass whose fields come from :func:`parameter`; :class:`Parameters` gives it
validation, a command line and a JSON form.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

from xmipp_accel.errors import ParameterError


def parameter(default, help, *, unit=None, minimum=None, maximum=None, choices=None, advanced=False):
    """Declare one field of a :class:`Parameters` dataclass.

    Parameters
    ----------
    default : bool, int, float or str
        Also fixes the type.
    help : str
        One sentence, shown by ``--help`` and in the Scipion form.
    unit : str, optional
        Such as ``"A"``, ``"px"`` or ``"degrees"``.
    minimum, maximum : number, optional
        Inclusive limits.
    choices : sequence, optional
        The allowed values.
    advanced : bool
        Hidden from newcomers in the Scipion form.
    """
    metadata = dict(help=help, unit=unit, minimum=minimum, maximum=maximum, choices=choices, advanced=advanced)
    return dataclasses.field(default=default, metadata=metadata)


def scratch_parameter():
    """Declare the field ``scratch``, a folder for :func:`xmipp_accel.io.scratch.scratch`."""
    text = (
        "Existing folder on a fast local disk, such as $TMPDIR: stacks are copied there before they are read, and "
        "later runs find them again; the copies that were not used for longest give way. Empty: nothing is copied."
    )
    return parameter("", text, advanced=True)


def deciding(values: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's parameters that its results depend on: it may go on with another ``scratch``."""
    return {name: value for name, value in values.items() if name != "scratch"}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Base of the parameter dataclasses: limits and choices are checked when an instance is made."""

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            self._check_type(field.name, hints[field.name], value)
            self._check_limits(field, value)

    def _check_type(self, name, kind, value):
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(self, name, float(value))
        elif kind in (bool, int, float, str) and type(value) is not kind:
            raise ParameterError(f"{name}: expected {kind.__name__}, found {value!r}")

    @staticmethod
    def _check_limits(field, value):
        limits = field.metadata
        if limits.get("choices") is not None and value not in limits["choices"]:
            allowed = ", ".join(map(str, limits["choices"]))
            raise ParameterError(f"{field.name}: expected one of {allowed}, found {value!r}")
        if limits.get("minimum") is not None and not value >= limits["minimum"]:
            raise ParameterError(f"{field.name}: expected at least {limits['minimum']}, found {value!r}")
        if limits.get("maximum") is not None and not value <= limits["maximum"]:
            raise ParameterError(f"{field.name}: expected at most {limits['maximum']}, found {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Build from :meth:`to_dict`'s output; an unknown name is a `ParameterError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ParameterError(f"{cls.__name__}: unknown parameter {unknown[0]!r}")
        return cls(**values)

    @classmethod
    def add_arguments(cls, parser):
        """Add one ``--name`` option for each field to an `argparse` parser, with unit and default in its help."""
        for field in dataclasses.fields(cls):
            limits = field.metadata
            unit = f" [{limits['unit']}]" if limits["unit"] else ""
            text = f"{limits['help']}{unit} (default: {field.default})".replace("%", "%%")
            option = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                parser.add_argument(
                    option, action=argparse.BooleanOptionalAction, default=field.default, help=text
                )
            else:
                parser.add_argument(
                    option,
                    type=type(field.default),
                    default=field.default,
                    choices=limits["choices"],
                    metavar=None if limits["choices"] else type(field.default).__name__.upper(),
                    help=text,
                )

    @classmethod
    def from_arguments(cls, arguments):
        """Build from the namespace that a parser filled by :meth:`add_arguments` returned."""
        return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})
