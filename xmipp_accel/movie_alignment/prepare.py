"""From raw frames to clean ones: dark, gain, and repair of bad pixels."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import array_module, from_host, to_host
from xmipp_accel.errors import ProcessingError
from xmipp_accel.movie_alignment.frame_kernels import clean_frames, sum_frames

N_SOURCES = 8
SOURCE_RADIUS = 12
MAX_OUTLIER_FRACTION = 0.05
MAX_BAD_FRACTION = 0.5
# Nearly every frame shows contrast in its first rows.
FIRST_ROWS = 16


class PreparedMovie:
    """Raw frames on a device, corrected a few at a time so that no float copy of the movie is kept.

    Parameters
    ----------
    raw : array, shape (n, ny, nx)
        In the file's type, on the device.
    gain, dark : array, shape (ny, nx), optional
        On the same device; the gain multiplies.
    bad : BadPixels, optional
        Pixels to be replaced.
    """

    def __init__(self, raw, gain=None, dark=None, bad=None):
        self.raw, self.gain, self.dark = raw, gain, dark
        self.repair(bad or BadPixels(raw.shape[1:], np.zeros(0, dtype=np.int64)))

    @property
    def xp(self):
        """`numpy` or `cupy`."""
        return array_module(self.raw)

    @property
    def shape(self):
        """(n, ny, nx)."""
        return self.raw.shape

    def frames(self, which, window=None, level=0.0):
        """Return frames corrected.

        Parameters
        ----------
        which : sequence of int
        window : (int, int, int, int), optional
            First row and column, height and width of the part that is wanted.
        level : float, optional
            Subtracted from them.

        Returns
        -------
        array of float32, shape (b, height, width)
            Which the caller may change.
        """
        window = window or (0, 0, *self.shape[1:])
        return clean_frames(self.raw, which, self.dark, self.gain, window, level, self._index, self._sources)

    def sum(self, which):
        """Sum (ny, nx), float32, of corrected frames."""
        return sum_frames(self.raw, which, self.dark, self.gain, self._index, self._sources)

    def mean_frame(self):
        """Average of the corrected frames, float32."""
        return self.sum(range(len(self.raw))) / self.xp.float32(len(self.raw))

    def repair(self, bad):
        """Replace the pixels of another :class:`BadPixels` from now on."""
        self.bad = bad
        self._index, self._sources = (from_host(places, self.xp) for places in (bad.index, bad.sources))


class BadPixels:
    """Pixels to be replaced, and what replaces them.

    Parameters
    ----------
    shape : (int, int)
        Of the frames.
    index : ndarray of int64, shape (m,)
        Their flat indices, in order.

    Attributes
    ----------
    shape, index
        As given.
    sources : ndarray of int64, shape (8, m)
        From :func:`repair_sources`.

    Raises
    ------
    ProcessingError
        More than half of all pixels are bad.
    """

    def __init__(self, shape, index):
        self.shape, self.index = tuple(shape), index
        if len(index) > MAX_BAD_FRACTION * np.prod(shape):
            percent = 100 * len(index) / np.prod(shape)
            raise ProcessingError(f"{percent:.0f} % of the pixels are bad; the gain or the defects are wrong")
        self.sources = repair_sources(self.mask, index)

    @property
    def mask(self):
        """Where they are, bool of shape (ny, nx)."""
        mask = np.zeros(self.shape, dtype=bool)
        mask.ravel()[self.index] = True
        return mask

    def with_others(self, index):
        """These pixels and those with the flat indices `index`."""
        return BadPixels(self.shape, np.union1d(self.index, index)) if len(index) else self

    @property
    def positions(self):
        """Rows and columns (m, 2)."""
        return np.stack(np.unravel_index(self.index, self.shape), axis=1)


def non_finite_pixels(raw):
    """Flat indices, on the host, of the pixels that hold NaN or infinity in some frame."""
    if raw.dtype.kind != "f":
        return np.zeros(0, dtype=np.int64)
    xp = array_module(raw)
    bad = xp.zeros(raw.shape[1:], dtype=bool)
    for frame in raw:
        bad |= ~xp.isfinite(frame)
    return to_host(xp.flatnonzero(bad))


def blank_frames(movie):
    """Indices of the frames whose raw pixels are all equal."""
    first = movie.raw[:, :FIRST_ROWS]
    flat = to_host(first.max(axis=(1, 2)) == first.min(axis=(1, 2)))
    return [int(t) for t in np.flatnonzero(flat) if movie.raw[t].max() == movie.raw[t].min()]


def outlier_pixels(average, known, sigma):
    """Find hot and dead pixels in the average of the corrected frames.

    A pixel is compared with the mean of the middle two of its four neighbours, so that one bad neighbour does not
    matter. Dead ones are sought in the square root, in which the noise of counts is the same everywhere: with few
    electrons, their absence is less than 6 standard deviations of the counts.

    Parameters
    ----------
    average : array, shape (ny, nx)
    known : ndarray of int64
        Flat indices of pixels known to be bad already, which do not enter the statistics.
    sigma : float
        Threshold in standard deviations of that difference.

    Returns
    -------
    ndarray of int64
        Flat indices, on the host; none when they were more than five per cent of the pixels, since such an average
        does not tell bad pixels from noise.
    """
    xp = array_module(average)
    good = xp.ones(average.shape, dtype=bool)
    good.ravel()[xp.asarray(known)] = False
    around = _middle_of_neighbours(average)
    hot = xp.abs(_in_deviations(average - around, good)) > sigma
    roots = [xp.sqrt(xp.maximum(image, 0)) for image in (average, around)]
    dead = _in_deviations(roots[0] - roots[1], good) < -sigma
    found = to_host(xp.flatnonzero((hot | dead) & good))
    return found if len(found) <= MAX_OUTLIER_FRACTION * average.size else found[:0]


def _middle_of_neighbours(image):
    """Mean of the middle two of each pixel's four neighbours."""
    xp = array_module(image)
    padded = xp.pad(image, 1, mode="reflect")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    low = high = total = neighbours[0]
    for neighbour in neighbours[1:]:
        low, high, total = xp.minimum(low, neighbour), xp.maximum(high, neighbour), total + neighbour
    return 0.5 * (total - low - high)


