"""Averages of motion-corrected frames.

Whole-frame translations are exact phase shifts; motion that varies over the frame is corrected by cubic B-spline
interpolation. Binning crops the averages' Fourier transforms.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, fft_module, to_host
from xmipp_accel.movie_alignment.dose import DoseWeights, accumulated
from xmipp_accel.movie_alignment.spectra import crop_half_plane, phases
from xmipp_accel.numerics import bspline

GRID_STEP = 16
BLOCK = (32, 8)


def binned_shape(shape, factor):
    """Even size of an image whose pixels are `factor` times larger; the shape itself for a factor of 1."""
    return tuple(shape) if factor == 1 else tuple(2 * int(s / factor / 2) for s in shape)


def warp(image, grid, step=GRID_STEP):
    """Move the content of `image` (ny, nx) along the translations `grid` (gy, gx, 2) at nodes `step` px apart."""
    if array_module(image) is np:
        from xmipp_accel.kernels.cpu.warp import warp as cpu_warp

        return cpu_warp(image, grid, step)
    return _cuda_warp(image, grid, step)


def _cuda_warp(image, grid, step):
    xp = array_module(image)
    ny, nx = (np.int32(s) for s in image.shape)
    blocks = (-(-int(nx) // BLOCK[0]), -(-int(ny) // BLOCK[1]))
    image = xp.ascontiguousarray(image, dtype=xp.float32)
    grid = xp.ascontiguousarray(xp.asarray(grid), dtype=xp.float32)
    rows, coefficients, out = (xp.empty(image.shape, dtype=xp.float32) for _ in range(3))
    cuda_kernel("warp", "prefilter<1>")(blocks, BLOCK, (image, rows, ny, nx))
    cuda_kernel("warp", "prefilter<0>")(blocks, BLOCK, (rows, coefficients, ny, nx))
    gy, gx = (np.int32(s) for s in grid.shape[:2])
    cuda_kernel("warp", "warp")(blocks, BLOCK, (coefficients, grid, out, ny, nx, gy, gx, np.int32(step)))
    return out


def translate_spectrum(frame, shift):
    """Fourier transform (ny, nx // 2 + 1) of `frame` moved by `shift` (y, x); its border is mirrored."""
    xp = array_module(frame)
    frame = _mirror_wrapped(frame, shift)
    spectrum = fft_module(frame).rfft2(frame)
    fy, fx = np.fft.fftfreq(frame.shape[0]), np.fft.rfftfreq(frame.shape[1])
    ey, ex = phases(fy, fx, np.asarray(shift)[None], xp)
    return spectrum * ey[0] * ex[0]


def _mirror_wrapped(frame, shift):
    """Overwrite what a periodic translation carries out at one border by the mirror image of the other border.

    It comes in there again, and so continues the frame instead of showing its far side.
    """
    for axis in (0, 1):
        view = frame.swapaxes(0, axis)
        width = min(int(np.ceil(abs(shift[axis]))), len(view) // 2 - 1)
        if width > 0 and shift[axis] > 0:
            view[len(view) - width :] = view[width:0:-1].copy()
        elif width > 0:
            view[:width] = view[-2 : -2 - width : -1].copy()
    return frame


class MotionCorrector:
    """Corrects single frames.

    Parameters
    ----------
    shifts : ndarray, shape (n, 2)
    control_points : ndarray, shape (nt, ny, nx, 2)
        Empty for translations alone.
    shape : (int, int)
        Of the frames.
    """

    def __init__(self, shifts, control_points, shape):
        self.shifts, self.shape = np.asarray(shifts), tuple(shape)
        self.local = np.asarray(control_points).size > 0
        if self.local:
            nodes = [np.arange(max(2, -(-(s - 1) // GRID_STEP) + 1)) * float(GRID_STEP) for s in self.shape]
            lengths = (float(len(self.shifts)), *map(float, self.shape))
            # Nodes beyond the border stay in the spline's domain; linear interpolation there is never used.
            y, x = (np.minimum(node, s) for node, s in zip(nodes, self.shape))
            self._grid = bspline.evaluate_grid(control_points, np.arange(len(self.shifts)), y, x, lengths)

    def image(self, frame, t):
        """Corrected frame in real space."""
        if self.local:
            return warp(frame, (self._grid[t] + self.shifts[t]).astype(np.float32))
        return fft_module(frame).irfft2(self.spectrum(frame, t), s=self.shape)

    def spectrum(self, frame, t):
        """Its Fourier transform."""
        if self.local:
            return fft_module(frame).rfft2(self.image(frame, t))
        return translate_spectrum(frame, self.shifts[t])


def corrected_averages(
    movie, frames, corrector, parameters, sampling_rate, exposures, first_frame=0, on_frame=None
):
    """Correct the frames and average them.

    Parameters
    ----------
    movie : PreparedMovie
    frames : sequence of int
        Indices into `movie` and the corrector's shifts.
    corrector : MotionCorrector
    parameters : MovieAlignmentParameters
    sampling_rate : float
        A/px of the movie.
    exposures : ndarray, shape (n,)
        Of each of the movie's frames, e/A^2; zeros if unknown.
    first_frame : int
        Number of the file's frames before the movie's first, which count for even and odd.
    on_frame : callable, optional
        Called after each frame.

    Returns
    -------
    dict of str to ndarray
        ``unweighted``, ``even``, ``odd`` and, with exposures, ``dose_weighted``, on the host, binned;
        ``aligned_movie`` if it is wanted.
    """
    xp, shape = movie.xp, movie.shape[1:]
    halves = [None, None]
    counts = [0, 0]
    dose = weighted = None
    if exposures.any() and parameters.save_dose_weighted:
        # What all frames have received before cancels, since the noise keeps its power; so does the pre-exposure.
        received = accumulated(exposures)[frames]
        dose = DoseWeights(shape, sampling_rate, received, exposures[frames], parameters.voltage, xp)
        weighted = xp.zeros((shape[0], shape[1] // 2 + 1), dtype=xp.complex64)
    stack = []
    for k, t in enumerate(frames):
        frame = movie.frame(t)
        corrected = corrector.image(frame, t) if corrector.local else corrector.spectrum(frame, t)
        half = (first_frame + t) % 2
        halves[half] = corrected if halves[half] is None else halves[half] + corrected
        counts[half] += 1
        if dose is not None:
            spectrum = fft_module(corrected).rfft2(corrected) if corrector.local else corrected
            weighted += spectrum * dose.weight(k)
        if parameters.save_aligned_movie:
            stack.append(_finish(corrected, shape, parameters.bin_factor, 1.0))
        if on_frame is not None:
            on_frame()
    return _collect(halves, counts, dose, weighted, stack, shape, parameters)


def _collect(halves, counts, dose, weighted, stack, shape, parameters):
    factor, n = parameters.bin_factor, sum(counts)
    total = halves[0] if halves[1] is None else halves[1] if halves[0] is None else halves[0] + halves[1]
    averages = {"unweighted": _finish(total, shape, factor, n)}
    if parameters.save_even_odd and min(counts) > 0:
        # Frames count from 1 for users, from 0 here.
        averages["odd"], averages["even"] = (_finish(h, shape, factor, c) for h, c in zip(halves, counts))
    if dose is not None:
        averages["dose_weighted"] = _finish(weighted * dose.restoration(), shape, factor, 1.0)
    if stack:
        averages["aligned_movie"] = np.stack(stack)
    return averages


def _finish(image, shape, factor, divisor):
    """Divide, bin, and bring to the host an image given in real or Fourier space."""
    new_shape = binned_shape(shape, factor)
    if image.dtype.kind == "f":
        if factor == 1:
            return to_host(image) / np.float32(divisor)
        image = fft_module(image).rfft2(image)
    if factor != 1:
        image = crop_half_plane(image, shape, new_shape)
    scale = new_shape[0] * new_shape[1] / (shape[0] * shape[1]) / divisor
    return to_host(fft_module(image).irfft2(image, s=new_shape)) * np.float32(scale)
