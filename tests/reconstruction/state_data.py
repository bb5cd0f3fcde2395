"""Reconstructions with and without a state, and what is compared of them."""

import dataclasses

import numpy as np

from tests.reconstruction.particle_data import particles_on_disk
from xmipp_accel.backend import CPU
from xmipp_accel.io.volumes import read_volume
from xmipp_accel.reconstruction.executor import ReconstructFourierExecutor
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.state import load_state

COUNT = 60


def weighted_particles(folder, **choices):
    """`COUNT` noisy particles of three weights."""
    return particles_on_disk(folder, count=COUNT, noise=0.5, weight=1 + np.arange(COUNT) % 3 / 2, **choices)


def run(particles, folder, state=None, device=CPU, **choices):
    """(result, full map, half 1, half 2)."""
    executor = ReconstructFourierExecutor(ReconstructFourierParameters(**choices), device)
    return read_maps(executor.reconstruct(particles, folder, state=state), folder)


def read_maps(result, folder):
    """(result, full map, half 1, half 2)."""
    files = (result.volume, result.half1, result.half2)
    return (result, *(read_volume(folder / file)[0] if file else None for file in files))


def changes(result):
    """(added, removed, kept)."""
    return tuple(result.state[name] for name in ("added", "removed", "kept"))


def in_half_sets_of(state, particles):
    """The particles in the half sets that the state has given them."""
    members = load_state(state).members
    halves = {members.name(row): int(half) for row, half in enumerate(members.views.halves)}
    names = [f"{index + 1:06d}@{stack}" for index, stack in zip(particles.index, particles.stack)]
    return dataclasses.replace(particles, half=[halves.get(name, 0) for name in names])


def assert_near(found, expected, tolerance=1e-5):
    """Volumes are equal to a fraction of the largest value."""
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())
