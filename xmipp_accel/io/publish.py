"""Files appear under their final name complete or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.files import read_text


@contextlib.contextmanager
def atomic_path(final) -> Iterator[Path]:
    """Give a temporary path, which becomes `final` when the block ends without an error.

    The temporary file has the same folder, so that the renaming is atomic, and the same suffix, which may tell the
    format to a writer. It is flushed to the disk before the renaming and removed if anything fails.

    Parameters
    ----------
    final : str or os.PathLike
        Replaced if it exists; its folder must exist.
    """
    final = Path(final)
    # Nothing of the final name goes into the temporary one: together they could exceed the limit of 255 bytes.
    temporary = final.parent / f".{uuid.uuid4().hex}{final.suffix}"
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(final.parent)


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path, content: dict[str, Any]):
    """Publish plain values as JSON; NaN and infinity, which JSON does not know, are a `ValueError`."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote; `InputFileError` if it is not a JSON object."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputFileError(path, "JSON", str(error)) from error
    if not isinstance(content, dict):
        raise InputFileError(path, "a JSON object", type(content).__name__)
    return content
