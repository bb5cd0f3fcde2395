"""The optics groups of RELION's STAR files: a table of their own since 3.1, columns of the particles in 3.0."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.columns import Columns
from xmipp_accel.io.optics_groups import IDENTITY, SAMPLING_TOLERANCE, OpticsGroup
from xmipp_accel.io.tables import format_blocks, parse_blocks

OPTICS = dict(voltage="rlnVoltage", cs="rlnSphericalAberration", amplitude_contrast="rlnAmplitudeContrast")
BEAM_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_ZERNIKE = dict(odd_zernike="rlnOddZernike", even_zernike="rlnEvenZernike")
_PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
_LABELS = (*OPTICS.values(), "rlnOpticsGroup", "rlnImagePixelSize", "rlnPhaseShift", "rlnOpticsGroupName")
_LABELS += ("rlnImageSize", *BEAM_TILT, *_MAGNIFICATION, *_ZERNIKE.values(), _PREMULTIPLIED)


def read_table(path, blocks, columns) -> Columns | None:
    """The optics table, in which each particle's group is found, or None in RELION 3.0."""
    if "optics" not in blocks:
        if "rlnOpticsGroup" in columns and "rlnDetectorPixelSize" not in columns:
            raise InputFileError(path, "a block data_optics, since particles have rlnOpticsGroup", "none")
        return None
    table = Columns(path, blocks["optics"])
    table.refuse_misspelt(_LABELS)
    for owner, name in ((table, "data_optics"), (columns, "the particles' table")):
        if "rlnOpticsGroup" not in owner:
            raise InputFileError(path, f"rlnOpticsGroup in {name}", "none")
    numbers = table.whole("rlnOpticsGroup").tolist()
    if len(set(numbers)) != len(numbers):
        raise InputFileError(path, "different numbers of optics groups", f"{numbers}")
    missing = np.setdiff1d(columns.whole("rlnOpticsGroup"), numbers)
    if missing.size:
        raise InputFileError(path, f"optics group {missing[0]} in data_optics", f"groups {numbers}")
    return table


def spread(table, columns) -> Columns:
    """The table's numbers as columns of the particles."""
    rows = {number: row for row, number in enumerate(table.whole("rlnOpticsGroup").tolist())}
    places = np.array([rows[number] for number in columns.whole("rlnOpticsGroup").tolist()], dtype=np.int64)
    numeric = {label: values for label, values in table.block.items() if isinstance(values, np.ndarray)}
    return Columns(table.path, {label: values[places] for label, values in numeric.items()})


def group_values(columns, table, sampling) -> dict[str, Any]:
    """Optics groups and sampling rate for `Particles`; `sampling` is each particle's A/px, or None.

    In RELION 3.0 particles of equal beam tilt form a group.
    """
    if not columns.count:
        return {}
    if table is not None:
        numbers = columns.whole("rlnOpticsGroup")
        return dict(optics_group=numbers, groups=_groups_of_table(table, numbers, sampling))
    rate = _one_rate(columns.path, sampling, "all particles")
    if not columns.together(*BEAM_TILT):
        return dict(sampling_rate=rate)
    tilts = list(zip(*(columns.numbers(label).tolist() for label in BEAM_TILT)))
    known = {tilt: number for number, tilt in enumerate(dict.fromkeys(tilts), start=1)}
    return dict(
        optics_group=np.array([known[tilt] for tilt in tilts]),
        groups={n: OpticsGroup(f"opticsGroup{n}", rate, beam_tilt=tilt) for tilt, n in known.items()},
        sampling_rate=rate,
    )


def attached_values(source, text, block, sampling_rate) -> dict[str, Any]:
    """Values for `Particles` of the optics that a set carries with it, in the way of Scipion's plugin for RELION.

    Pixel and box sizes in such a table may be those of the micrographs, or from before the particles were scaled:
    the set's `sampling_rate` counts, unless the groups differ, and the boxes of the images.

    Parameters
    ----------
    source : str
        What errors name.
    text : str
        A STAR file's optics table, or empty.
    block : dict
        The particles' ``rlnOpticsGroup``, and ``rlnBeamTiltX`` and ``rlnBeamTiltY`` if they have them.
    sampling_rate : float
        A/px.

    Raises
    ------
    InputFileError
        The table cannot be read, lacks a group, or no group of several pixel sizes has that of the set.
    """
    columns = Columns(source, block)
    rates = np.full(columns.count, sampling_rate)
    if not text:
        tilted = columns.together(*BEAM_TILT)
        return group_values(columns, None, rates) if tilted else {"optics_group": columns.whole("rlnOpticsGroup")}
    table = read_table(source, parse_blocks(source, text), columns)
    optics = spread(table, columns)
    if "rlnImagePixelSize" in optics and _differ(own := optics.numbers("rlnImagePixelSize")):
        if not (np.abs(own - sampling_rate) <= SAMPLING_TOLERANCE * sampling_rate).any():
            found = ", ".join(f"{rate:g}" for rate in np.unique(own))
            raise InputFileError(source, f"an optics group at the set's {sampling_rate:g} A/px", f"{found} A/px")
        rates = own
    values = group_values(columns, table, rates)
    values["groups"] = {n: dataclasses.replace(group, box=0) for n, group in values["groups"].items()}
    for name, label in OPTICS.items():
        if label in optics and _differ(optics.numbers(label)):
            values[name] = optics.numbers(label)
    return values


