"""Movies of any size that drift by known shifts, made frame by frame on a GPU within seconds, or on the CPU."""

from __future__ import annotations

import numpy as np

from xmipp_accel.backend import fft_module, good_fft_size, to_host

CONTRAST = 0.12
TEXTURE = 3.0  # A; amplitudes fall to 0.6 at one over 2 pi times this
RESPONSE_SPREAD = 0.04
LARGEST_COUNT = 127


def drift_path(n, length, rng):
    """Translation (n, 2) to apply to each frame, px: fast at first, then settling, and shaking a little."""
    t = np.arange(n) / max(1, n - 1)
    angle = rng.uniform(0, 2 * np.pi) + 0.8 * t
    settled = 0.65 * (1 - np.exp(-6 * t)) / (1 - np.exp(-6)) + 0.35 * t
    path = length * settled[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    path += np.cumsum(rng.normal(0, 0.08, (n, 2)), axis=0)
    return path - path[0]


def write_movie(path, shape, sampling_rate, xp, drift=8.0, exposure=1.0, seed=0):
    """Write an int8 MRC movie frame by frame.

    Parameters
    ----------
    path : path
    shape : (int, int, int)
        Frames, height and width.
    sampling_rate : float
        A/px.
    xp : module
        `numpy` or `cupy`, where the frames are made.
    drift : float
        Length of the motion, px.
    exposure : float
        Electrons a pixel and frame.
    seed : int

    Returns
    -------
    shifts : ndarray, shape (n, 2)
        Translation (y, x) to apply to each frame, px.
    gain : ndarray of float32, shape (ny, nx)
        What the frames are to be multiplied by.
    """
    n, ny, nx = shape
    shifts = drift_path(n, drift, np.random.default_rng(seed))
    rng = xp.random.default_rng(seed)
    spectrum, fy, fx, size = _scene(ny, nx, sampling_rate, drift, xp, rng)
    gain = 1 / (1 + RESPONSE_SPREAD * rng.standard_normal((ny, nx), dtype=xp.float32)).clip(0.5, 1.5)
    response = exposure / gain
    fft = fft_module(spectrum)
    with open(path, "wb") as file:
        file.write(mrc_header(shape, sampling_rate))
        for y, x in shifts:
            turn = xp.exp(2j * np.pi * fy * y).astype(xp.complex64) * xp.exp(2j * np.pi * fx * x).astype(
                xp.complex64
            )
            scene = fft.irfft2(spectrum * turn, size)[:ny, :nx]
            expected = (1 + scene).clip(0, None) * response
            counts = rng.poisson(expected).clip(0, LARGEST_COUNT).astype(xp.int8)
            file.write(to_host(counts).data)
    return shifts, to_host(gain)


def _scene(ny, nx, sampling_rate, drift, xp, rng):
    """Spectrum of a smooth texture, larger than the frame so that what leaves it does not come back."""
    size = tuple(good_fft_size(side + 2 * int(np.ceil(drift)) + 2) for side in (ny, nx))
    fy = xp.fft.fftfreq(size[0])[:, None]
    fx = xp.fft.rfftfreq(size[1])[None]
    white = rng.standard_normal(size, dtype=xp.float32)
    k2 = (fy**2 + fx**2) / sampling_rate**2
    # Amorphous ice, with more at low frequencies, as in a real micrograph.
    filtered = (xp.exp(-k2 * TEXTURE**2 / 2) * (1 + 2 * xp.exp(-k2 * 40.0**2))).astype(xp.float32)
    filtered[0, 0] = 0
    fft = fft_module(white)
    spectrum = fft.rfft2(white) * filtered
    spectrum *= CONTRAST / fft.irfft2(spectrum, size).std()
    return spectrum, fy, fx, size


def mrc_header(shape, sampling_rate) -> bytes:
    """Header of an int8 stack, for which the whole movie need not be in memory."""
    n, ny, nx = shape
    words = np.zeros(256, "<i4")
    floats = words.view("<f4")
    words[:4] = nx, ny, n, 0
    words[7:10] = nx, ny, 1
    floats[10:13] = nx * sampling_rate, ny * sampling_rate, sampling_rate
    floats[13:16] = 90
    words[16:19] = 1, 2, 3
    words[52:54] = np.frombuffer(b"MAP \x44\x44\x00\x00", "<i4")
    return words.tobytes()
