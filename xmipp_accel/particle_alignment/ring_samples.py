"""Particles as they are compared with references: masked, times their CTF, on Fourier rings."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.numerics.ctf import ctf_at, ctf_image
from xmipp_accel.particle_alignment.polar import cropped_samples, mask_images


def ring_samples(images, mask, grid, ctf="none", optics=None, sampling_rate=0.0, phase_flipped=False):
    """Samples of images on the rings of a grid.

    Parameters
    ----------
    images : (n, N, N) float32 array
    mask : (N, N) float32 array of the same module
    grid : PolarGrid
        Its box is N.
    ctf : {"none", "phase_flip", "ctf"}
        What multiplies the images: nothing, the CTF's sign, or the CTF, which then multiplies the references, too.
    optics : dict, optional
        Arguments of `numerics.ctf.ctf_at` by name, arrays of length n; needed for a CTF.
    sampling_rate : float
        A/px, likewise.
    phase_flipped : bool
        The images have been multiplied by the CTF's sign already.

    Returns
    -------
    values : (n, K, Phi / 2) complex64 array
    power : (n, K) float64 NumPy array
        Mean power on each ring, where the CTF is "ctf" that of the images without.
    gain : (n, K) float64 NumPy array or None
        The CTF's mean square on each ring, if it multiplies the references.
    """

    def rings(these):
        return cropped_samples(mask_images(these, mask), grid)

    values = rings(images if ctf == "none" else _times_ctf(images, ctf, optics, sampling_rate, phase_flipped))
    weighted = ctf == "ctf"
    power_of = rings(images) if weighted else values
    power = to_host((power_of.real**2 + power_of.imag**2).mean(axis=2)).astype(np.float64)
    return values, power, _mean_square(grid, optics, sampling_rate) if weighted else None


def _times_ctf(images, mode, optics, sampling_rate, phase_flipped):
    """Multiply the whole images: before the mask, the CTF gathers what it had spread beyond it."""
    fft, xp, box = fft_module(images), array_module(images), images.shape[-1]
    ctf = ctf_image(box, sampling_rate, **optics, xp=xp)
    if mode == "phase_flip":
        ctf = xp.sign(ctf)
    elif phase_flipped:
        ctf = abs(ctf)
    return fft.irfft2(fft.rfft2(images) * ctf, s=images.shape[1:]).astype(np.float32)


def _mean_square(grid, optics, sampling_rate):
    k2 = np.repeat((grid.radii[:, None] / (grid.box * sampling_rate)) ** 2, len(grid.angles), axis=1)
    ctf = ctf_at(k2, np.broadcast_to(grid.angles, k2.shape), **optics)
    return (ctf.astype(np.float64) ** 2).mean(axis=2)
