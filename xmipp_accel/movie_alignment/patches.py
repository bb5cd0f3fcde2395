"""Local motion as seen in patches: each patch of a frame against the sum of that patch in the other frames."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module, cuda_kernel, fft_module, good_fft_size
from xmipp_accel.movie_alignment import correlate
from xmipp_accel.movie_alignment.spectra import SignalSpectrum, phases

# Bytes of spectra at a time: near the cache on a CPU, few launches on a GPU.
HOST_BATCH, DEVICE_BATCH = 32 << 20, 512 << 20
THREADS = 256


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """Where the patches lie.

    Attributes
    ----------
    centres_y, centres_x : ndarray, shapes (py,) and (px,)
        In px of the movie.
    size : int
        Edge in pixels of the working grid.
    pixel : (float, float)
        Edges (y, x) of a working pixel in px of the movie.
    origin : (int, int)
        First pixel of the movie that the working grid spans.
    """

    centres_y: np.ndarray
    centres_x: np.ndarray
    size: int
    pixel: tuple[float, float]
    origin: tuple[int, int]

    @property
    def positions(self):
        """Centres (py * px, 2) as (y, x), y slowest."""
        y, x = np.meshgrid(self.centres_y, self.centres_x, indexing="ij")
        return np.stack([y.ravel(), x.ravel()], axis=1)

    @property
    def frequencies(self):
        """Frequencies (fy, fx) of a patch's half plane, cycles per px of the movie."""
        fy = np.fft.fftfreq(self.size) / self.pixel[0]
        return fy, np.fft.rfftfreq(self.size) / self.pixel[1]


def make_grid(images_shape, extent, origin, edge, counts=(0, 0)):
    """Lay out patches.

    Parameters
    ----------
    images_shape : (int, int)
        Working grid (my, mx).
    extent, origin : (int, int)
        Pixels of the movie that it spans, and the first one.
    edge : float
        Wanted edge of a patch, px of the movie.
    counts : (int, int)
        Patches along y and x; 0 covers the frame with half overlap at least.
    """
    pixel = tuple(e / s for e, s in zip(extent, images_shape))
    size = good_fft_size(round(edge / np.sqrt(pixel[0] * pixel[1])))
    largest = min(images_shape) - min(images_shape) % 2
    while size > largest or good_fft_size(size) != size:
        size = min(size, largest + 2) - 2
    centres = []
    for axis in (0, 1):
        room = images_shape[axis] - size
        count = counts[axis] or max(3, int(np.ceil(2 * room / size)) + 1)
        centres.append((np.linspace(0, room, count) + size / 2) * pixel[axis] + origin[axis])
    return PatchGrid(centres[0], centres[1], size, pixel, tuple(origin))


@dataclasses.dataclass(frozen=True)
class PatchShifts:
    """Measured translations that patches still need.

    Attributes
    ----------
    shifts : ndarray, shape (p, g, 2)
        For each patch and group of frames, px of the movie.
    information : ndarray, shape (p, g, 2, 2)
        Inverse covariances; zero where nothing was found.
    frame_shifts : ndarray, shape (n, 2)
        The same for each frame, over all patches together.
    spectrum : SignalSpectrum
        Of all patches.
    """

    shifts: np.ndarray
    information: np.ndarray
    frame_shifts: np.ndarray
    spectrum: SignalSpectrum


def frame_groups(n, size):
    """Split frames 0 .. n-1 into consecutive groups of about `size`; three groups at least, if possible."""
    count = max(min(n, 3), round(n / size))
    return np.array_split(np.arange(n), count)


