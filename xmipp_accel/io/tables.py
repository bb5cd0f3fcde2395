"""STAR files of RELION and metadata files (.xmd) of Xmipp, as columns by name.

Strict where a damaged file would otherwise give wrong numbers: every row needs a value for each column, and the
last one its end of line. emtable, which Scipion uses, drops surplus values, finds a block by the beginning of its
name and fixes a column's type by its first value; it serves as a second opinion in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.files import read_text
from xmipp_accel.io.publish import atomic_path

_TOKEN = re.compile(r"""'([^']*)'(?=\s|$)|"([^"]*)"(?=\s|$)|(\S+)""")
_LABEL = re.compile(r"_[A-Za-z][A-Za-z0-9_.\-]*")
_HEADS = "'", '"', "#", "_", "data_", "loop_"  # of values that need quotation marks
_LINES = 1024  # at once
_END = "\0"  # of a line: no file of text holds it


def read_blocks(path) -> dict[str, dict[str, Any]]:
    """Read all blocks of a STAR or XMD file.

    Returns
    -------
    dict
        By block name (without ``data_``) the columns by label (without the underscore): an int64 or float64 array
        where all values are such numbers, else a list of str. Blocks without ``loop_`` have columns of length 1.

    Raises
    ------
    InputFileError
        With the number of the line that does not fit.
    """
    return parse_blocks(path, read_text(path))


def parse_blocks(path, text) -> dict[str, dict[str, Any]]:
    """As :func:`read_blocks`, of a file's text; `path` is what errors name."""
    parser = _Parser(path)
    *lines, rest = text.split("\n")
    for first in range(0, len(lines), _LINES):
        stretch = lines[first : first + _LINES]
        if not parser.rows_at_once(stretch):
            for number, line in enumerate(stretch, start=first + 1):
                parser.line(number, line)
    if rest.strip() and not rest.lstrip().startswith("#"):
        raise InputFileError(
            path, "a line end after the last value", "a last line without, as in a file cut short"
        )
    parser.end_block()
    if not parser.blocks:
        raise InputFileError(path, "a line that begins with data_", "none")
    return parser.blocks


class _Parser:
    def __init__(self, path):
        self.path = path
        self.blocks: dict[str, dict[str, Any]] = {}
        self.name = None
        self._start_block()

    def _start_block(self):
        self.labels: list[str] = []
        self.columns: list[list[str]] = []  # begun by the first row
        self.values: list[str] = []
        self.loop = False

    def fail(self, number, expected, found):
        raise InputFileError(self.path, f"{expected} in line {number}", found)

    def line(self, number, line):
        line = line.strip()
        if not line or line[0] == "#":
            return
        if line.startswith("data_"):
            self._block(number, line)
        elif self.name is None:
            self.fail(number, "a comment or data_ before the first block", repr(line[:40]))
        elif line == "loop_":
            if self.loop or self.labels:
                self.fail(number, "one table a block", "another loop_")
            self.loop = True
        elif line[0] == "_" and not self.columns:
            self._label(number, line)
        elif self.loop and self.labels:
            self._row(number, line)
        else:
            self.fail(number, "loop_ or a label", repr(line[:40]))

    def _block(self, number, line):
        self.end_block()
        name = line[5:]
        if name in self.blocks or len(line.split()) != 1:
            self.fail(number, "a new block name", repr(line[:40]))
        self.name = name
        self._start_block()

    def _label(self, number, line):
        tokens = self._split(number, line)
        if not _LABEL.fullmatch(tokens[0]) or tokens[0][1:] in self.labels:
            self.fail(number, "a new label", repr(tokens[0][:40]))
        if len(tokens) != (1 if self.loop else 2):
            self.fail(number, "a label" if self.loop else "a label and its value", repr(line[:40]))
        if self.loop and "@" in line:
            self.fail(number, "a label", f"an image name behind it: {line[:60]!r}")
        self.labels.append(tokens[0][1:])
        self.values.extend(tokens[1:])

    def _row(self, number, line):
        row = self._split(number, line)
        if len(row) != len(self.labels):
            self.fail(number, f"{len(self.labels)} values", f"{len(row)}")
        self._append(row[place : place + 1] for place in range(len(row)))

    def _append(self, parts):
        self.columns = self.columns or [[] for _ in self.labels]
        for column, part in zip(self.columns, parts):
            column.extend(part)

    def rows_at_once(self, lines) -> bool:
        """Take lines of a table that has begun, or none of them where one may be anything but a plain row."""
        if not self.columns:
            return False
        text = f" {_END} ".join([*lines, ""])
        tokens, width = text.split(), len(self.labels) + 1
        heads = "\n".join(["", *tokens[::width]])
        plain = not any(mark in text for mark in "'\"#") and "\ndata_" not in heads and "\nloop_" not in heads
        # With an end wherever one is expected, and no others, every line has its number of values.
        if not (plain and len(tokens) == width * len(lines) == width * tokens[width - 1 :: width].count(_END)):
            return False
        self._append(tokens[place::width] for place in range(width - 1))
        return True

    def _split(self, number, line) -> list[str]:
        if not ("'" in line or '"' in line or "#" in line):
            return line.split()
        tokens = []
        for match in _TOKEN.finditer(line):
            bare = match.group(3)
            if bare is None:
                tokens.append(match.group(1) if match.group(1) is not None else match.group(2))
            elif bare[0] == "#":
                break
            elif bare[0] in "'\"":
                self.fail(number, "a closing quotation mark", repr(bare[:40]))
            else:
                tokens.append(bare)
        return tokens

    def end_block(self):
        if self.name is None:
            return
        if self.loop and not self.labels:
            raise InputFileError(self.path, f"labels after loop_ in block {self.name!r}", "none")
        if self.loop:
            columns = self.columns or [[] for _ in self.labels]
        else:
            columns = [[value] for value in self.values]
        self.blocks[self.name] = {label: _typed(column) for label, column in zip(self.labels, columns)}


