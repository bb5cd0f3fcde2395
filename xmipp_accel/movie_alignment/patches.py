"""Local motion as seen in patches: each patch of a frame against the sum of that patch in the other frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.fft

from xmipp_accel.backend import (
    array_module,
    cuda_kernel,
    fft_module,
    free_bytes,
    from_host,
    good_fft_size,
    on_all_cores,
    to_host,
)
from xmipp_accel.movie_alignment.others import (
    N_MOMENTS,
    aligned_sum,
    correlation_moments,
    make_weighting,
    newton_step,
    shift_information,
    slopes,
)
from xmipp_accel.movie_alignment.spectra import SignalSpectrum, moving_phases

# Transforms that are kept: on the host up to so many bytes, on a GPU up to this part of the free memory. Larger
# stacks are made again whenever they are needed.
KEPT_ON_HOST, KEPT_ON_DEVICE = 256 << 20, 0.5
# Transforms at a time: in the cache of a CPU, few launches on a GPU, again as a part of the free memory.
BLOCK_ON_HOST, BLOCK_ON_DEVICE, LARGEST_BLOCK = 32 << 20, 0.06, 2 << 30
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
    information : ndarray, shape (p, g, 2)
        Inverse variances; zero where nothing was found.
    frame_shifts : ndarray, shape (n, 2)
        Translations that the frames need as a whole.
    spectrum : SignalSpectrum
        Of the patches as they were.
    """

    shifts: np.ndarray
    information: np.ndarray
    frame_shifts: np.ndarray
    spectrum: SignalSpectrum


def frame_groups(n, size):
    """Split frames 0 .. n-1 into consecutive groups of about `size`; three groups at least, if possible."""
    count = max(min(n, 3), round(n / size))
    return np.array_split(np.arange(n), count)


class PatchStack:
    """Transforms of windowed patches, cut where the motion has carried them by whole pixels.

    Parameters
    ----------
    images : array, shape (n, my, mx)
        Frames on the working grid, not shifted.
    grid : PatchGrid
    field : ndarray, shape (n, p, 2)
        Translations at the patches' centres, px of the movie.
    """

    def __init__(self, images, grid, field):
        n, my, mx = images.shape
        self.images, self.grid = images, grid
        pixel, size = np.asarray(grid.pixel), grid.size
        start = ((grid.positions - np.asarray(grid.origin)) / pixel - size / 2)[:, None]
        moved = np.rint(start - field.swapaxes(0, 1) / pixel).clip(0, (my - size, mx - size))
        self._starts = moved.astype(np.int32, order="C")
        # What a patch's content needs besides its field, since it was cut at whole pixels, (p, n, 2).
        self.offsets = (moved - start) * pixel
        each = n * size * (size // 2 + 1) * 8
        count = len(self._starts)
        kept, block = KEPT_ON_HOST, BLOCK_ON_HOST
        if array_module(images) is not np:
            free = free_bytes(array_module(images))
            kept, block = int(KEPT_ON_DEVICE * free), min(LARGEST_BLOCK, int(BLOCK_ON_DEVICE * free))
        parts = np.array_split(np.arange(count), -(-count // max(1, block // each)))
        self._places = [slice(part[0], part[-1] + 1) for part in parts]
        self._kept = [self._transforms(places) for places in self._places] if count * each <= kept else None

    def blocks(self):
        """Yield slices of patches and their transforms (len, n, size, size // 2 + 1), complex64."""
        if self._kept is not None:
            yield from zip(self._places, self._kept)
            return
        for places in self._places:
            yield places, self._transforms(places)

    def _transforms(self, places):
        patches = _cut(self.images, self._starts[places], _window(self.grid.size))
        if array_module(patches) is not np:
            return fft_module(patches).rfft2(patches)
        size = self.grid.size
        spectra = np.empty((*patches.shape[:2], size, size // 2 + 1), dtype=np.complex64)

        def transform(place):  # its frames stay in the core's own cache
            spectra[place] = scipy.fft.rfft2(patches[place])

        on_all_cores(transform, range(len(patches)))
        return spectra


def measure_patches(stack, field, groups, weight, reach):
    """Measure what remains of the motion in every patch.

    The correlation's curvature is averaged over a patch's frames, which show the same content: a step taken with
    one frame's own curvature is wild where that is small by chance.

    Parameters
    ----------
    stack : PatchStack
    field : ndarray, shape (n, p, 2)
        Translations applied so far at the patches' centres; not far from those at which the patches were cut.
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
    grid, xp = stack.grid, array_module(stack.images)
    n = len(stack.images)
    fy, fx = grid.frequencies
    weighting = make_weighting(fy, fx, weight, xp)
    radius = xp.hypot(weighting.fy[:, None], weighting.fx[None])
    spectrum = SignalSpectrum(n, max(8, grid.size // 4))
    rings = spectrum.rings(radius)
    moved = field.swapaxes(0, 1) + stack.offsets
    moments, frames = [], xp.zeros((n, N_MOMENTS))
    total_power, frame_power = (xp.zeros(radius.shape, dtype=xp.float32) for _ in range(2))
    for places, spectra in stack.blocks():
        phases = moving_phases(moved[places], fy, fx, xp)
        total, power = aligned_sum(spectra, phases)
        total_power += (total.real**2 + total.imag**2).sum(axis=0)
        frame_power += power.sum(axis=0)
        found = correlation_moments(spectra, total, weighting, phases)
        frames += found.sum(axis=0)
        if len(groups) < n:
            found = correlation_moments(*_grouped(spectra, phases, groups, total, weighting))
        moments.append(found)
    # What is left are so few numbers that the host is faster than the launches on a GPU would be.
    whole, each = slopes(to_host(frames)), slopes(to_host(xp.concatenate(moments)))
    curvature = each.curvature.mean(axis=1, keepdims=True)
    shifts, definite = newton_step(each.gradient, curvature)
    trusted = definite & (np.hypot(shifts[..., 0], shifts[..., 1]) <= reach)
    information = np.diagonal(shift_information(curvature, each.variance), axis1=-2, axis2=-1)
    frame_shifts, _ = newton_step(whole.gradient, whole.curvature)
    spectrum.add(total_power, frame_power, rings, len(moved))
    return PatchShifts(
        np.where(trusted[..., None], shifts, 0.0),
        np.where(trusted[..., None], information, 0.0),
        frame_shifts,
        spectrum,
    )


def _grouped(spectra, phases, groups, total, weighting):
    """Arguments for the moments of groups of moved frames, which need no more moving."""
    xp = array_module(spectra)
    ey, ex = phases
    summed = xp.stack(
        [sum(spectra[:, t] * (ey[:, t, :, None] * ex[:, t, None, :]) for t in group) for group in groups],
        axis=1,
    )
    still = xp.ones_like(ey[:, : len(groups)]), xp.ones_like(ex[:, : len(groups)])
    return summed, total, weighting, still


def _cut(images, starts, window):
    """Windowed patches (p, n, size, size) that begin at `starts` (p, n, 2)."""
    xp = array_module(images)
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
        (images, from_host(starts, xp), from_host(window, xp), out, *sizes),
    )
    return out


def _window(size):
    """Square root of a Hann window, so that the product of two patches carries the Hann window."""
    return np.sin(np.pi * (np.arange(size) + 0.5) / size).astype(np.float32)
