"""Whether the gain image is turned, and applied, as the movie needs it.

The mean of the raw frames shows the specimen times the detector's response, which is one over the gain. Pixel by
pixel, against the mean of their neighbours, the specimen drops out, being smooth there, and the response stays.
So the high-passed mean is compared with the high-passed logarithm of the response in all orientations of the gain
that fit the frame, and with that of its inverse, which is the same with the other sign.

The slope of one on the other is 1 for the right orientation however noisy the movie is, and 0 for the others, or
for movies that have been corrected before. It is measured in separate blocks of the frame, whose scatter tells its
error without any assumption about the noise.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from xmipp_accel.backend import array_module, to_host
from xmipp_accel.io.gains import FLIPS, orient

# Every orientation once.
ORIENTATIONS = (
    (0, "none"),
    (90, "none"),
    (180, "none"),
    (270, "none"),
    (0, "up_down"),
    (0, "left_right"),
    (90, "up_down"),
    (90, "left_right"),
)
# Edge (px) of the middle of the frame that is looked at: some percent of response show there at once.
EDGE = 1024
# Edge (px) of the neighbourhood that a pixel is compared with.
WINDOW = 5
BLOCKS = 8
CLIP = 5.0
# Relative variation of the gain from pixel to pixel below which its orientation does not matter.
FEATURELESS = 1e-4
# Least slope of an orientation that is believed: noise in the gain image itself makes it less than 1.
PRESENT = 0.5
# Standard errors. With the scatter of 64 blocks, chance exceeds this once in 10 million gains.
SIGNIFICANT = 6.0
WARNING = "the raw frames fit the gain better with"


@dataclasses.dataclass(frozen=True)
class GainCheck:
    """What the comparison found.

    Attributes
    ----------
    score, best_score : float
        Normalised correlation of raw frames and response, for the gain as it is used and at its best.
    rotation, flip : int and str
        Orientation of the best, as the parameters `gain_rotation` and `gain_flip` say it.
    inverse : bool
        Whether the best divides where the gain as it is used multiplies, or the other way round.
    better : bool
        The best is not the gain as it is used, and significantly better.
    certain : bool
        Other movies would not tell more.
    """

    score: float
    best_score: float
    rotation: int
    flip: str
    inverse: bool
    better: bool
    certain: bool

    def numbers(self) -> dict[str, float]:
        """For the result's quality; the flip as MotionCor counts: 0 none, 1 up_down, 2 left_right."""
        return {
            "gain_score": self.score,
            "gain_best_score": self.best_score,
            "gain_best_rotation": float(self.rotation),
            "gain_best_flip": float(FLIPS.index(self.flip)),
            "gain_best_inverse": float(self.inverse),
        }

    def warning(self, divided) -> str:
        """What to change, given whether the gain as it is used divides; empty if nothing."""
        if not self.better:
            return ""
        mode = "divide" if bool(divided) != self.inverse else "multiply"
        return (
            f"{WARNING} gain_rotation {self.rotation}, gain_flip {self.flip} and"
            f" gain_mode {mode} (score {self.best_score:.3f} instead of {self.score:.3f})"
        )


def check_gain(movie, frames, rotation, flip):
    """Compare the gain of a movie with its raw frames.

    Parameters
    ----------
    movie : PreparedMovie
        With a gain.
    frames : sequence of int
        Indices of those to use.
    rotation, flip : int and str
        How the gain image was oriented to get the movie's gain.

    Returns
    -------
    GainCheck
    """
    xp = movie.xp
    middle = tuple(_middle(n) for n in movie.shape[1:])
    raw = _relative_detail(_mean_raw(movie, frames, middle), xp.asarray(~movie.bad.mask[middle]))
    gain = movie.gain[middle]
    good = gain > 0
    response = _clipped(_detail(-xp.log(xp.where(good, gain, 1)), good)[0])
    wanted = [o for o in ORIENTATIONS if _fits(o, rotation, movie.shape[1:])]
    used = next(k for k, o in enumerate(wanted) if _same(o, (rotation, flip)))
    # The sum over each block, for each orientation: (orientations, blocks).
    sums = np.stack([_block_sums(raw * _reoriented(response, (rotation, flip), o)) for o in wanted])
    return _judge(sums, _power(raw), _power(response), used, wanted, response.size)


