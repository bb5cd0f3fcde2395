"""Which particles a reconstruction uses, and how much each of them counts."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.errors import ParameterError, ProcessingError
from xmipp_accel.io.relion import SCORES
from xmipp_accel.reconstruction.halves import assign_groups, assign_halves
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views


@dataclasses.dataclass(frozen=True)
class Selection:
    """Particles to insert.

    Attributes
    ----------
    rows : (n,) int64 array
        Their numbers, those of an optics group next to each other.
    views : Views
        Of these rows.
    groups : dict of int to OpticsGroup
        With their boxes and sampling rates.
    numbers : (n,) int64 array
        Of the optics group of each row.
    scores : (float, float), optional
        The best score and their standard deviation, where they decide the decays.
    """

    rows: np.ndarray
    views: Views
    groups: dict
    numbers: np.ndarray
    scores: tuple[float, float] | None = None

    def batches(self, size_of) -> list[slice]:
        """Slices of the rows, each within one optics group and of ``size_of(box)`` particles at most."""
        found = []
        for part in self.ranges():
            size = size_of(self.group(part).box)
            found += [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]
        return found

    def ranges(self) -> list[slice]:
        """Slices of the rows, one for each optics group."""
        if not len(self.rows):
            return []
        borders = [0, *(np.flatnonzero(np.diff(self.numbers)) + 1).tolist(), len(self.rows)]
        return [slice(*edges) for edges in zip(borders, borders[1:])]

    def group(self, batch):
        """The optics group of a slice of :meth:`batches` or :meth:`ranges`."""
        return self.groups[int(self.numbers[batch.start])]


def decide(parameters: ReconstructFourierParameters, particles) -> ReconstructFourierParameters:
    """Parameters with a definite `ctf`.

    Raises
    ------
    ParameterError
        The particles lack poses or the CTF that the parameters ask for.
    """
    if not particles.has_pose:
        raise ParameterError("particles: expected angles for a reconstruction, found none")
    ctf = parameters.ctf
    if ctf == "auto":
        ctf = "weight" if particles.has_ctf else "none"
    elif ctf != "none" and not particles.has_ctf:
        raise ParameterError(f"ctf: expected particles with a CTF for {ctf!r}, found none")
    if parameters.method.startswith("xmipp") and particles.mixed:
        raise ParameterError("method: expected one pixel and box size for Xmipp's sums, found several")
    return dataclasses.replace(parameters, ctf=ctf)


def select(parameters: ReconstructFourierParameters, particles, scores=None) -> Selection:
    """The enabled particles of positive weight.

    Parameters
    ----------
    parameters : ReconstructFourierParameters
    particles : Particles
    scores : (float, float), optional
        Of earlier particles, see :class:`Selection`; by default of these.

    Raises
    ------
    ParameterError
        Angles, shifts, optics, weights or scores are missing or no possible numbers.
    ProcessingError
        Too few particles are left.
    """
    rows = np.flatnonzero(particles.enabled)
    if parameters.use_weights:
        weights = particles.weight[rows]
        _require(weights >= 0, "use_weights", "weights of 0 or more", weights, rows)
        rows = rows[weights > 0]
    least = 2 if parameters.halves else 1
    if len(rows) < least:
        which = "enabled particles of positive weight" if parameters.use_weights else "enabled particles"
        raise ProcessingError(f"reconstruction: expected {least} or more {which}, found {len(rows)}")
    rows = rows[np.argsort(particles.optics_group[rows], kind="stable")]
    chosen = particles.take(rows)
    _check(chosen, rows, parameters.ctf != "none")
    halves = assign_halves(chosen.half, parameters.seed) if parameters.halves else None
    if halves is not None and len(np.unique(halves)) < 2:
        raise ProcessingError(f"reconstruction: expected particles of half sets 1 and 2, found {halves[0]} alone")
    groups = None
    if parameters.error_groups:
        sets = np.zeros(len(rows)) if halves is None else halves
        groups = assign_groups(sets, parameters.error_groups, parameters.seed)
    decays = None
    if parameters.score_b_factor:
        values = _scores(parameters, chosen, rows)
        scores = scores or (float(values.max()), float(values.std()) or 1.0)
        decays = parameters.score_b_factor * (scores[0] - values) / scores[1]
    views = Views.from_particles(
        chosen,
        weights=chosen.weight if parameters.use_weights else None,
        decays=decays,
        halves=halves,
        groups=groups,
    )
    return Selection(rows, views, chosen.used_groups(), chosen.optics_group, scores)


def _check(chosen, rows, with_optics):
    """Require poses, and optics where they are used, of which an image can be made."""
    names: tuple[str, ...] = "rot", "tilt", "psi", "shift_x", "shift_y"
    if with_optics:
        names += "defocus_u", "defocus_v", "defocus_angle", "phase_shift", "voltage", "cs", "amplitude_contrast"
        _require(chosen.voltage > 0, "voltage", "more than 0 kV", chosen.voltage, rows)
        _require(chosen.cs >= 0, "cs", "a spherical aberration of 0 mm or more", chosen.cs, rows)
        contrast = chosen.amplitude_contrast
        _require(np.abs(contrast) <= 1, "amplitude_contrast", "a fraction of 1", contrast, rows)
    for name in names:
        _require(True, name, "finite numbers", getattr(chosen, name), rows)


def _require(good, name, what, values, rows):
    """Raise an error that tells the first particle whose value is not `good` or not finite."""
    bad = np.flatnonzero(~(good & np.isfinite(values)))
    if len(bad):
        row = rows[bad[0]]
        raise ParameterError(f"{name}: expected {what}, found {values[bad[0]]:g} for particle {row + 1}")


def _scores(parameters, particles, rows):
    """What B factors are made of, as in cisTEM (Grigorieff, eLife 2016, 5:e15383) from the mean score down."""
    labels = [parameters.score_label] if parameters.score_label else SCORES
    label = next((label for label in labels if label in particles.extra), None)
    if label is None:
        raise ParameterError(
            f"score_b_factor: expected particles with the column {' or '.join(labels)}, "
            f"found {', '.join(particles.extra) or 'none'}"
        )
    scores = np.asarray(particles.extra[label], dtype=np.float64)
    _require(True, "score_b_factor", f"finite numbers as {label}", scores, rows)
    return scores
