"""The optional folder of reference data: public files and outputs of the original programs."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("XMIPP_ACCEL_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(name: str) -> Path:
    """Path of a reference file; the calling test is skipped where the folder is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data: {SHARED} does not exist (set XMIPP_ACCEL_SHARED)")
    path = SHARED / name
    assert path.exists(), f"the reference folder {SHARED} lacks {name}"
    return path
