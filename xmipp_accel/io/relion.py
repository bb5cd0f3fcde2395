"""The labels of RELION's STAR files: 3.0, where each row holds everything, and 3.1 to 5, with optics groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.columns import Columns, pose_values

_POSE = dict(rot="rlnAngleRot", tilt="rlnAngleTilt", psi="rlnAnglePsi")
_DEFOCUS = dict(defocus_u="rlnDefocusU", defocus_v="rlnDefocusV", defocus_angle="rlnDefocusAngle")
_OPTICS = dict(voltage="rlnVoltage", cs="rlnSphericalAberration", amplitude_contrast="rlnAmplitudeContrast")
_OPTICS_LABELS = (*_OPTICS.values(), "rlnOpticsGroup", "rlnImagePixelSize", "rlnPhaseShift")
_PARTICLE_LABELS = (*_POSE.values(), *_DEFOCUS.values(), *_OPTICS_LABELS, "rlnClassNumber", "rlnRandomSubset")
_PARTICLE_LABELS += (
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "rlnOriginXAngst",
    "rlnOriginYAngst",
    "xmippWeight",
)
SAMPLING_TOLERANCE = 1e-3


def particle_values(path, blocks) -> dict[str, Any]:
    """Values for `Particles` by the names of its fields, and the image names as ``image``."""
    columns = Columns(path, _particle_block(path, blocks))
    columns.refuse_misspelt(_PARTICLE_LABELS)
    optics = _optics(path, blocks, columns)
    sampling = _sampling(columns, optics)
    values: dict[str, Any] = dict(image=columns.texts("rlnImageName"))
    values.update(_pose(columns, sampling))
    values.update(_ctf(columns, optics))
    if "rlnRandomSubset" in columns:
        values["half"] = columns.whole("rlnRandomSubset", (0, 1, 2))
    if "rlnClassNumber" in columns:
        values["class_id"] = columns.whole("rlnClassNumber")
    if "xmippWeight" in columns:
        values["weight"] = columns.numbers("xmippWeight")
    if sampling is not None and columns.count:
        values["sampling_rate"] = _one_rate(path, sampling)
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


def _optics(path, blocks, columns):
    """The optics table spread over the particles, or None in RELION 3.0."""
    table = blocks.get("optics")
    if table is None:
        if "rlnOpticsGroup" in columns and "rlnDetectorPixelSize" not in columns:
            raise InputFileError(path, "a block data_optics, since particles have rlnOpticsGroup", "none")
        return None
    table = Columns(path, table)
    table.refuse_misspelt(_OPTICS_LABELS)
    for owner, name in ((table, "data_optics"), (columns, "the particles' table")):
        if "rlnOpticsGroup" not in owner:
            raise InputFileError(path, f"rlnOpticsGroup in {name}", "none")
    groups = table.whole("rlnOpticsGroup").tolist()
    if len(set(groups)) != len(groups):
        raise InputFileError(path, "different numbers of optics groups", f"{groups}")
    rows = {group: row for row, group in enumerate(groups)}
    wanted = columns.whole("rlnOpticsGroup").tolist()
    missing = next((group for group in wanted if group not in rows), None)
    if missing is not None:
        raise InputFileError(path, f"optics group {missing} in data_optics", f"groups {groups}")
    places = np.array([rows[group] for group in wanted], dtype=np.int64)
    numeric = {label: values for label, values in table.block.items() if isinstance(values, np.ndarray)}
    return Columns(path, {label: values[places] for label, values in numeric.items()})


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


def _one_rate(path, sampling) -> float:
    lowest, highest = float(sampling.min()), float(sampling.max())
    if not lowest > 0:
        raise InputFileError(path, "a pixel size above 0", f"{lowest:g}")
    if highest > lowest * (1 + SAMPLING_TOLERANCE):
        raise InputFileError(path, "one pixel size for all particles", f"{lowest:g} to {highest:g} A/px")
    return round(float(np.median(sampling)), 6)


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
    for name, label in dict(_OPTICS, phase_shift="rlnPhaseShift").items():
        source = _source(columns, optics, label)
        if source is not None:
            values[name] = source.numbers(label)
        elif values.get("defocus_u") is not None and name != "phase_shift":
            raise InputFileError(columns.path, f"{label} together with rlnDefocusU", f"no {label}")
    values["has_ctf"] = "defocus_u" in values
    return values


def particle_blocks(particles, names) -> dict[str, dict[str, Any]]:
    """Blocks of RELION 3.1: particles of equal optics form a group."""
    optics = np.stack([particles.voltage, particles.cs, particles.amplitude_contrast], axis=1)
    distinct, group = np.unique(optics, axis=0, return_inverse=True)
    numbers = np.arange(1, len(distinct) + 1)
    table: dict[str, Any] = {
        "rlnOpticsGroupName": [f"opticsGroup{number}" for number in numbers],
        "rlnOpticsGroup": numbers,
        **{label: distinct[:, column] for column, label in enumerate(_OPTICS.values())},
    }
    if particles.sampling_rate:
        table["rlnImagePixelSize"] = np.full(len(numbers), particles.sampling_rate)
    if len(particles):
        table["rlnImageSize"] = np.full(len(numbers), particles.box)
    table["rlnImageDimensionality"] = np.full(len(numbers), 2)
    rows: dict[str, Any] = {"rlnImageName": names, "rlnOpticsGroup": group.reshape(-1) + 1}
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
    scale = particles.sampling_rate or 1.0
    suffix = "Angst" if particles.sampling_rate else ""
    return {
        "rlnAngleRot": particles.rot,
        "rlnAngleTilt": particles.tilt + np.where(flip, 180.0, 0.0),
        "rlnAnglePsi": sign * particles.psi,
        f"rlnOriginX{suffix}": sign * particles.shift_x * scale,
        f"rlnOriginY{suffix}": particles.shift_y * scale,
    }
