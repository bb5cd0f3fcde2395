"""Class averages in real space, from the original images."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, fft_module, to_host
from xmipp_accel.numerics.ctf import ctf_image
from xmipp_accel.numerics.filters import fourier_resize
from xmipp_accel.numerics.fsc import fourier_ring_correlation, resolution_at
from xmipp_accel.particle_alignment.polar import soft_circle

_LEAST_CORRELATION = 0.02


class AverageSums:
    """Accumulates aligned images, and their squared CTFs, for each class and each of two halves.

    Parameters
    ----------
    count : int
        Number of classes.
    box : int
        Px.
    sampling_rate : float
        A/px.
    xp : module
        `numpy` or `cupy`.
    """

    def __init__(self, count, box, sampling_rate, xp):
        self.box, self.sampling_rate = box, sampling_rate
        self.images = xp.zeros((2, count, box, box), dtype=np.float32)
        self.ctf2 = np.zeros((2, count, box // 2 + 1))
        self.counts = np.zeros((2, count), dtype=np.int64)

    def add(self, images, labels, halves, theta, shift, mirrored, optics=None):
        """Add images (m, N, N); poses as in `classify2d_search.Poses`, all host arrays of length m.

        Parameters
        ----------
        images : (m, N, N) float32 array
        labels, halves : (m,) int arrays
            Class, and half 0 or 1.
        theta, mirrored : (m,) arrays
        shift : (m, 2) array
        optics : dict, optional
            Arguments of `numerics.ctf.ctf_image`; None leaves the CTF alone.
        """
        xp, fft, box = array_module(images), fft_module(images), self.box
        if optics is not None:
            ctf = ctf_image(box, self.sampling_rate, xp=xp, **optics)
            images = fft.irfft2(fft.rfft2(images) * ctf, s=(box, box)).astype(np.float32)
            profiles = _ring_means(to_host(ctf.astype(np.float64) ** 2), box)
        else:
            profiles = np.ones((len(images), box // 2 + 1))
        aligned = transform_images(images, theta, shift, mirrored)
        for half in range(2):
            for label in np.unique(labels[halves == half]):
                members = np.flatnonzero((labels == label) & (halves == half))
                self.images[half, label] += aligned[xp.asarray(members)].sum(axis=0)
                self.ctf2[half, label] += profiles[members].sum(axis=0)
                self.counts[half, label] += len(members)

    def finish(self, mask_radius, correct):
        """Averages and their resolutions.

        Parameters
        ----------
        mask_radius : float
            Px, of the circle in which halves are compared.
        correct : bool
            Divide by the sum of the squared CTFs, regularised by the correlation of the halves; else by the number
            of particles.

        Returns
        -------
        averages : (C, N, N) float32 host array
            Zero for a class without particles.
        resolutions : (C,) float64 array
            A, where the ring correlation of the halves falls to 0.5; 0 unless both halves have particles. As both
            were aligned to one average, it is on the optimistic side.
        """
        xp, count = array_module(self.images), self.images.shape[1]
        averages = np.zeros((count, self.box, self.box), dtype=np.float32)
        resolutions = np.zeros(count)
        mask = xp.asarray(soft_circle(self.box, mask_radius))
        for label in np.flatnonzero(self.counts.sum(axis=0)):
            curve = None
            if self.counts[:, label].min() > 0:
                half1, half2 = (
                    self._divide(self.images[half, label], self.ctf2[half, label], None, correct)
                    for half in (0, 1)
                )
                curve = fourier_ring_correlation(half1, half2, mask)
                resolutions[label] = resolution_at(curve, 0.5, self.sampling_rate, self.box)
            total = self._divide(
                self.images[:, label].sum(axis=0), self.ctf2[:, label].sum(axis=0), curve, correct
            )
            averages[label] = to_host(total)
        return averages, resolutions

    def _divide(self, image, ctf2, curve, correct):
        fft = fft_module(image)
        if not correct:
            return image / np.float32(ctf2[0])
        regular = np.full(len(ctf2), 0.1 * ctf2.mean())
        if curve is not None:
            # 2 F / (1 + F) is the squared correlation of the whole with the truth (Rosenthal, Henderson 2003).
            whole = np.clip(2 * curve / (1 + np.maximum(curve, 0.0)), _LEAST_CORRELATION, 0.999)
            regular = np.maximum(ctf2 * (1 - whole) / whole, 1e-3 * ctf2.mean())
        factors = 1.0 / (ctf2 + regular)
        radius = _ring_radius(self.box)
        rings = np.arange(len(factors))
        filtered = np.interp(radius.ravel(), rings, factors).reshape(radius.shape)
        filtered = array_module(image).asarray(filtered.astype(np.float32))
        return fft.irfft2(fft.rfft2(image) * filtered, s=image.shape).astype(np.float32)


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


def _ring_radius(box):
    """(N, N // 2 + 1) distance from the zero frequency in cycles per box."""
    return np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None]) * box


def _ring_means(values, box):
    """Mean over each ring 0..N // 2 of (m, N, N // 2 + 1) arrays."""
    ring = np.rint(_ring_radius(box)).astype(int).ravel()
    inside = ring <= box // 2
    order = np.argsort(ring[inside], kind="stable")
    starts = np.searchsorted(ring[inside][order], np.arange(box // 2 + 1))
    sums = np.add.reduceat(values.reshape(len(values), -1)[:, inside][:, order], starts, axis=1)
    return sums / np.bincount(ring[inside])
