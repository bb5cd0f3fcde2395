"""Averages of motion-corrected frames.

Whole-frame translations are exact phase shifts; motion that varies over the frame and anisotropic magnification
are corrected together, by one cubic B-spline interpolation. Binning crops the averages' Fourier transforms.
"""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, fft_module, to_host
from xmipp_accel.movie_alignment import quality
from xmipp_accel.movie_alignment.averages import Halves, in_frame_weight
from xmipp_accel.movie_alignment.dose import DoseWeights, accumulated
from xmipp_accel.movie_alignment.frame_grid import FrameGrid
from xmipp_accel.movie_alignment.frame_kernels import frame_batches
from xmipp_accel.movie_alignment.spectra import crop_half_plane
from xmipp_accel.numerics import bspline

GRID_STEP = 16
BLOCK = (32, 8)
# Of a batch of frames: beside the images there are transforms and weights.
COPIES = 2


def binned_shape(shape, factor):
    """Even size of an image whose pixels are `factor` times larger; the shape itself for a factor of 1."""
    return tuple(shape) if factor == 1 else tuple(2 * int(s / factor / 2) for s in shape)


def warp(images, grids, step=GRID_STEP):
    """Move the content of images (b, ny, nx) along translations (b, gy, gx, 2) at nodes `step` px apart.

    The images may be overwritten.
    """
    if array_module(images) is not np:
        return _cuda_warp(images, grids, step)
    from xmipp_accel.kernels.cpu.warp import warp_frames

    return warp_frames(images, grids, step)


def _cuda_warp(images, grids, step):
    xp = array_module(images)
    ny, nx = (np.int32(s) for s in images.shape[1:])
    blocks = (-(-int(nx) // BLOCK[0]), -(-int(ny) // BLOCK[1]), len(images))
    images = xp.ascontiguousarray(images, dtype=xp.float32)
    grids = xp.ascontiguousarray(grids, dtype=xp.float32)
    other = xp.empty(images.shape, dtype=xp.float32)
    cuda_kernel("warp", "prefilter<1>")(blocks, BLOCK, (images, other, ny, nx))
    cuda_kernel("warp", "prefilter<0>")(blocks, BLOCK, (other, images, ny, nx))
    gy, gx = (np.int32(s) for s in grids.shape[1:3])
    cuda_kernel("warp", "warp")(blocks, BLOCK, (images, grids, other, ny, nx, gy, gx, np.int32(step)))
    return other


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
        self.shifts, self.shape, self.grid = np.asarray(shifts), tuple(shape), FrameGrid(shape)
        self._stretch = None if magnification is None or magnification.is_identity else magnification
        control_points = np.asarray(control_points)
        self.interpolates = control_points.size > 0 or self._stretch is not None
        self._path = self.shifts
        if self.interpolates:
            grid = self._translations(control_points)
            self._nodes, self._path = xp.asarray(grid, dtype=xp.float32), grid.mean(axis=(1, 2))

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

    def corrected(self, images, frames):
        """The listed frames corrected, as images if they are interpolated, else as half-plane transforms."""
        if self.interpolates:
            return warp(images, self._nodes[frames])
        return self.grid.moved_spectra(images, self.shifts[frames])

    def in_frame_weights(self, frames, xp):
        """Amplitudes (b, ky, kx) that the motion during the listed frames leaves.

        It is taken for half the way from the frame before to the frame behind, averaged over the field of view.
        """
        weights = []
        for t in frames:
            before, behind = max(t - 1, 0), min(t + 1, len(self._path) - 1)
            motion = (self._path[behind] - self._path[before]) / max(1, behind - before)
            if self._stretch is not None:
                motion = self._stretch.matrix @ motion
            weights.append(in_frame_weight(self.grid.padded, motion, xp))
        return xp.stack(weights)


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
    xp, shape, grid = movie.xp, movie.shape[1:], corrector.grid
    plain, weighted = Halves(), Halves()
    noise = exposures if exposures.any() else np.ones(len(exposures))
    dose = None
    if exposures.any() and parameters.save_dose_weighted:
        # What all frames have received before cancels, since the noise keeps its power; so does the pre-exposure.
        received = accumulated(exposures)
        dose = DoseWeights(grid.padded, sampling_rate, received - received[frames[0]], parameters.voltage, xp)
    for batch in frame_batches(frames, shape, xp, COPIES):
        corrected = corrector.corrected(movie.frames(batch), batch)
        if on_corrected is not None:
            for frame in corrected:
                on_corrected(to_host(_binned(frame, grid, parameters.bin_factor)))
        blur = corrector.in_frame_weights(batch, xp) if parameters.correct_in_frame_motion else None
        if corrected.dtype.kind == "f" and (blur is not None or dose is not None):
            corrected = grid.spectra(corrected)
        indices, lit = first_frame + batch, np.flatnonzero(~np.isin(batch, blank))
        plain.add(indices, corrected, blur, noise[batch], lit)
        if dose is not None:
            by_dose = dose.weights(batch)
            weighted.add(indices, corrected, by_dose if blur is None else blur * by_dose, noise[batch], lit)
    initial = Halves.of_movie(movie, [t for t in frames if t not in blank], first_frame)
    images = _images(plain, weighted, initial, grid, parameters)
    return images, quality.even_odd_frc(plain, initial, shape, sampling_rate)


def _images(plain, weighted, initial, grid, parameters):
    """Wanted images on the host, by the names of `corrected_averages`."""
    images = {}

    def finish(average):
        return _binned(average.mean(), grid, parameters.bin_factor)

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


def _binned(frame, grid, factor):
    """Binned image of what is an image or its half-plane transform."""
    if factor == 1:
        return grid.image(frame)
    if grid.padded != grid.shape:  # pixels that are not there would be binned too
        frame = grid.image(frame)
    spectrum = frame if frame.dtype.kind == "c" else fft_module(frame).rfft2(frame)
    new_shape = binned_shape(grid.shape, factor)
    spectrum = crop_half_plane(spectrum, grid.shape, new_shape)
    scale = new_shape[0] * new_shape[1] / (grid.shape[0] * grid.shape[1])
    return fft_module(spectrum).irfft2(spectrum, s=new_shape) * array_module(spectrum).float32(scale)
