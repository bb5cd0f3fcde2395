"""Exact projections of a small phantom, as arrays or as particles on disk."""

import functools

import numpy as np

from xmipp_accel.backend import CPU, to_host
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.rotations import euler_to_matrix, matrix_to_euler, random_matrices
from xmipp_accel.reconstruction.accumulator import FourierAccumulator
from xmipp_accel.reconstruction.parameters import ReconstructFourierParameters
from xmipp_accel.reconstruction.views import Views
from xmipp_accel.simulate.phantom import protein_phantom

SAMPLING = 3.0


@functools.cache
def phantom(symmetry="c1"):
    return protein_phantom(diameter=60.0, seed=2, symmetry=symmetry).blurred(1.5)


def views(count, box, seed=0, symmetry="c1", largest_shift=0.0):
    """Projections (n, box, box), matrices (n, 3, 3) and shifts to apply (n, 2)."""
    rng = np.random.default_rng(seed)
    matrices = random_matrices(count, rng)
    shifts = rng.uniform(-largest_shift, largest_shift, size=(count, 2))
    return phantom(symmetry).project(matrices, box, SAMPLING, -shifts), matrices, shifts


def reconstruct(images, matrices, shifts, device=CPU, **choices):
    """Full map on the host, without files or halves unless asked for."""
    halves, group = choices.pop("halves", None), choices.pop("group", None)
    known = {key: choices.pop(key) for key in ("weights", "optics", "decays") if key in choices}
    choices.setdefault("ctf", "none")
    parameters = ReconstructFourierParameters(halves=halves is not None, **choices)
    accumulator = FourierAccumulator(parameters, device, images.shape[1], SAMPLING)
    accumulator.insert(images, Views(matrices, shifts, halves=halves, **known), group)
    maps = accumulator.finish()
    if halves is None:
        return to_host(maps.full)
    return tuple(map(to_host, (maps.full, maps.half1, maps.half2)))


def in_band(found, truth, largest=None):
    """(relative error after the best scale, that scale) within a radius, by default three shells below Nyquist."""
    n = truth.shape[0]
    largest = n // 2 - 3 if largest is None else largest
    k = np.fft.fftfreq(n) * n
    band = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2 <= largest**2
    a, b = np.fft.fftn(found)[band], np.fft.fftn(truth)[band]
    scale = (a * b.conj()).real.sum() / (abs(a) ** 2).sum()
    return np.sqrt((abs(scale * a - b) ** 2).sum() / (abs(b) ** 2).sum()), scale


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def particles_on_disk(folder, count=24, box=24, seed=0, ctf=False, noise=0.0, **columns):
    """`Particles` whose stack stands in `folder`."""
    images, matrices, shifts = views(count, box, seed, largest_shift=1.5)
    rng = np.random.default_rng(seed + 1)
    optics = {}
    if ctf:
        defocus = rng.uniform(8000, 20000, count)
        optics = dict(defocus_u=defocus, defocus_v=defocus - 500, defocus_angle=rng.uniform(0, 180, count))
        transfer = ctf_image(box, SAMPLING, **optics)
        images = np.fft.irfft2(np.fft.rfft2(images) * transfer, s=(box, box)).astype(np.float32)
    images = images + noise * images.std() * rng.normal(size=images.shape).astype(np.float32)
    path = folder / "particles.mrcs"
    write_stack(path, images, SAMPLING)
    rot, tilt, psi = matrix_to_euler(matrices)
    return Particles(
        stack=[str(path)] * count,
        index=np.arange(count),
        rot=rot,
        tilt=tilt,
        psi=psi,
        shift_x=shifts[:, 1],
        shift_y=shifts[:, 0],
        sampling_rate=SAMPLING,
        has_pose=True,
        has_ctf=ctf,
        **optics,
        **columns,
    )


__all__ = [
    "SAMPLING",
    "correlation",
    "euler_to_matrix",
    "in_band",
    "particles_on_disk",
    "phantom",
    "reconstruct",
    "views",
]
