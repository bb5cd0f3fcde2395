"""Averages of motion-corrected frames.

Whole-frame translations are exact phase shifts; motion that varies over the frame and anisotropic magnification
are corrected together, by one cubic B-spline interpolation. Binning crops the averages' Fourier transforms.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, fft_module, to_host
from xmipp_accel.movie_alignment import quality
from xmipp_accel.movie_alignment.averages import Halves, half_plane, in_frame_weight
from xmipp_accel.movie_alignment.dose import DoseWeights, accumulated
from xmipp_accel.movie_alignment.frame_kernels import turn_phases
from xmipp_accel.movie_alignment.spectra import crop_half_plane, moving_phases
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
    grid = xp.ascontiguousarray(grid, dtype=xp.float32)
    rows, coefficients, out = (xp.empty(image.shape, dtype=xp.float32) for _ in range(3))
    cuda_kernel("warp", "prefilter<1>")(blocks, BLOCK, (image, rows, ny, nx))
    cuda_kernel("warp", "prefilter<0>")(blocks, BLOCK, (rows, coefficients, ny, nx))
    gy, gx = (np.int32(s) for s in grid.shape[:2])
    cuda_kernel("warp", "warp")(blocks, BLOCK, (coefficients, grid, out, ny, nx, gy, gx, np.int32(step)))
    return out


def translate_spectrum(frame, shift, phases):
    """Fourier transform (ny, nx // 2 + 1) of `frame` moved by `shift` (y, x); its border is mirrored.

    `phases` are those of `moving_phases` for this shift. The frame is changed.
    """
    frame = _mirror_wrapped(frame, shift)
    spectrum = fft_module(frame).rfft2(frame)
    turn_phases(spectrum, *phases)
    return spectrum


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
    magnification : Magnification, optional
        Stretch of the averages.
    xp : module
        `numpy` or `cupy`, where the frames are.
    """

    def __init__(self, shifts, control_points, shape, magnification=None, xp=np):
        self.shifts, self.shape = np.asarray(shifts), tuple(shape)
        self._stretch = None if magnification is None or magnification.is_identity else magnification
        control_points = np.asarray(control_points)
        self.interpolates = control_points.size > 0 or self._stretch is not None
        self._path = self.shifts
        if self.interpolates:
            grid = self._translations(control_points)
            self._grid, self._path = xp.asarray(grid, dtype=xp.float32), grid.mean(axis=(1, 2))
        else:
            frequencies = np.fft.fftfreq(self.shape[0]), np.fft.rfftfreq(self.shape[1])
            self._phases = moving_phases(self.shifts, *frequencies, xp)

    def _translations(self, control_points):
        """Translations (n, gy, gx, 2) to apply at the warp's nodes."""
        nodes = [np.arange(max(2, -(-(s - 1) // GRID_STEP) + 1)) * float(GRID_STEP) for s in self.shape]
        frames, lengths = np.arange(len(self.shifts)), (float(len(self.shifts)), *map(float, self.shape))
        whole = self.shifts[:, None, None]
        if self._stretch is None:
            # Nodes beyond the border stay in the spline's domain; linear interpolation there is never used.
            y, x = (np.minimum(node, s) for node, s in zip(nodes, self.shape))
            return whole + bspline.evaluate_grid(control_points, frames, y, x, lengths)
        average = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1)
        seen = self._stretch.in_frame(average)
        whole = whole + (average - seen)
        if not control_points.size:
            return whole
        y, x = (np.clip(seen[..., axis].ravel(), 0, self.shape[axis]) for axis in (0, 1))
        return whole + bspline.evaluate_frames(control_points, frames, y, x, lengths).reshape(whole.shape)

    def corrected(self, frame, t):
        """Frame `t` corrected, as an image if it is interpolated, else as its half-plane transform."""
        if self.interpolates:
            return warp(frame, self._grid[t])
        return translate_spectrum(frame, self.shifts[t], [phases[t] for phases in self._phases])

    def in_frame_weight(self, t, xp):
        """Amplitude (ny, nx // 2 + 1) that the motion during frame `t` leaves.

        It is taken for half the way from the frame before to the frame behind, averaged over the field of view.
        """
        before, behind = max(t - 1, 0), min(t + 1, len(self._path) - 1)
        motion = (self._path[behind] - self._path[before]) / max(1, behind - before)
        if self._stretch is not None:
            motion = self._stretch.matrix @ motion
        return in_frame_weight(self.shape, motion, xp)


def corrected_averages(
    movie, frames, corrector, parameters, sampling_rate, exposures, first_frame=0, blank=(), on_corrected=None
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
    blank : collection of int
        Those of `frames` that are not averaged, since they have no contrast.
    on_corrected : callable, optional
        Called with each corrected frame, blank ones too, on the host and binned.

    Returns
    -------
    images : dict of str to ndarray
        On the host, binned: those of ``unweighted``, ``dose_weighted``, ``even``, ``odd``, ``dose_weighted_even``,
        ``dose_weighted_odd``, ``initial``, ``power_spectrum`` and ``power_spectrum_initial`` that are wanted.
    numbers : dict of str to float
        See :func:`xmipp_accel.movie_alignment.quality.even_odd_frc`.
    """
    xp, shape = movie.xp, movie.shape[1:]
    initial, plain, weighted = Halves(), Halves(), Halves()
    noise = exposures if exposures.any() else np.ones(len(exposures))
    dose = None
    if exposures.any() and parameters.save_dose_weighted:
        # What all frames have received before cancels, since the noise keeps its power; so does the pre-exposure.
        received = accumulated(exposures)
        dose = DoseWeights(shape, sampling_rate, received - received[frames[0]], parameters.voltage, xp)
    for t, frame in zip(frames, movie.each(frames)):
        index = first_frame + t
        if t not in blank:
            initial.add(index, frame)  # before the correction, which may overwrite its border
        corrected = corrector.corrected(frame, t)
        if on_corrected is not None:
            on_corrected(to_host(_binned(corrected, shape, parameters.bin_factor)))
        if t in blank:
            continue
        weight = corrector.in_frame_weight(t, xp) if parameters.correct_in_frame_motion else None
        if weight is not None or dose is not None:
            corrected = half_plane(corrected)
        plain.add(index, corrected, weight, noise[t])
        if dose is not None:
            by_dose = dose.weight(t)
            weighted.add(index, corrected, by_dose if weight is None else weight * by_dose, noise[t])
    images = _images(plain, weighted, initial, shape, parameters)
    return images, quality.even_odd_frc(plain, initial, shape, sampling_rate)


def _images(plain, weighted, initial, shape, parameters):
    """Wanted images on the host, by the names of `corrected_averages`."""
    images = {}

    def finish(average):
        return _binned(average.mean(), shape, parameters.bin_factor)

    if parameters.save_unweighted:
        images["unweighted"] = finish(plain.all())
    if parameters.save_initial_average:
        images["initial"] = finish(initial.all())
    if parameters.save_power_spectrum:
        for suffix, halves in (("", plain), ("_initial", initial)):
            images[f"power_spectrum{suffix}"] = quality.power_spectrum(finish(halves.all()))
    if weighted.all().count:
        images["dose_weighted"] = finish(weighted.all())
    for prefix, halves in (("", plain), ("dose_weighted_", weighted)):
        if parameters.save_even_odd and halves.complete:
            images |= {f"{prefix}even": finish(halves.even), f"{prefix}odd": finish(halves.odd)}
    return {name: to_host(image) for name, image in images.items()}


def _binned(frame, shape, factor):
    """Binned image of what is an image or its half-plane transform."""
    if factor == 1 and frame.dtype.kind == "f":
        return frame
    new_shape = binned_shape(shape, factor)
    spectrum = half_plane(frame)
    if factor != 1:
        spectrum = crop_half_plane(spectrum, shape, new_shape)
    scale = new_shape[0] * new_shape[1] / (shape[0] * shape[1])
    return fft_module(spectrum).irfft2(spectrum, s=new_shape) * array_module(spectrum).float32(scale)
