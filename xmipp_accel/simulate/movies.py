"""Movies with known motion, for the demonstration and the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scipy.fft

from xmipp_accel.io.images import write_image, write_stack
from xmipp_accel.io.publish import read_json, write_json
from xmipp_accel.kernels.cpu.warp import warp

GRID_STEP = 16
MARGIN = 48


@dataclasses.dataclass(frozen=True)
class MovieTruth:
    """A simulated movie and the motion in it.

    Attributes
    ----------
    movie, gain : str
        File names in the folder.
    shape : (int, int, int)
        Frames, height and width.
    sampling_rate : float
        A/px.
    dose_per_frame : float
        e/A^2.
    shifts : ndarray, shape (n, 2)
        Translation (y, x) to apply to each frame, px; the first is zero.
    local : ndarray, shape (2, 5)
        Coefficients (y, x) of u, v, u^2, u v and v^2 in the local translation of the last frame, px; u and v run
        from -1 to 1 along x and y.
    bad_pixels, hot_pixels : ndarray of int, shapes (m, 2) and (k, 2)
        (y, x) of pixels with zero gain, and of hot ones, which the gain does not mark.
    """

    movie: str
    gain: str
    shape: tuple[int, int, int]
    sampling_rate: float
    dose_per_frame: float
    shifts: np.ndarray
    local: np.ndarray
    bad_pixels: np.ndarray
    hot_pixels: np.ndarray

    def field(self, y, x, t):
        """Translation to apply, as `MovieAlignmentResult.field`, up to a constant of time at each position."""
        y, x, t = np.broadcast_arrays(y, x, t)
        v, u = 2.0 * y / (self.shape[1] - 1) - 1.0, 2.0 * x / (self.shape[2] - 1) - 1.0
        terms = np.stack([u, v, u * u, u * v, v * v], axis=-1)
        growth = _saturation(t / max(1, self.shape[0] - 1))
        return self.shifts[t] + growth[..., None] * (terms @ self.local.T)

    def to_json(self):
        """Plain values."""
        values = dataclasses.asdict(self)
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, path):
        """Read what :func:`simulate_movie` wrote beside the movie."""
        values = read_json(path)
        values["shape"] = tuple(values["shape"])
        for key in ("shifts", "local"):
            values[key] = np.asarray(values[key], dtype=np.float64)
        for key in ("bad_pixels", "hot_pixels"):
            values[key] = np.asarray(values[key], dtype=np.int64).reshape(-1, 2)
        return cls(**values)


def simulate_movie(
    folder,
    *,
    name="movie",
    seed=0,
    size=640,
    frames=12,
    sampling_rate=1.0,
    dose_per_frame=1.0,
    drift=6.0,
    local=2.0,
    dead_pixels=30,
    hot_pixels=15,
    gain_seed=0,
):
    """Write a movie of particles in amorphous ice, its gain reference and its truth.

    Parameters
    ----------
    folder : path
        Made if it does not exist; receives ``<name>.mrc``, ``<name>_gain.mrc`` and ``<name>_truth.json``.
    name : str
    seed : int
        The same seed gives the same movie.
    size : int or (int, int)
        Edge, or height and width.
    frames : int
    sampling_rate : float
        A/px.
    dose_per_frame : float
        e/A^2.
    drift : float
        Length of the whole frame's motion, px; most of it comes at the beginning.
    local : float
        Largest local motion, px.
    dead_pixels, hot_pixels : int
        With zero gain, and hot without a mark.
    gain_seed : int
        Movies of one camera share it, and with it gain and dead pixels.

    Returns
    -------
    MovieTruth
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ny, nx = (size, size) if isinstance(size, int) else size
    gain, bad = _gain((ny, nx), dead_pixels, np.random.default_rng(gain_seed))
    hot = np.stack([rng.integers(0, ny, hot_pixels), rng.integers(0, nx, hot_pixels)], axis=1)
    truth = MovieTruth(
        movie=f"{name}.mrc", gain=f"{name}_gain.mrc", shape=(frames, ny, nx), sampling_rate=float(sampling_rate),
        dose_per_frame=float(dose_per_frame), shifts=_drift(frames, drift, rng), local=_local(local, rng),
        bad_pixels=bad, hot_pixels=hot,
    )  # fmt: skip
    scene = _scene((ny + 2 * MARGIN, nx + 2 * MARGIN), sampling_rate, rng)
    counts = _expose(scene, truth, gain, rng)
    dtype = np.int8 if counts.max() < 128 else np.uint16
    write_stack(folder / truth.movie, counts.astype(dtype), sampling_rate, dtype)
    write_image(folder / truth.gain, gain, sampling_rate)
    write_json(folder / f"{name}_truth.json", truth.to_json())
    return truth


