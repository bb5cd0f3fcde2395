import numpy as np
import pytest

from tests.particle_alignment import simulated
from xmipp_accel.io.particles import read_particles
from xmipp_accel.particle_alignment.executor import AlignSignificantExecutor
from xmipp_accel.particle_alignment.parameters import AlignSignificantParameters

POINTS = simulated.centres(np.random.default_rng(5))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clean particles, and noisy ones with a CTF."""
    folder = tmp_path_factory.mktemp("particles")
    plain = simulated.make_particles(folder / "plain", POINTS, n=12, snr=20)
    ctf = simulated.make_particles(folder / "ctf", POINTS, n=24, snr=1, ctf=True, seed=1)
    return {"plain": plain, "ctf": ctf, "volume": folder / "plain" / "volume.mrc"}


@pytest.fixture
def align(data, tmp_path):
    def run(particles="plain", references=None, device=None, mask=None, **values):
        values = {"angular_sampling": 15.0, **values}
        arguments = [AlignSignificantParameters(**values)] + ([device] if device else [])
        particles = data[particles] if isinstance(particles, str) else particles
        result = AlignSignificantExecutor(*arguments).align(
            particles, references or data["volume"], tmp_path / "out", candidate_mask=mask
        )
        return result, read_particles(result.particles_xmd)

    return run
