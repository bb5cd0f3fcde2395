"""The motion as Xmipp (.xmd) and RELION (.star) describe it."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from xmipp_accel.errors import InputFileError
from xmipp_accel.io.publish import atomic_path
from xmipp_accel.io.tables import read_blocks, write_blocks
from xmipp_accel.numerics import bspline

NOT_OBSERVED = -9999.0


def xmipp_coefficients(result):
    """B-spline (nt, ny, nx, 2) of the total motion in FlexAlign's basis.

    A control point for each frame and three more let it pass through every frame's translation exactly.
    """
    n = result.n_aligned
    local = result.control_points
    _, ny, nx = local.shape[:3] if local.size else (0, 4, 4)
    in_time = _through_every_frame(n)
    values = np.repeat(np.repeat(result.shifts[:, None, None], ny, axis=1), nx, axis=2).astype(np.float64)
    if local.size:
        values += np.einsum("ni,iyxc->nyxc", bspline.basis_matrix(np.arange(n), n, len(local)), local)
    return np.einsum("in,nyxc->iyxc", in_time, values)


@functools.lru_cache(maxsize=8)
def _through_every_frame(n):
    """Control points (n + 3, n) of the smallest spline through each of n values."""
    return np.linalg.pinv(bspline.basis_matrix(np.arange(n), n, n + 3))


def write_xmd(path, result, blank=()):
    """Write FlexAlign's three blocks; labels are spelt as Xmipp spells them.

    Frames are the movie's, also where these are sums of the file's, as Xmipp counts those of EER files.

    Parameters
    ----------
    path : path
    result : MovieAlignmentResult
    blank : sequence of int
        Aligned frames, counted from 0, that were left out; they are marked as not enabled.
    """
    coefficients = xmipp_coefficients(result)
    enabled = np.ones(result.n_frames, dtype=np.int64)
    enabled[: result.first_frame] = -1
    enabled[result.first_frame + result.n_aligned :] = -1
    enabled[result.first_frame + np.asarray(list(blank), dtype=np.int64)] = -1
    shifts = np.zeros((result.n_frames, 2))
    shifts[result.first_frame : result.first_frame + result.n_aligned] = result.shifts
    nt, ny, nx = coefficients.shape[:3]
    blocks: dict[str, dict[str, Any]] = {
        "referenceFrame": {"ref": [result.reference_frame]},
        "localAlignment": {
            "localAlignmentPatches": [_vector(result.quality.get(f"patches_{a}", 0) for a in "xy")],
            "localAlignmentCoeffsX": [_vector(coefficients[..., 1].ravel())],
            "localAlignmentCoeffsY": [_vector(coefficients[..., 0].ravel())],
            "localAlignmnentConf25Perc": [result.quality.get("local_motion_2.5", 0.0)],
            "localAlignmnentConf955Perc": [result.quality.get("local_motion_97.5", 0.0)],
            "localAlignmentControlPoints": [_vector((nx, ny, nt))],
        },
        "frameShifts": {
            "enabled": enabled,
            "image": [f"{k + 1:06d}@{result.movie}" for k in range(result.n_frames)],
            "shiftX": shifts[:, 1],
            "shiftY": shifts[:, 0],
            "weight": np.ones(result.n_frames),
        },
    }
    write_blocks(path, blocks)


def _vector(values):
    return " " + " ".join(f"{float(v):.9g}" for v in values) + " "


def read_xmd(path):
    """Read FlexAlign's blocks.

    Returns
    -------
    dict
        ``shifts`` (n, 2) as (y, x); ``enabled`` (n,) bool; ``reference_frame``; and, where the file has them,
        ``control_points`` (nt, ny, nx, 2) of the total motion.
    """
    blocks = read_blocks(path)
    for name, label in (("frameShifts", "shiftX"), ("frameShifts", "enabled"), ("referenceFrame", "ref")):
        if label not in blocks.get(name, {}):
            raise InputFileError(path, f"{label} in a block {name}", f"the blocks {', '.join(blocks)}")
    frames = blocks["frameShifts"]
    motion = {
        "shifts": np.stack([frames["shiftY"], frames["shiftX"]], axis=1).astype(np.float64),
        "enabled": np.asarray(frames["enabled"]) > 0,
        "reference_frame": int(blocks["referenceFrame"]["ref"][0]),
    }
    if "localAlignment" in blocks:
        local = {key: np.array(str(column[0]).split(), dtype=np.float64) for key, column in _vectors(blocks)}
        nx, ny, nt = local["localAlignmentControlPoints"].astype(int)
        parts = [local[f"localAlignmentCoeffs{axis}"].reshape(nt, ny, nx) for axis in "YX"]
        motion["control_points"] = np.stack(parts, axis=-1)
    return motion


def _vectors(blocks):
    names = ("localAlignmentControlPoints", "localAlignmentCoeffsX", "localAlignmentCoeffsY")
    return [(name, blocks["localAlignment"][name]) for name in names]


class RelionFrames:
    """The frames that RELION will make of the movie's file, on which this movie's are placed.

    RELION sums frames of EER files only, and equally many for each: the greatest number that divides all of ours.

    Parameters
    ----------
    result : MovieAlignmentResult
    is_eer : bool

    Attributes
    ----------
    grouping : int
        Frames of the file in each of RELION's.
    count : int
        RELION's frames.
    first, last : int
        Range (exclusive) of those that belong to aligned frames.
    times : ndarray, shape (last - first,)
        Where their middles lie among the aligned frames; those of the first and the last are not passed.
    """

    def __init__(self, result, is_eer):
        self.grouping = math.gcd(*result.group_sizes) if is_eer else 1
        ends = np.cumsum(result.group_sizes) // self.grouping
        starts = np.concatenate([[0], ends[:-1]])
        aligned = slice(result.first_frame, result.first_frame + result.n_aligned)
        self.count, self.first, self.last = int(ends[-1]), int(starts[aligned][0]), int(ends[aligned][-1])
        middles = 0.5 * (starts + ends - 1)[aligned]
        self.times = np.interp(np.arange(self.first, self.last), middles, np.arange(result.n_aligned))


def relion_polynomial(result, times=None):
    """Fit RELION's model of local motion.

    The terms are ``{1, x, x^2, y, y^2, x y}`` times ``{z, z^2, z^3}`` with x and y from -1/2 to 1/2 and z in
    RELION's frames since the first one.

    Parameters
    ----------
    result : MovieAlignmentResult
    times : ndarray, shape (n,), optional
        RELION's frames among the aligned ones, as `RelionFrames.times`; the aligned ones themselves by default.

    Returns
    -------
    coefficients : ndarray, shape (36,)
        18 for x, then 18 for y, in px of the movie.
    shifts : ndarray, shape (n, 2)
        Translations (y, x) of whole frames relative to the first, as the model wants them.
    rms : float
        Of what the model cannot follow, px.
    """
    times = np.arange(result.n_aligned) if times is None else times
    n = len(times)
    shifts = np.stack([np.interp(times, np.arange(result.n_aligned), s) for s in result.shifts.T], axis=1)
    shifts -= shifts[0]
    if not result.control_points.size or n < 2:
        return np.zeros(36), shifts, 0.0
    grid = (np.arange(15) + 0.5) / 15
    y, x = grid * result.shape[0], grid * result.shape[1]
    local = bspline.evaluate_grid(result.control_points, times, y, x, result.lengths)
    local -= local[0].copy()
    z, v, u = np.meshgrid(np.arange(n) / (n - 1.0), grid - 0.5, grid - 0.5, indexing="ij")
    space = [np.ones_like(u), u, u * u, v, v * v, u * v]
    design = np.stack([s * z**k for s in space for k in (1, 2, 3)], axis=-1).reshape(-1, 18)
    fit = np.linalg.lstsq(design, local.reshape(-1, 2), rcond=None)[0]
    rms = float(np.sqrt(((design @ fit - local.reshape(-1, 2)) ** 2).sum(axis=1).mean()))
    fit /= np.tile([(n - 1.0) ** k for k in (1, 2, 3)], 6)[:, None]
    return np.concatenate([fit[:, 1], fit[:, 0]]), shifts, rms


def write_relion_star(path, result, gain="", defects="", bad_pixels=(), is_eer=False):
    """Write the metadata from which RELION's polishing starts.

    RELION reads the movie's file by itself, so that frames which are sums are written as what it will see of them.

    Parameters
    ----------
    path : path
    result : MovieAlignmentResult
    gain, defects : str
        Paths, if any, of what RELION can use as it is; see `xmipp_accel.movie_alignment.polishing`.
    bad_pixels : sequence of (y, x)
        Written as hot pixels.
    is_eer : bool

    Returns
    -------
    float
        Rms (px) of the local motion that RELION's polynomial cannot follow.
    """
    relion = RelionFrames(result, is_eer)
    coefficients, shifts, rms = relion_polynomial(result, relion.times)
    text = _general(result, relion, gain, defects, is_eer)
    frames = np.full((relion.count, 2), NOT_OBSERVED)
    frames[relion.first : relion.last] = shifts
    rows = [f"{k + 1} {x:.6f} {y:.6f}" for k, (y, x) in enumerate(frames)]
    text += _loop("global_shift", ("rlnMicrographFrameNumber", "rlnMicrographShiftX", "rlnMicrographShiftY"), rows)
    if result.control_points.size:
        rows = [f"{k} {value:.9e}" for k, value in enumerate(coefficients)]
        text += _loop("local_motion_model", ("rlnMotionModelCoeffsIdx", "rlnMotionModelCoeff"), rows)
    if len(bad_pixels):
        rows = [f"{x:.1f} {y:.1f}" for y, x in bad_pixels]
        text += _loop("hot_pixels", ("rlnCoordinateX", "rlnCoordinateY"), rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return rms


def _general(result, relion, gain, defects, is_eer):
    p = result.parameters
    values = {
        "rlnImageSizeX": result.shape[1],
        "rlnImageSizeY": result.shape[0],
        "rlnImageSizeZ": relion.count,
        "rlnMicrographMovieName": result.movie,
        "rlnMicrographGainName": gain,
        "rlnMicrographDefectFile": defects,
        "rlnMicrographBinning": f"{p['bin_factor']:.6f}",
        "rlnMicrographOriginalPixelSize": f"{result.sampling_rate:.6f}",
        # RELION knows one exposure for all frames: the total is right, where frames differ.
        "rlnMicrographDoseRate": f"{result.exposures.sum() / relion.count:.6f}",
        "rlnMicrographPreExposure": f"{p['pre_exposure']:.6f}",
        "rlnVoltage": f"{p['voltage']:.6f}",
        "rlnMicrographStartFrame": relion.first + 1,
    }
    if is_eer:
        values["rlnEERUpsampling"] = p["eer_upsampling"]
        values["rlnEERGrouping"] = relion.grouping
    values["rlnMotionModelVersion"] = 1 if result.control_points.size else 0
    # RELION wants this block as a list, without loop_.
    lines = [f"_{key} {_quoted(value)}" for key, value in values.items() if value != ""]
    return "\n# version 30001\n\ndata_general\n\n" + "\n".join(lines) + "\n\n"


def _quoted(value):
    text = str(value)
    return f'"{text}"' if any(c.isspace() for c in text) else text


def _loop(name, labels, rows):
    head = "".join(f"_{label} #{k}\n" for k, label in enumerate(labels, start=1))
    return f"\n# version 30001\n\ndata_{name}\n\nloop_\n{head}" + "\n".join(rows) + "\n\n"