def _saturation(t):
    return (1.0 - np.exp(-4.0 * t)) / (1.0 - np.exp(-4.0))


def _drift(frames, length, rng):
    t = np.arange(frames) / max(1, frames - 1)
    angle = rng.uniform(0, 2 * np.pi) + 0.8 * t
    path = (
        length * (0.7 * _saturation(1.5 * t) + 0.3 * t)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    )
    steps = rng.normal(0, 0.08 if length else 0.0, (frames, 2))
    path += np.cumsum(steps, axis=0)
    return path - path[0]


def _local(largest, rng):
    coefficients = rng.normal(0, 1, (2, 5)) * np.array([1.0, 1.0, 0.4, 0.4, 0.4])
    v, u = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), indexing="ij")
    size = np.linalg.norm(np.stack([u, v, u * u, u * v, v * v], axis=-1) @ coefficients.T, axis=-1)
    return coefficients * (largest / size.max())


def _gain(shape, dead, rng):
    """Multiplicative gain of mean one with zeros at dead pixels, and where these are."""
    response = 1.0 + 0.04 * rng.normal(size=shape) + 0.03 * np.linspace(-1, 1, shape[1])
    gain = 1.0 / np.clip(response, 0.5, 1.5)
    bad = np.stack([rng.integers(0, s, dead) for s in shape], axis=1)
    gain[bad[:, 0], bad[:, 1]] = 0.0
    return gain.astype(np.float32), np.unique(bad, axis=0)


def _scene(shape, sampling_rate, rng):
    """Relative intensity of mean one: amorphous texture and ring-shaped particles, seen with phase contrast."""
    ny, nx = shape
    fy, fx = scipy.fft.fftfreq(ny, sampling_rate), scipy.fft.rfftfreq(nx, sampling_rate)
    k2 = fy[:, None] ** 2 + fx**2
    white = rng.normal(size=shape).astype(np.float32)
    particles = np.zeros(shape, dtype=np.float32)
    spacing = max(24, int(160 / sampling_rate))
    for y in range(spacing // 2, ny, spacing):
        for x in range(spacing // 2, nx, spacing):
            jitter = rng.integers(-spacing // 4, spacing // 4 + 1, 2)
            particles[min(ny - 1, max(0, y + jitter[0])), min(nx - 1, max(0, x + jitter[1]))] = 1.0
    ring = np.cos(2 * np.pi * np.sqrt(k2) * 45.0) * np.exp(-k2 * 40.0)
    transfer = -np.sin(np.pi * 0.0197 * 12000.0 * k2 - 0.1) * np.exp(-k2 * 10.0)
    texture = scipy.fft.irfft2(scipy.fft.rfft2(white) * transfer, shape)
    blobs = scipy.fft.irfft2(scipy.fft.rfft2(particles) * ring * transfer, shape)
    scene = 0.12 * texture / texture.std() + 0.06 * blobs / blobs.std()
    return np.clip(1.0 + scene, 0.05, None).astype(np.float32)


def _expose(scene, truth, gain, rng):
    """Counts (n, ny, nx) of the moving scene on the detector."""
    frames, ny, nx = truth.shape
    expected = truth.dose_per_frame * truth.sampling_rate**2
    response = np.where(gain > 0, 1.0 / np.where(gain > 0, gain, 1.0), 0.0)
    hot_y, hot_x = truth.hot_pixels.T
    counts = np.empty(truth.shape, dtype=np.int64)
    nodes = [np.arange(-(-(s - 1) // GRID_STEP) + 1) * float(GRID_STEP) for s in scene.shape]
    y, x = np.meshgrid(nodes[0] - MARGIN, nodes[1] - MARGIN, indexing="ij")
    for t in range(frames):
        seen = np.zeros((*y.shape, 2))
        for _ in range(6):  # the field is given at the feature's true place, the warp wants it at the seen one
            seen = -truth.field(y - seen[..., 0], x - seen[..., 1], t)
        moved = warp(scene, seen.astype(np.float32), GRID_STEP)[MARGIN : MARGIN + ny, MARGIN : MARGIN + nx]
        counts[t] = rng.poisson(np.clip(moved, 0, None) * expected * response)
        counts[t, hot_y, hot_x] += rng.poisson(20.0 * max(1.0, expected), len(hot_y))
    return counts