def _typed(column):
    # Python's numbers may contain underscores and foreign digits; those of STAR files may not.
    text = "".join(column)
    if column and text.isascii() and "_" not in text:
        for kind, dtype in ((int, np.int64), (float, np.float64)):
            try:
                return np.fromiter(map(kind, column), dtype, len(column))
            except (ValueError, OverflowError):
                continue
    return column


def write_blocks(path, blocks: Mapping[str, Mapping[str, Any]]):
    """Publish blocks of columns in the form of RELION (.star) or Xmipp (.xmd, .doc).

    Parameters
    ----------
    path : str or os.PathLike
    blocks : mapping
        As :func:`read_blocks` returns them; floats are written with 12 significant digits.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".star", ".xmd", ".doc"):
        raise ParameterError(f"{path}: expected a name that ends in .star, .xmd or .doc")
    with atomic_path(path) as temporary:
        temporary.write_text(format_blocks(path, blocks, xmipp=suffix != ".star"), encoding="utf-8")


def format_blocks(path, blocks: Mapping[str, Mapping[str, Any]], xmipp=False) -> str:
    """The text of :func:`write_blocks`; `path` is what errors name."""
    parts = ["# XMIPP_STAR_1 * \n# \n"] if xmipp else []
    for name, columns in blocks.items():
        # RELION reads a file without this comment as one of version 3.0.
        parts.append(f"data_{name}\nloop_\n" if xmipp else f"\n# version 30001\n\ndata_{name}\n\nloop_\n")
        parts.append(_table_text(path, name, columns, xmipp))
    return "".join(parts)


def _table_text(path, name, columns, xmipp) -> str:
    if len({len(column) for column in columns.values()}) != 1:
        raise ParameterError(f"{path}: expected columns of one length in block {name!r}")
    labels = [f" _{label}\n" if xmipp else f"_{label} #{n}\n" for n, label in enumerate(columns, start=1)]
    texts = [_texts(path, column, "'" if xmipp else '"') for column in columns.values()]
    rows = [" " + " ".join(row) + "\n" for row in zip(*texts)]
    return "".join(labels) + "".join(rows) + "\n"


def _texts(path, column, quote) -> list[str]:
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        if column.dtype.kind == "f":
            return [f"{value:.12g}" for value in column.tolist()]
        return [str(int(value)) for value in column.tolist()]
    return column if _are_plain(column) else [_text(path, value, quote) for value in column]


def _are_plain(column) -> bool:
    """Whether :func:`_text` would leave every value as it is."""
    if set(map(type, column)) != {str}:
        return False
    text = "\n".join(["", *column])
    return text.split() == list(column) and not any("\n" + head in text for head in _HEADS)


def _text(path, value, quote) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.12g}"
    text = str(int(value)) if isinstance(value, (bool, np.bool_)) else str(value)
    if "\n" in text or "\r" in text:
        raise ParameterError(f"{path}: a value contains a line end: {text[:40]!r}")
    if text and not re.search(r"\s", text) and not text.startswith(_HEADS):
        return text
    for mark in (quote, '"', "'"):
        if mark not in text:
            return mark + text + mark
    raise ParameterError(f"{path}: a value contains both quotation marks: {text[:40]!r}")
