"""The labels of RELION's STAR files: 3.0, where each row holds everything, and 3.1 to 5, with optics groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.columns import Columns, pose_values
from xmipp_accel.io.relion_optics import BEAM_TILT, OPTICS, group_values, read_table, spread, table_columns

_POSE = dict(rot="rlnAngleRot", tilt="rlnAngleTilt", psi="rlnAnglePsi")
_DEFOCUS = dict(defocus_u="rlnDefocusU", defocus_v="rlnDefocusV", defocus_angle="rlnDefocusAngle")
# How well a particle agrees with its reference; other columns are not kept.
SCORES = "maxCC", "rlnMaxValueProbDistribution", "rlnLogLikeliContribution"
_PARTICLE_LABELS = (*_POSE.values(), *_DEFOCUS.values(), *OPTICS.values(), "rlnClassNumber", "rlnRandomSubset")
_PARTICLE_LABELS += (
    *BEAM_TILT,
    "rlnOpticsGroup",
    "rlnImagePixelSize",
    "rlnPhaseShift",
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "xmippWeight",
)


def particle_values(path, blocks) -> dict[str, Any]:
    """Values for `Particles` by the names of its fields, and the image names as ``image``."""
    columns = Columns(path, _particle_block(path, blocks))
    columns.refuse_misspelt(_PARTICLE_LABELS)
    table = read_table(path, blocks, columns)
    optics = None if table is None else spread(table, columns)
    sampling = _sampling(columns, optics)
    values: dict[str, Any] = dict(image=columns.texts("rlnImageName"))
    values.update(_pose(columns, sampling))
    values.update(_ctf(columns, optics))
    if "rlnRandomSubset" in columns:
        values["half"] = columns.whole("rlnRandomSubset", (0, 1, 2))
    values["extra"] = {label: columns.numbers(label) for label in SCORES if label in columns}
    if "rlnClassNumber" in columns:
        values["class_id"] = columns.whole("rlnClassNumber")
    if "xmippWeight" in columns:
        values["weight"] = columns.numbers("xmippWeight")
    values.update(group_values(columns, table, sampling))
    return values


def _particle_block(path, blocks):
    found = [name for name, block in blocks.items() if "rlnImageName" in block]
    if len(found) == 1:
        block = blocks[found[0]]
        if any(label.startswith("rlnTomo") for label in block):
            raise InputFileError(path, "single particles", "a subtomogram table (labels that begin with rlnTomo)")
        return block
    if found:
        raise InputFileError(path, "one table with rlnImageName", f"{len(found)}: {', '.join(found)}")
    labels = {label for block in blocks.values() for label in block}
    if any(label.startswith("rlnTomo") for label in labels):
        raise InputFileError(path, "single particles", "a tomography file (labels that begin with rlnTomo)")
    raise InputFileError(path, "a table with rlnImageName", f"the blocks {', '.join(blocks)}")


def _source(columns, optics, label):
    """Where a value stands: in the row, else in the optics group."""
    if label in columns:
        return columns
    return optics if optics is not None and label in optics else None


def _sampling(columns, optics):
    """A/px of each particle, None if unknown."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        source = _source(columns, optics, label)
        if source is not None:
            return source.numbers(label)
    if "rlnDetectorPixelSize" in columns and "rlnMagnification" in columns:
        magnification = columns.numbers("rlnMagnification")
        if not (magnification > 0).all():
            raise InputFileError(columns.path, "rlnMagnification above 0", f"{magnification.min():g}")
        return 1e4 * columns.numbers("rlnDetectorPixelSize") / magnification
    return None


def _pose(columns, sampling):
    if columns.together("rlnOriginXAngst", "rlnOriginYAngst"):
        if sampling is None or not (sampling > 0).all():
            raise InputFileError(columns.path, "a pixel size for rlnOriginXAngst", "none")
        return pose_values(columns, dict(_POSE, shift_x="rlnOriginXAngst", shift_y="rlnOriginYAngst"), sampling)
    return pose_values(columns, dict(_POSE, shift_x="rlnOriginX", shift_y="rlnOriginY"))


def _ctf(columns, optics):
    values: dict[str, Any] = {}
    if columns.together(*_DEFOCUS.values()):
        values.update({name: columns.numbers(label) for name, label in _DEFOCUS.items()})
    for name, label in dict(OPTICS, phase_shift="rlnPhaseShift").items():
        source = _source(columns, optics, label)
        if source is not None:
            values[name] = source.numbers(label)
        elif values.get("defocus_u") is not None and name != "phase_shift":
            raise InputFileError(columns.path, f"{label} together with rlnDefocusU", f"no {label}")
    values["has_ctf"] = "defocus_u" in values
    return values


def particle_blocks(particles, names) -> dict[str, dict[str, Any]]:
    """Blocks of RELION 3.1."""
    table, numbers = table_columns(particles)
    rows: dict[str, Any] = {"rlnImageName": names, "rlnOpticsGroup": numbers}
    rows.update(_pose_columns(particles) if particles.has_pose else {})
    if particles.has_ctf:
        rows.update({label: getattr(particles, name) for name, label in _DEFOCUS.items()})
        rows["rlnPhaseShift"] = particles.phase_shift
    if particles.half.any():
        rows["rlnRandomSubset"] = particles.half
    if particles.class_id.any():
        rows["rlnClassNumber"] = particles.class_id
    if (particles.weight != 1).any():
        rows["xmippWeight"] = particles.weight
    return {"optics": table, "particles": dict(rows, **particles.extra)}


def _pose_columns(particles):
    flip = particles.flip
    sign = np.where(flip, -1.0, 1.0)
    scale = particles.sampling_rates if particles.sampling_rate else 1.0
    suffix = "Angst" if particles.sampling_rate else ""
    return {
        "rlnAngleRot": particles.rot,
        "rlnAngleTilt": particles.tilt + np.where(flip, 180.0, 0.0),
        "rlnAnglePsi": sign * particles.psi,
        f"rlnOriginX{suffix}": sign * particles.shift_x * scale,
        f"rlnOriginY{suffix}": particles.shift_y * scale,
    }
