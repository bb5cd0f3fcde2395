"""Class averages in real space, from the original images."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.numerics.ctf import ctf_at, ctf_image
from xmipp_accel.numerics.filters import fourier_resize
from xmipp_accel.numerics.fsc import fourier_ring_correlation, resolution_at
from xmipp_accel.particle_alignment.polar import soft_circle

_LEAST_CORRELATION = 0.02
_CTF_ANGLES = 64  # on half a ring


class AverageSums:
    """Sums of aligned images, and of their squared CTFs, for each class and each of two halves; on the host.

    Parameters
    ----------
    count : int
        Number of classes.
    box : int
        Px.

    Attributes
    ----------
    images : (2, C, N, N) float32 array
    ctf2 : (2, C, N // 2 + 1) float32 array
        On rings.
    counts : (2, C) float64 array
        Particles, or shares of them.
    """

    NAMES = "images", "ctf2", "counts"

    def __init__(self, count, box):
        self.images = np.zeros((2, count, box, box), dtype=np.float32)
        self.ctf2 = np.zeros((2, count, box // 2 + 1), dtype=np.float32)
        self.counts = np.zeros((2, count))

    @classmethod
    def of(cls, images, ctf2, counts) -> AverageSums:
        """Sums that were kept."""
        sums = cls(images.shape[1], images.shape[-1])
        sums.images, sums.ctf2, sums.counts = images, ctf2, counts
        return sums

    def add(self, parts):
        """Add what :func:`aligned_sums` returned."""
        for name, part in zip(self.NAMES, parts):
            mine = getattr(self, name)
            mine += part.reshape(mine.shape)

    def clear(self, labels):
        """Forget the particles of some classes."""
        for name in self.NAMES:
            getattr(self, name)[:, labels] = 0

    def finish(self, mask_radius, correct, sampling_rate):
        """Averages and their resolutions.

        Parameters
        ----------
        mask_radius : float
            Px, of the circle in which halves are compared.
        correct : bool
            Divide by the sum of the squared CTFs, regularised by the correlation of the halves; else by the number
            of particles.
        sampling_rate : float
            A/px.

        Returns
        -------
        averages : (C, N, N) float32 array
            Zero for a class without particles.
        resolutions : (C,) float64 array
            A, where the ring correlation of the halves falls to 0.5; 0 unless both halves have particles. As both
            were aligned to one average, it is on the optimistic side.
        """
        count, box = self.images.shape[1], self.images.shape[-1]
        averages = np.zeros((count, box, box), dtype=np.float32)
        resolutions = np.zeros(count)
        mask = soft_circle(box, mask_radius)
        for label in np.flatnonzero(self.counts.sum(axis=0) > 0):
            curve = None
            if self.counts[:, label].min() > 0:
                half1, half2 = (
                    _divide(self.images[half, label], self.ctf2[half, label], None, correct) for half in (0, 1)
                )
                curve = fourier_ring_correlation(half1, half2, mask)
                resolutions[label] = resolution_at(curve, 0.5, sampling_rate, box)
            image, ctf2 = self.images[:, label].sum(axis=0), self.ctf2[:, label].sum(axis=0)
            averages[label] = _divide(image, ctf2, curve, correct)
        return averages, resolutions


def _divide(image, ctf2, curve, correct):
    if not correct:
        return image / np.float32(ctf2[0])
    fft = fft_module(image)
    regular = np.full(len(ctf2), 0.1 * ctf2.mean())
    if curve is not None:
        # 2 F / (1 + F) is the squared correlation of the whole with the truth (Rosenthal, Henderson 2003).
        whole = np.clip(2 * curve / (1 + np.maximum(curve, 0.0)), _LEAST_CORRELATION, 0.999)
        regular = np.maximum(ctf2 * (1 - whole) / whole, 1e-3 * ctf2.mean())
    factors = 1.0 / (ctf2 + regular)
    box = len(image)
    radius = np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None]) * box
    filtered = np.interp(radius.ravel(), np.arange(len(factors)), factors).reshape(radius.shape)
    return fft.irfft2(fft.rfft2(image) * filtered.astype(np.float32), s=image.shape).astype(np.float32)


def aligned_sums(images, poses, weight, halves, count, optics=None, sampling_rate=1.0, budget=1 << 28):
    """Sums of images for `AverageSums`.

    Parameters
    ----------
    images : (m, N, N) float32 array
    poses : Poses
        Host arrays (m, L).
    weight : (m, L) float32 host array
        Share of each particle in each of its poses.
    halves : (m,) int host array
        0 or 1.
    count : int
        C, number of classes.
    optics : dict, optional
        Arguments of `numerics.ctf.ctf_image`, arrays of length m; None leaves the CTF alone.
    sampling_rate : float
        A/px.
    budget : int
        Bytes that one intermediate array may take.

    Returns
    -------
    images : (2 C, N * N) float32 host array
    ctf2 : (2 C, N // 2 + 1) float32 host array
    counts : (2 C,) float64 host array
    """
    xp, box = array_module(images), images.shape[-1]
    rows, columns = np.nonzero(weight)
    label, share = halves[rows] * count + poses.label[rows, columns], weight[rows, columns]
    theta, shift, mirrored = (a[rows, columns] for a in (poses.theta, poses.shift, poses.mirrored))
    total = xp.zeros((2 * count, box * box), dtype=np.float32)
    ctf2 = xp.zeros((2 * count, box // 2 + 1), dtype=np.float32)
    block = max(8, budget // (64 * box * box))
    for first in range(0, len(rows), block):
        part = slice(first, first + block)
        own = None if optics is None else {name: values[rows[part]] for name, values in optics.items()}
        some, profiles = _corrected(images[xp.asarray(rows[part])], own, sampling_rate)
        aligned = transform_images(some, theta[part], shift[part], mirrored[part])
        table = np.zeros((2 * count, len(some)), dtype=np.float32)
        table[label[part], np.arange(len(some))] = share[part]
        table = xp.asarray(table)
        total += table @ aligned.reshape(len(some), -1)
        ctf2 += table @ profiles
    return to_host(total), to_host(ctf2), np.bincount(label, share, minlength=2 * count)


def _corrected(images, optics, sampling_rate):
    """Images times their CTFs, and the mean squared CTF on rings 0..N // 2; 1 without optics."""
    xp, fft, box = array_module(images), fft_module(images), images.shape[-1]
    if optics is None:
        return images, xp.ones((len(images), box // 2 + 1), dtype=np.float32)
    ctf = ctf_image(box, sampling_rate, xp=xp, **optics)
    radius = xp.arange(box // 2 + 1, dtype=np.float32)[:, None] / (box * sampling_rate)
    angle = xp.arange(_CTF_ANGLES, dtype=np.float32)[None] * np.float32(np.pi / _CTF_ANGLES)
    rings = ctf_at(xp.broadcast_to(radius**2, (box // 2 + 1, _CTF_ANGLES)), angle, xp=xp, **optics)
    images = fft.irfft2(fft.rfft2(images) * ctf, s=(box, box)).astype(np.float32)
    return images, (rings**2).mean(axis=-1).astype(np.float32)


def transform_images(images, theta, shift, mirrored):
    """Images shifted by `shift`, turned by `theta` and then mirrored along x where told.

    Linear interpolation in the images at half the pixel size, which a padded spectrum gives; at the Nyquist
    frequency it keeps at least 0.8 of the amplitude.

    Parameters
    ----------
    images : (m, N, N) float32 array
    theta : (m,) host array
        Radians; a turn takes direction phi to phi - theta.
    shift : (m, 2) host array
        (y, x), px.
    mirrored : (m,) bool host array

    Returns
    -------
    (m, N, N) float32 array; 0 where the source lies outside the image.
    """
    xp, box = array_module(images), images.shape[-1]
    fine = fourier_resize(images, 2 * box)
    axis = xp.arange(box, dtype=np.float32) - box // 2
    y, x = axis[None, :, None], axis[None, None, :]
    column = [
        xp.asarray(np.asarray(v, dtype=np.float32))[:, None, None] for v in (theta, shift[:, 0], shift[:, 1])
    ]
    x = xp.asarray(np.where(mirrored, -1.0, 1.0).astype(np.float32))[:, None, None] * x
    cosine, sine = xp.cos(column[0]), xp.sin(column[0])
    source_x = 2.0 * (cosine * x - sine * y - column[2]) + box
    source_y = 2.0 * (sine * x + cosine * y - column[1]) + box
    inside = (source_x >= 0) & (source_x <= 2 * box - 1) & (source_y >= 0) & (source_y <= 2 * box - 1)
    left = xp.clip(xp.floor(source_x), 0, 2 * box - 2)
    top = xp.clip(xp.floor(source_y), 0, 2 * box - 2)
    part_x, part_y = source_x - left, source_y - top
    place = top.astype(np.int64) * (2 * box) + left.astype(np.int64)
    flat = fine.reshape(len(images), -1)
    rows = xp.arange(len(images))[:, None, None]
    upper = flat[rows, place] * (1 - part_x) + flat[rows, place + 1] * part_x
    lower = flat[rows, place + 2 * box] * (1 - part_x) + flat[rows, place + 2 * box + 1] * part_x
    return ((upper * (1 - part_y) + lower * part_y) * inside).astype(np.float32)
