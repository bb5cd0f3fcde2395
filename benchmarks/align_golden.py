"""How far ``xmipp-accel align --compat xmipp`` agrees with the original program, on the reference folder's files.

``python -m benchmarks.align_golden --shared FOLDER`` takes FOLDER/golden/align_significant. It compares the chosen
references and, for the references that the original chose, poses, correlations and weights. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.movie_data import SHARED
from benchmarks.reporting import print_json, print_machine, print_table
from xmipp_accel.backend import resolve_device
from xmipp_accel.io.particles import read_particles
from xmipp_accel.numerics.rotations import viewing_directions
from xmipp_accel.particle_alignment.compat import OriginalAligner
from xmipp_accel.particle_alignment.gallery import open_references
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters
from xmipp_accel.particle_alignment.significance import PooledRanks, neighbourhoods

# What counts as the same; the original computes in single precision.
LIMITS = {"degrees": 1e-3, "px": 1e-3, "correlation": 1e-5, "weight": 1e-3}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="the reference folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    arguments = parser.parse_args()
    print_machine()
    folder = arguments.shared / "golden" / "align_significant"
    particles = read_particles(folder / "particles.xmd")
    original = read_particles(folder / "align_significant_best1.xmd")
    references = open_references(folder / "gallery.doc")
    place = np.array([int(np.flatnonzero(references.labels == label)[0]) for label in original.class_id])
    parameters = AlignSignificantParameters(algorithm="xmipp", max_shift=25.0)
    device, start = resolve_device(arguments.device), time.perf_counter()
    with device.activate():
        found = OriginalAligner(references, particles, parameters, device).compare(particles)
    seconds = time.perf_counter() - start
    same = found.score.argmax(axis=1) == place
    differences = compare(found, original, place, weights(found.score, references, place, parameters))
    figures = dict(particles=len(original), references=len(references), seconds=seconds)
    print_json(figures | report(same, differences))


def weights(score, references, place, parameters):
    """Weights (n,) of the particles at the references `place` (n,)."""
    directions = viewing_directions(references.rot, references.tilt)
    ranks = PooledRanks(neighbourhoods(directions, parameters.angular_distance))
    ranks.add(score)
    return ranks.weights(place, score[np.arange(len(score)), place])


def compare(found, original, place, weight):
    """Differences (n,) from the original at its references, under the names of `LIMITS`."""
    poses = found.poses(place[:, None])
    psi, shift_y, shift_x, score = (
        getattr(poses, name)[:, 0].astype(float) for name in ("psi", "shift_y", "shift_x", "score")
    )
    return {
        "degrees": np.abs((psi - original.psi + 180) % 360 - 180),
        "px": np.hypot(shift_y - original.shift_y, shift_x - original.shift_x),
        "correlation": np.abs(score - original.extra["maxCC"]),
        "weight": np.abs(weight - original.weight),
    }


def report(same, differences):
    """Print the tables; numbers of particles that are the same."""
    alike = {name: differences[name] <= limit for name, limit in LIMITS.items()}
    rows = [["reference", int(same.sum()), None, None]]
    for name, values in differences.items():
        counted = int(alike[name].sum())
        rows.append([f"{name}, to {LIMITS[name]:g}", counted, float(np.median(values)), float(values.max())])
    print_table(f"{len(same)} particles", ["", "the same", "median difference", "largest"], rows)
    others = np.flatnonzero(~np.all([same, *alike.values()], axis=0))
    rows = [[int(row), str(same[row]), *(float(values[row]) for values in differences.values())] for row in others]
    print_table("Particles that differ, from 0", ["", "the same reference", *differences], rows)
    return {"same_reference": int(same.sum())} | {f"same_{name}": int(ok.sum()) for name, ok in alike.items()}


if __name__ == "__main__":
    main()