def _judge(sums, raw_power, response_power, used, orientations, size):
    if not (raw_power > 0 and response_power > size * FEATURELESS**2):
        rotation, flip = orientations[used]
        return GainCheck(0.0, 0.0, rotation, flip, inverse=False, better=False, certain=True)
    totals = sums.sum(axis=1)
    best = int(np.abs(totals).argmax())
    sign = -1.0 if totals[best] < 0 else 1.0
    slope = abs(totals[best]) / response_power
    error = _error(sums[best]) / response_power
    is_used = best == used and sign > 0
    gap = sign * sums[best] - sums[used]
    better = not is_used and slope > PRESENT and gap.sum() > SIGNIFICANT * _error(gap)
    confirmed = is_used and slope > max(PRESENT, SIGNIFICANT * error)
    absent = slope + SIGNIFICANT * error < PRESENT
    norm = np.sqrt(raw_power * response_power)
    rotation, flip = orientations[best]
    return GainCheck(
        score=float(totals[used] / norm),
        best_score=float(abs(totals[best]) / norm),
        rotation=rotation,
        flip=flip,
        inverse=sign < 0,
        better=bool(better),
        certain=bool(better or confirmed or absent),
    )


def _error(values):
    """Standard error of the sum of independent `values`."""
    return np.sqrt(len(values)) * values.std(ddof=1)


def _middle(n):
    """Slice that stays where it is when the axis is reversed."""
    margin = (n - min(n, EDGE)) // 2
    return slice(margin, n - margin)


def _mean_raw(movie, frames, middle):
    xp = movie.xp
    total = sum(movie.raw[t][middle].astype(xp.float32) for t in frames) / xp.float32(len(frames))
    return total if movie.dark is None else total - movie.dark[middle]


def _relative_detail(image, good):
    xp = array_module(image)
    detail, local = _detail(image, good & (image >= 0))
    return _clipped(xp.where(local > 0, detail / xp.where(local > 0, local, 1), 0))


def _detail(image, good):
    """Difference of good pixels from the mean of those around them, 0 at the others, and that mean."""
    xp = array_module(image)
    local = _box_sum(xp.where(good, image, 0)) / xp.maximum(_box_sum(good.astype(xp.float32)), 1)
    return xp.where(good, image - local, 0), local


def _box_sum(image):
    xp = array_module(image)
    for axis in (0, 1):
        n = image.shape[axis]
        padding = [(0, 0), (0, 0)]
        padding[axis] = (WINDOW // 2, WINDOW // 2)
        padded = xp.pad(image, padding)
        image = sum(padded[k : k + n] if axis == 0 else padded[:, k : k + n] for k in range(WINDOW))
    return image


def _clipped(image):
    """Limit outliers: hot pixels and dead ones would outweigh all others."""
    xp = array_module(image)
    sample = xp.abs(image.ravel()[:: max(1, image.size // 100_000)])
    limit = CLIP * 1.4826 * xp.median(sample[sample > 0]) if bool((sample > 0).any()) else 0
    return xp.clip(image, -limit, limit)


def _power(image):
    return float((image * image).sum())


def _fits(orientation, rotation, shape):
    """Whether the gain has the frame's shape in this orientation, as it has with `rotation`."""
    return shape[0] == shape[1] or (orientation[0] - rotation) % 180 == 0


def _same(first, second):
    """Whether two orientations do the same to an image."""
    image = np.arange(6).reshape(2, 3)
    return np.array_equal(orient(image, *first), orient(image, *second))


def _reoriented(image, now, wanted):
    """Turn an image that has one orientation back, and into another one."""
    rotation, flip = now
    return orient(orient(orient(image, 0, flip), -rotation % 360), *wanted)


def _block_sums(image):
    ny, nx = (n // BLOCKS for n in image.shape)
    blocks = image[: ny * BLOCKS, : nx * BLOCKS].reshape(BLOCKS, ny, BLOCKS, nx)
    return to_host(blocks.sum(axis=(1, 3))).ravel().astype(np.float64)