def measure_patches(images, grid, field, groups, weight, reach):
    """Measure what remains of the motion in every patch.

    Parameters
    ----------
    images : array, shape (n, my, mx)
        Frames on the working grid, not shifted.
    grid : PatchGrid
    field : ndarray, shape (n, p, 2)
        Translations applied so far at the patches' centres.
    groups : list of ndarray of int
        Frames measured together.
    weight : callable
        Weight of cross-spectra as a function of the frequency (cycles per px of the movie).
    reach : float
        Larger remaining translations are not trusted, px of the movie.

    Returns
    -------
    PatchShifts
    """
    xp = array_module(images)
    n, n_patches = len(images), len(grid.positions)
    fy, fx = grid.frequencies
    radius = xp.asarray(np.hypot(fy[:, None], fx[None]).astype(np.float32))
    weights = 2 * weight(radius)
    weights[:, 0] *= 0.5
    weights[0, 0] = 0
    spectrum = SignalSpectrum(n, max(8, grid.size // 4))
    rings = spectrum.rings(radius)
    shifts, information = np.zeros((n_patches, len(groups), 2)), np.zeros((n_patches, len(groups), 2, 2))
    gradient, curvature = np.zeros((n, 2)), np.zeros((n, 2, 2))
    room = HOST_BATCH if xp is np else DEVICE_BATCH
    batch = max(1, room // (n * grid.size * (grid.size // 2 + 1) * 8))
    for first in range(0, n_patches, batch):
        rows = np.arange(first, min(n_patches, first + batch))
        spectra = cut_patches(images, grid, rows, field)
        total = spectra.sum(axis=1)
        power = (spectra.real**2 + spectra.imag**2).sum(axis=(0, 1))
        spectrum.add((total.real**2 + total.imag**2).sum(axis=0), power, rings, len(rows))
        cross = spectra * (total[:, None] - spectra).conj() * weights
        slope, bend = correlate.derivatives(correlate.moments(cross.sum(axis=0), fy, fx, np.zeros((n, 2))))
        gradient, curvature = gradient + slope, curvature + bend
        if len(groups) < n:
            summed = xp.stack([spectra[:, g[0] : g[-1] + 1].sum(axis=1) for g in groups], axis=1)
            cross = summed * (total[:, None] - summed).conj() * weights
        cross = cross.reshape(-1, len(fy), len(fx))
        found, sharpness = correlate.newton(cross, fy, fx, np.zeros((len(cross), 2)), reach=reach)
        variance = correlate.gradient_variance(cross.real**2 + cross.imag**2, fy, fx)
        shifts[rows] = found.reshape(len(rows), -1, 2)
        information[rows] = correlate.shift_information(sharpness, variance).reshape(len(rows), -1, 2, 2)
    _, frame_shifts = correlate.ascent(gradient, curvature)
    return PatchShifts(shifts, information, frame_shifts, spectrum)


def cut_patches(images, grid, rows, field):
    """Transforms of windowed patches, cut where the motion has carried them.

    The cut follows the motion by whole pixels and a phase does the rest.

    Returns
    -------
    array of complex64, shape (len(rows), n, size, size // 2 + 1)
    """
    xp = array_module(images)
    n, my, mx = images.shape
    pixel, size = np.asarray(grid.pixel), grid.size
    start = (grid.positions[rows] - np.asarray(grid.origin)) / pixel - size / 2
    moved = np.rint(start[None] - field[:, rows] / pixel)
    moved = np.clip(moved, 0, np.array([my - size, mx - size]))
    rest = field[:, rows] + (moved - start[None]) * pixel
    patches = _cut(images, moved.swapaxes(0, 1).astype(np.int32), _window(size))
    spectra = fft_module(patches).rfft2(patches)
    fy, fx = grid.frequencies
    ey, ex = phases(fy, fx, rest.swapaxes(0, 1).reshape(-1, 2), xp)
    spectra *= ey.reshape(len(rows), n, size, 1)
    spectra *= ex.reshape(len(rows), n, 1, size // 2 + 1)
    return spectra


def _cut(images, starts, window):
    """Windowed patches (p, n, size, size) that begin at `starts` (p, n, 2)."""
    xp = array_module(images)
    starts = np.ascontiguousarray(starts)
    if xp is np:
        from xmipp_accel.kernels.cpu.patches import cut_patches as cpu_cut

        return cpu_cut(images, starts, window)
    size = len(window)
    out = xp.empty((*starts.shape[:2], size, size), dtype=xp.float32)
    sizes = [np.int32(s) for s in (*images.shape, size)]
    kernel = cuda_kernel("patches", "cut_patches")
    kernel(
        (starts.shape[0] * starts.shape[1],),
        (THREADS,),
        (images, xp.asarray(starts), xp.asarray(window), out, *sizes),
    )
    return out


def _window(size):
    """Square root of a Hann window, so that the product of two patches carries the Hann window."""
    return np.sin(np.pi * (np.arange(size) + 0.5) / size).astype(np.float32)
