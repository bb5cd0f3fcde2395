"""The labels of Xmipp's metadata files (.xmd, .doc)."""

from __future__ import annotations

from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.columns import Columns, pose_values

_POSE = dict(rot="angleRot", tilt="angleTilt", psi="anglePsi", shift_x="shiftX", shift_y="shiftY")
_DEFOCUS = dict(defocus_u="ctfDefocusU", defocus_v="ctfDefocusV", defocus_angle="ctfDefocusAngle")
_OPTICS = dict(voltage="ctfVoltage", cs="ctfSphericalAberration", amplitude_contrast="ctfQ0")
# In degrees; the first is what Xmipp writes.
_PHASE_SHIFT = ("ctfVPPphaseshift", "ctfPhaseShift")
_SAMPLING = ("ctfSamplingRate", "samplingRate")
# Not a label of Xmipp, which reads over labels that it does not know.
_HALF = "randomSubset"
_LABELS = {*_POSE.values(), *_DEFOCUS.values(), *_OPTICS.values(), *_PHASE_SHIFT, *_SAMPLING, _HALF}
_LABELS |= {"image", "itemId", "enabled", "flip", "ref", "weight"}


def particle_values(path, blocks) -> dict[str, Any]:
    """Values for `Particles` by the names of its fields, and the image names as ``image``."""
    found = [name for name, block in blocks.items() if "image" in block]
    if len(found) != 1:
        expected = "one table with a column image"
        raise InputFileError(path, expected, f"{len(found)} in the blocks {', '.join(blocks)}")
    columns = Columns(path, blocks[found[0]])
    columns.refuse_misspelt(_LABELS)
    values: dict[str, Any] = dict(image=columns.texts("image"))
    values.update(pose_values(columns, _POSE))
    values.update(_ctf(columns))
    for name, label in dict(item_id="itemId", class_id="ref").items():
        if label in columns:
            values[name] = columns.whole(label)
    if "enabled" in columns:
        values["enabled"] = columns.whole("enabled", (-1, 0, 1)) > 0
    if "flip" in columns:
        values["flip"] = columns.whole("flip", (0, 1)) > 0
    if "weight" in columns:
        values["weight"] = columns.numbers("weight")
    if _HALF in columns:
        values["half"] = columns.whole(_HALF, (0, 1, 2))
    for label in _SAMPLING:
        if label in columns:
            values["sampling_rate"] = _one_rate(path, label, columns.numbers(label))
            break
    values["extra"] = _extra(columns)
    return values


def _ctf(columns):
    values: dict[str, Any] = {}
    if columns.together(*_DEFOCUS.values()):
        values.update({name: columns.numbers(label) for name, label in _DEFOCUS.items()})
    for name, label in _OPTICS.items():
        if label in columns:
            values[name] = columns.numbers(label)
        elif "defocus_u" in values:
            raise InputFileError(columns.path, f"{label} together with ctfDefocusU", f"no {label}")
    if "amplitude_contrast" in values:
        # Old versions of Xmipp wrote it negative.
        values["amplitude_contrast"] = np.abs(values["amplitude_contrast"])
    for label in _PHASE_SHIFT:
        if label in columns:
            values["phase_shift"] = columns.numbers(label)
            break
    values["has_ctf"] = "defocus_u" in values
    return values


def _one_rate(path, label, rates) -> float:
    if rates.size and not rates.min() > 0:
        raise InputFileError(path, f"{label} above 0", f"{rates.min():g}")
    if rates.size and rates.max() > rates.min() * 1.001:
        raise InputFileError(path, f"one {label} for all particles", f"{rates.min():g} to {rates.max():g}")
    return float(np.median(rates)) if rates.size else 0.0


def _extra(columns) -> dict[str, np.ndarray]:
    block = columns.block
    return {
        label: block[label] for label in block if label not in _LABELS and isinstance(block[label], np.ndarray)
    }


def particle_blocks(particles, names) -> dict[str, dict[str, Any]]:
    """The one block of an Xmipp metadata file, in which all images have the same size."""
    particles.require_uniform()
    rows: dict[str, Any] = {
        "image": names,
        "itemId": particles.item_id,
        "enabled": np.where(particles.enabled, 1, -1),
    }
    if particles.has_pose:
        rows.update({label: getattr(particles, name) for name, label in _POSE.items()})
        rows["flip"] = particles.flip
    if particles.class_id.any():
        rows["ref"] = particles.class_id
    rows["weight"] = particles.weight
    if particles.half.any():
        rows[_HALF] = particles.half
    if particles.has_ctf:
        for name, label in dict(_DEFOCUS, **_OPTICS).items():
            rows[label] = getattr(particles, name)
        rows[_PHASE_SHIFT[0]] = particles.phase_shift
    if particles.sampling_rate:
        rows[_SAMPLING[0]] = np.full(len(particles), particles.sampling_rate)
    return {"particles": dict(rows, **particles.extra)}