def _in_deviations(difference, good):
    """Divide by the robust standard deviation of the good pixels; 0 if they have none."""
    xp = array_module(difference)
    step = max(1, difference.size // 100_000)
    # On the host, since CuPy 13 sorts with Python's lock held until the GPU is done.
    sample = to_host(difference.ravel()[::step])[to_host(good.ravel()[::step])]
    if not sample.size:
        return xp.zeros_like(difference)
    deviation = 1.4826 * float(np.median(np.abs(sample - np.median(sample))))
    return difference / xp.float32(deviation) if deviation > 0 else xp.zeros_like(difference)


def repair_sources(bad, index):
    """Choose good neighbours of the bad pixels.

    Parameters
    ----------
    bad : ndarray of bool, shape (ny, nx)
    index : ndarray of int64, shape (m,)
        Flat indices of the bad pixels.

    Returns
    -------
    ndarray of int64, shape (8, m)
        Flat indices of good pixels near them, the nearest first, repeated where there are fewer. Frames take them
        in turn: one source for all frames would print a pattern that stands still.
    """
    ny, nx = bad.shape
    y, x = np.unravel_index(index, bad.shape)
    count = np.zeros(len(y), dtype=np.int64)
    sources = np.zeros((N_SOURCES, len(y)), dtype=np.int64)
    for dy, dx in _offsets_by_distance(SOURCE_RADIUS):
        todo = np.nonzero(count < N_SOURCES)[0]
        if not len(todo):
            break
        sy, sx = y[todo] + dy, x[todo] + dx
        inside = (sy >= 0) & (sy < ny) & (sx >= 0) & (sx < nx)
        todo, sy, sx = todo[inside], sy[inside], sx[inside]
        good = ~bad[sy, sx]
        todo, sy, sx = todo[good], sy[good], sx[good]
        sources[count[todo], todo] = sy * nx + sx
        count[todo] += 1
    _fill_lonely(sources, count, bad, y, x)
    for row in range(1, N_SOURCES):
        missing = count <= row
        sources[row, missing] = sources[row % np.maximum(count[missing], 1), missing]
    return sources


def _offsets_by_distance(radius):
    grid = np.arange(-radius, radius + 1)
    dy, dx = (a.ravel() for a in np.meshgrid(grid, grid, indexing="ij"))
    order = np.argsort(dy * dy + dx * dx, kind="stable")
    return [(int(dy[i]), int(dx[i])) for i in order if 0 < dy[i] ** 2 + dx[i] ** 2 <= radius**2]


def _fill_lonely(sources, count, bad, y, x):
    """Give pixels inside wide defects random good pixels of the whole frame."""
    lonely = np.nonzero(count == 0)[0]
    if len(lonely):
        good = np.flatnonzero(~bad)
        picks = np.random.default_rng(0).integers(0, len(good), (N_SOURCES, len(lonely)))
        sources[:, lonely] = good[picks]
        count[lonely] = N_SOURCES
