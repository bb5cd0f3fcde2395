"""Access to the columns of a table, with the checks that STAR and XMD files have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError


class Columns:
    """The columns of one block by label.

    Parameters
    ----------
    path : str or os.PathLike
    block : dict
        As :func:`xmipp_accel.io.tables.read_blocks` returns it.
    """

    def __init__(self, path, block: dict[str, Any]):
        self.path = path
        self.block = block
        self.count = max((len(values) for values in block.values()), default=0)

    def __contains__(self, label):
        return label in self.block

    def numbers(self, label) -> np.ndarray:
        """A numeric column as float64; finite, or `InputFileError`."""
        values = self.block[label]
        if not isinstance(values, np.ndarray) and self.count:
            bad = next(value for value in values if not _is_number(value))
            raise InputFileError(self.path, f"numbers in {label}", repr(bad[:40]))
        values = np.asarray(values, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputFileError(self.path, f"finite numbers in {label}", f"{values[~np.isfinite(values)][0]}")
        return values

    def whole(self, label, choices: tuple[int, ...] | None = None) -> np.ndarray:
        """A column of whole numbers as int64, all among `choices` if given."""
        values = self.numbers(label)
        bad = (values != np.rint(values)) | (np.abs(values) > 2**53)
        if choices is not None:
            bad |= ~np.isin(values, choices)
        if bad.any():
            expected = "whole numbers" if choices is None else " or ".join(map(str, choices))
            raise InputFileError(self.path, f"{expected} in {label}", f"{values[bad][0]:g}")
        return values.astype(np.int64)

    def vectors(self, label) -> list[tuple[float, ...]]:
        """A column of lists of finite numbers such as ``[0.1,-2]`` or ``[]``."""
        return [self._vector(label, str(value)) for value in self.block[label]]

    def _vector(self, label, text):
        parts = text[1:-1].split(",") if text != "[]" else []
        if text[:1] == "[" and text[-1:] == "]" and all(map(_is_number, parts)):
            numbers = tuple(map(float, parts))
            if np.isfinite(numbers).all():
                return numbers
        raise InputFileError(self.path, f"finite numbers such as [0.1,-2] in {label}", repr(text[:40]))

    def texts(self, label) -> list[str]:
        """A column of names, which may look like numbers."""
        return [str(value) for value in self.block[label]]

    def refuse_misspelt(self, labels):
        """Raise `InputFileError` if one of `labels` is absent and one that looks very much like it is there."""
        unknown = [label for label in self.block if label not in labels]
        for label in labels:
            # Short names resemble too many others.
            allowed = min(3, max(1, len(label) // 4))
            for other in unknown if label not in self.block else ():
                if len(other) == len(label) and sum(a != b for a, b in zip(label, other)) <= allowed:
                    raise InputFileError(self.path, f"the label {label} or one less like it", other)

    def together(self, *labels) -> bool:
        """Whether all of `labels` are there; only some of them is an `InputFileError`."""
        missing = [label for label in labels if label not in self.block]
        if missing and len(missing) < len(labels):
            present = next(label for label in labels if label in self.block)
            raise InputFileError(self.path, f"{present} together with {missing[0]}", f"no {missing[0]}")
        return not missing


def _is_number(text) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def pose_values(columns: Columns, labels: dict[str, str], scale=1.0) -> dict[str, Any]:
    """Angles and shifts.

    Parameters
    ----------
    columns : Columns
    labels : dict
        The dialect's labels of rot, tilt, psi, shift_x and shift_y.
    scale : float or (n,) array
        What the shifts are divided by to be in px.
    """
    values: dict[str, Any] = {}
    if columns.together(labels["rot"], labels["tilt"]) and labels["psi"] not in columns:
        raise InputFileError(columns.path, f"{labels['rot']} together with {labels['psi']}", f"no {labels['psi']}")
    columns.together(labels["shift_x"], labels["shift_y"])
    for name, label in labels.items():
        if label in columns:
            values[name] = columns.numbers(label) / (scale if name.startswith("shift") else 1.0)
    values["has_pose"] = labels["psi"] in columns
    return values
