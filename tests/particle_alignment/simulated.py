"""Small particle sets with known poses, drawn from Gaussians in space."""

import numpy as np

from tests.numerics.angles import angular_distance
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles
from xmipp_accel.io.volumes import write_volume
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix, viewing_directions

BOX, SAMPLING, SIGMA = 32, 4.0, 1.2


def centres(rng, count=25, radius=11.0):
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * radius * rng.random((count, 1)) ** (1 / 3)


def _line(position, box):
    return np.exp(-((np.arange(box) - box // 2 - position[..., None]) ** 2) / (2 * SIGMA**2))


def make_volume(points, box=BOX):
    x, y, z = (_line(points[:, i], box) for i in range(3))
    return np.einsum("bz,by,bx->zyx", z, y, x).astype(np.float32)


def project(points, matrices, shift_x=0.0, shift_y=0.0, box=BOX):
    """Projections displaced by minus the shifts that centre them."""
    seen = np.einsum("nij,bj->nbi", matrices, points)
    x = _line(seen[..., 0] - np.reshape(shift_x, (-1, 1)), box)
    y = _line(seen[..., 1] - np.reshape(shift_y, (-1, 1)), box)
    return (np.sqrt(2 * np.pi) * SIGMA * np.einsum("nby,nbx->nyx", y, x)).astype(np.float32)


def make_particles(folder, points, n=16, snr=1.0, shift=2.0, ctf=False, seed=0, angles=None):
    """Particles (with their true poses) and a volume file."""
    rng = np.random.default_rng(seed)
    rot, psi = rng.uniform(-180, 180, (2, n))
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))
    if angles is not None:
        rot, tilt = angles
    shift_x, shift_y = rng.uniform(-shift, shift, (2, n))
    images = project(points, euler_to_matrix(rot, tilt, psi), shift_x, shift_y)
    optics = dict(defocus_u=rng.uniform(15e3, 25e3, n), defocus_angle=rng.uniform(0, 180, n))
    optics["defocus_v"] = optics["defocus_u"] - 500
    if ctf:
        images = np.fft.irfft2(np.fft.rfft2(images) * ctf_image(BOX, SAMPLING, **optics), s=(BOX, BOX))
    images = images + rng.normal(size=images.shape) * np.sqrt(images.var() / snr)
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / "particles.mrcs", images.astype(np.float32), SAMPLING)
    write_volume(folder / "volume.mrc", make_volume(points), SAMPLING)
    return Particles(
        stack=[str(folder / "particles.mrcs")] * n,
        index=np.arange(n),
        rot=rot,
        tilt=tilt,
        psi=psi,
        shift_x=shift_x,
        shift_y=shift_y,
        sampling_rate=SAMPLING,
        has_ctf=ctf,
        has_pose=True,
        **(optics if ctf else {}),
    )


def direction_errors(truth, found, matrices=None):
    """Degrees between the viewing directions, pair by pair."""
    a, b = viewing_directions(truth.rot, truth.tilt), viewing_directions(found.rot, found.tilt)
    return np.array([angular_distance(x[None], y[None], matrices)[0, 0] for x, y in zip(a, b)])


def rotation_errors(truth, found):
    """Degrees of the rotation between the poses."""
    a, b = euler_to_matrix(truth.rot, truth.tilt, truth.psi), euler_to_matrix(found.rot, found.tilt, found.psi)
    return np.rad2deg(np.arccos(np.clip((np.einsum("nij,nij->n", a, b) - 1) / 2, -1, 1)))


def shift_errors(truth, found):
    return np.hypot(truth.shift_x - found.shift_x, truth.shift_y - found.shift_y)
