"""From joined sums of half sets and groups to maps and all that their statistics say."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from xmipp_accel.numerics.fsc import frequencies
from xmipp_accel.reconstruction.coverage import Coverage
from xmipp_accel.reconstruction.halves import HalfMapAgreement, compare_halves, sphere_mask
from xmipp_accel.reconstruction.jackknife import Growth, StandardErrors, jackknife, resolution_by_number


@dataclasses.dataclass(frozen=True)
class Maps:
    """Maps (box, box, box) float32 on the device of the sums, and statistics on the host.

    What comes from half maps or from groups is None without them. The residuals are those of each iteration of the
    full map, if it was made by iterations.
    """

    full: Any
    half1: Any
    half2: Any
    coverage: Coverage
    agreement: HalfMapAgreement | None
    errors: StandardErrors | None
    growth: Growth | None
    residuals: list[float]

    def statistics(self, sampling_rate: float) -> dict[str, Any]:
        """Fields of :class:`~.result.ReconstructFourierResult`, as plain values."""
        fields = {"coverage": _plain(self.coverage)}
        shells = frequencies(self.full.shape[0], sampling_rate)
        fields["coverage"]["frequencies"] = shells[: len(self.coverage.mean)].tolist()
        if self.agreement is not None:
            fields.update(_plain(self.agreement))
        if self.residuals:
            fields["residuals"] = self.residuals
        if self.errors is not None:
            fields["relative_error"] = self.errors.relative.tolist()
        if self.growth is not None:
            fields["growth"] = _plain(self.growth)
        return fields


def _plain(values):
    """Fields of a dataclass as JSON has them."""
    return {field.name: np.asarray(getattr(values, field.name)).tolist() for field in dataclasses.fields(values)}


def make_maps(parts, counts, inversion, parameters, mask=None) -> Maps:
    """Half maps, their FSC, the full map regularised by it if wanted, coverage, and errors from groups.

    Parameters
    ----------
    parts : sequence of sequences of arrays
        ``parts[half][group]``: joined, all on one device; used up.
    counts : sequence of sequences of int
        Their numbers of particles.
    inversion : DirectInversion
    parameters : ReconstructFourierParameters
    mask : (box, box, box) array, optional
        For the comparison of half maps, and where maps are confined, in place of the sphere.
    """
    grid = inversion.volume
    if parameters.refine_iterations and parameters.refine_support:
        sphere = sphere_mask(grid.box, grid.sampling_rate, parameters.mask_diameter)[0]
        inversion = inversion.within(sphere if mask is None else mask)

    def to_map(joined, fsc=None):
        return inversion.solve(joined, fsc)[0]

    compare = functools.partial(
        compare_halves,
        sampling_rate=grid.sampling_rate,
        mask_diameter=parameters.mask_diameter,
        mask=mask,
        seed=parameters.seed,
    )
    grouped = len(parts[0]) > 1
    sums = [_total(own) for own in parts]
    halves, agreement, growth, errors, fsc = (None, None), None, None, None, None
    if len(sums) == 2:
        halves = tuple(map(to_map, sums))
        agreement = compare(*halves)
        if grouped:
            growth = resolution_by_number(
                parts,
                counts,
                to_map,
                lambda *pair: compare(*pair).resolution,
                last=agreement.resolution,
                finest=2 * grid.sampling_rate,
            )
        sums[0] += sums.pop()
        fsc = agreement.fsc_corrected if parameters.regularisation == "fsc" else None
    (total,) = sums
    full, residuals = inversion.solve(total, fsc)
    if grouped:
        groups = [part for own in parts for part in own]
        errors = jackknife(groups, total, full, functools.partial(to_map, fsc=fsc))
    return Maps(full, *halves, inversion.coverage(total), agreement, errors, growth, residuals)


def _total(parts):
    """Sum of arrays, a new one unless there is only one."""
    if len(parts) == 1:
        return parts[0]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total