def attached_text(particles) -> tuple[str, np.ndarray]:
    """The text that :func:`attached_values` reads, and the number of each particle's group."""
    table, numbers = table_columns(particles)
    for label, values in table.items():
        if getattr(values, "dtype", None) == np.float64:
            # emtable, by which RELION's plugin reads it, takes a column for whole numbers if the first is one.
            table[label] = list(map(repr, values.tolist()))
    return format_blocks("optics groups", {"optics": table}), numbers


def _differ(values) -> bool:
    return values.max() - values.min() > SAMPLING_TOLERANCE * np.abs(values).max()


def _groups_of_table(table, numbers, sampling):
    count = table.count
    names = table.texts("rlnOpticsGroupName") if "rlnOpticsGroupName" in table else [""] * count
    boxes = table.whole("rlnImageSize") if "rlnImageSize" in table else np.zeros(count, int)
    premultiplied = table.whole(_PREMULTIPLIED, (0, 1)) if _PREMULTIPLIED in table else np.zeros(count, int)
    magnifications = _matrices(table)
    tilts = np.zeros((count, 2))
    if table.together(*BEAM_TILT):
        tilts = np.stack([table.numbers(label) for label in BEAM_TILT], axis=1)
    zernike = {name: table.vectors(label) for name, label in _ZERNIKE.items() if label in table}
    groups = {}
    for row, number in enumerate(table.whole("rlnOpticsGroup").tolist()):
        members = numbers == number
        if members.any():
            own = None if sampling is None else sampling[members]
            groups[number] = OpticsGroup(
                name=names[row] or f"opticsGroup{number}",
                sampling_rate=_one_rate(table.path, own, f"optics group {number}"),
                box=int(boxes[row]),
                magnification=magnifications[row],
                beam_tilt=tilts[row],
                premultiplied=bool(premultiplied[row]),
                **{name: values[row] for name, values in zernike.items()},
            )
    return groups


def _matrices(table):
    """Magnification matrices (n, 2, 2) of the groups."""
    if not table.together(*_MAGNIFICATION):
        return np.tile(np.eye(2), (table.count, 1, 1))
    matrices = np.stack([table.numbers(label) for label in _MAGNIFICATION], axis=1).reshape(-1, 2, 2)
    singular = np.abs(np.linalg.det(matrices)) < 1e-6
    if singular.any():
        found = f"{matrices[singular][0].ravel().tolist()} in row {np.argmax(singular) + 1} of data_optics"
        raise InputFileError(table.path, "an invertible matrix in rlnMagMat00 to rlnMagMat11", found)
    return matrices


def _one_rate(path, sampling, owner) -> float:
    if sampling is None:
        return 0.0
    lowest, highest = float(sampling.min()), float(sampling.max())
    if not lowest > 0:
        raise InputFileError(path, "a pixel size above 0", f"{lowest:g}")
    if highest > lowest * (1 + SAMPLING_TOLERANCE):
        raise InputFileError(path, f"one pixel size for {owner}", f"{lowest:g} to {highest:g} A/px")
    return round(float(np.median(sampling)), 6)


def table_columns(particles) -> tuple[dict[str, Any], np.ndarray]:
    """The optics table of particles, and the number of each particle's group.

    A group whose particles differ in voltage, spherical aberration or amplitude contrast is written as several, of
    which the first keeps its number.
    """
    keys = [particles.optics_group, *(getattr(particles, name) for name in OPTICS)]
    distinct, places = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    origin = distinct[:, 0].astype(np.int64)
    first = np.r_[True, origin[1:] != origin[:-1]][: len(origin)]
    numbers = origin.copy()
    numbers[~first] = origin.max(initial=0) + np.arange(1, np.count_nonzero(~first) + 1)
    used = particles.used_groups()
    groups = [used[number] for number in origin.tolist()]
    table: dict[str, Any] = {
        "rlnOpticsGroupName": [
            group.name if whole else f"opticsGroup{number}" for group, whole, number in zip(groups, first, numbers)
        ],
        "rlnOpticsGroup": numbers,
        **{label: distinct[:, column] for column, label in enumerate(OPTICS.values(), start=1)},
    }
    rates = np.array([group.sampling_rate for group in groups])
    if rates.any():
        table["rlnImagePixelSize"] = rates
    if groups:
        table["rlnImageSize"] = np.array([group.box for group in groups])
    table["rlnImageDimensionality"] = np.full(len(groups), 2)
    table.update(_aberration_columns(groups))
    return table, numbers[places.reshape(-1)]


def _aberration_columns(groups):
    """Columns of what at least one group has."""
    columns: dict[str, Any] = {}
    if any(group.magnification != IDENTITY for group in groups):
        matrices = np.array([group.magnification for group in groups])
        columns.update(zip(_MAGNIFICATION, matrices.reshape(-1, 4).T))
    if any(any(group.beam_tilt) for group in groups):
        columns.update(zip(BEAM_TILT, np.array([group.beam_tilt for group in groups]).T))
    for name, label in _ZERNIKE.items():
        vectors = [getattr(group, name) for group in groups]
        if any(vectors):
            columns[label] = ["[" + ",".join(f"{value:.12g}" for value in vector) + "]" for vector in vectors]
    if any(group.premultiplied for group in groups):
        columns[_PREMULTIPLIED] = np.array([group.premultiplied for group in groups])
    return columns
