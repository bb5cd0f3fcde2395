"""Correction of frames: magnification, and motion within them."""

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from xmipp_accel.backend import to_host
from xmipp_accel.movie_alignment import MovieAlignmentParameters
from xmipp_accel.movie_alignment.correct import MotionCorrector, corrected_averages
from xmipp_accel.movie_alignment.magnification import Magnification
from xmipp_accel.movie_alignment.prepare import PreparedMovie
from xmipp_accel.numerics import bspline

NO_POINTS = np.zeros((0, 0, 0, 2))


def pattern(y, x):
    """A smooth function of the plane."""
    return np.sin(0.21 * y + 0.13 * x) + np.cos(0.05 * y - 0.3 * x) * np.sin(0.11 * y)


def stretched_positions(y, x, major, minor, angle, shape):
    """Where features of a frame lie in the average: components along and across the axis, each scaled."""
    cy, cx = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    ey, ex = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    along, across = (y - cy) * ey + (x - cx) * ex, (y - cy) * ex - (x - cx) * ey
    along, across = along * major, across * minor
    return cy + along * ey + across * ex, cx + along * ex - across * ey


@pytest.mark.parametrize(("angle", "point", "image"), [
    (0.0, (0, 20), (0, 22)),
    (90.0, (20, 0), (22, 0)),
    (45.0, (20, 20), (22, 22)),
    (45.0, (20, -20), (20, -20)),
    (135.0, (20, -20), (22, -22)),
])  # fmt: skip
def test_direction_of_the_stretch(angle, point, image):
    """By 1.1 along the axis, which turns from x towards y; (y, x) from the centre of the frame."""
    magnification = Magnification(1.1, 1.0, angle, (101, 201))
    np.testing.assert_allclose(magnification.in_frame(np.add(image, (50, 100))), np.add(point, (50, 100)))


@pytest.mark.parametrize("shape", [(90, 121), (96, 64)])
def test_a_distorted_pattern_becomes_the_true_one(device, shape):
    """The frame shows the true pattern stretched back; the average shows it as it is."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    frame = pattern(*stretched_positions(y, x, 1.03, 0.98, 35.0, shape)).astype(np.float32)
    corrector = MotionCorrector(
        np.zeros((1, 2)), NO_POINTS, shape, Magnification(1.03, 0.98, 35.0, shape), device.xp
    )
    found = to_host(corrector.corrected(device.asarray(frame.copy())[None], [0]))[0]
    inner = (slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(found[inner], pattern(y, x)[inner], atol=3e-3)
    assert np.abs(frame - pattern(y, x))[inner].max() > 0.3


@pytest.mark.parametrize("local", [True, False])
def test_motion_and_stretch_in_one_interpolation(device, local):
    """Against the spline of the frame at the places that the motion and the stretch give, in float64."""
    rng = np.random.default_rng(0)
    shape, factors = (80, 112), (1.02, 0.97, -20.0)
    frame = pattern(*np.mgrid[: shape[0], : shape[1]]) + 0.1 * rng.normal(size=shape)
    shifts = rng.normal(0, 2, (6, 2))
    points = rng.normal(0, 1.5, (4, 5, 4, 2)) if local else NO_POINTS
    magnification = Magnification(*factors, shape)
    corrector = MotionCorrector(shifts, points, shape, magnification, device.xp)
    found = corrector.corrected(device.asarray(frame.astype(np.float32))[None], [2])[0]

    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    v, u = stretched_positions(y, x, 1 / factors[0], 1 / factors[1], factors[2], shape)
    motion = shifts[2]
    if local:
        inside = np.clip(v, 0, shape[0]), np.clip(u, 0, shape[1])
        motion = motion + bspline.evaluate(points, 2, *inside, (6.0, *map(float, shape)))
    where = np.stack([v, u]) - np.moveaxis(np.broadcast_to(motion, (*shape, 2)), -1, 0)
    expected = scipy.ndimage.map_coordinates(frame, where, order=3, mode="mirror")
    # The field is linear between nodes 16 px apart, which matters for such bumpy motion.
    np.testing.assert_allclose(to_host(found), expected, atol=0.05 if local else 2e-4)
    assert np.sqrt(((to_host(found) - expected) ** 2).mean()) < 0.01


def test_without_stretch_translations_stay_exact(device):
    shape = (30, 44)
    frame = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    identity = MotionCorrector([[0.3, 1.2]], NO_POINTS, shape, Magnification(1.0, 1.0, 30.0, shape), device.xp)
    plain = MotionCorrector([[0.3, 1.2]], NO_POINTS, shape, xp=device.xp)
    found = [to_host(c.corrected(device.asarray(frame.copy())[None], [0])) for c in (identity, plain)]
    assert found[0].dtype.kind == "c"
    np.testing.assert_array_equal(*found)


def moving_during_exposure(shape, path, noise, rng):
    """Frames of a scene that follows `path` (n, steps, 2) while each is exposed, and the scene."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    scene = scipy.fft.rfft2(rng.normal(size=shape))
    frames = []
    for way in path:
        blur = np.mean([np.exp(-2j * np.pi * (fy * dy + fx * dx)) for dy, dx in way], axis=0)
        frames.append(scipy.fft.irfft2(scene * blur, shape) + noise * rng.normal(size=shape))
    return np.stack(frames).astype(np.float32), scene


def correlation(image, scene, low, high):
    fy, fx = np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1])
    ring = (np.hypot(fy, fx) >= low) & (np.hypot(fy, fx) < high)
    found = scipy.fft.rfft2(image)[ring]
    wanted = scene[ring]
    return (found * wanted.conj()).real.sum() / np.sqrt((abs(found) ** 2).sum() * (abs(wanted) ** 2).sum())


@pytest.mark.parametrize("dose", [0.0, 1.5])
def test_motion_within_frames(device, dose):
    """The averages resemble the scene more at high frequencies, where the first frames are blurred."""
    rng = np.random.default_rng(0)
    shape, n = (128, 160), 8
    times = np.arange(n)[:, None] + (np.arange(40) + 0.5) / 40 - 0.5
    path = 18 * np.exp(-times / 1.5)[..., None] * np.array([0.8, -0.6])
    frames, scene = moving_during_exposure(shape, path, 1.5, rng)
    movie = PreparedMovie(device.asarray(frames))
    corrector = MotionCorrector(-path.mean(axis=1), NO_POINTS, shape, xp=device.xp)
    found = {}
    for wanted in (True, False):
        parameters = MovieAlignmentParameters(correct_in_frame_motion=wanted)
        images, _ = corrected_averages(movie, range(n), corrector, parameters, 1.0, np.full(n, dose))
        key = "dose_weighted" if dose else "unweighted"
        found[wanted] = [correlation(images[key], scene, *ring) for ring in ((0.02, 0.08), (0.2, 0.5))]
    assert found[True][1] > found[False][1] + 0.03
    assert found[True][0] > found[False][0] - 1e-3


def test_motion_within_frames_is_taken_between_neighbours():
    """Central differences, to one side at the ends, of the whole frame's motion; the stretch applies to it."""
    shifts = np.array([[0.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
    plain = MotionCorrector(shifts, NO_POINTS, (16, 16))
    stretched = MotionCorrector(shifts, NO_POINTS, (16, 16), Magnification(1.5, 1.0, 90.0, (16, 16)))
    for t, motion in enumerate([(3, 1), (2, 0.5), (1, 0)]):
        f = np.fft.fftfreq(16)[:, None] * motion[0] + np.fft.rfftfreq(16) * motion[1]
        np.testing.assert_allclose(plain.in_frame_weights([t], np)[0], np.sinc(f), atol=1e-6)
        f = np.fft.fftfreq(16)[:, None] * 1.5 * motion[0] + np.fft.rfftfreq(16) * motion[1]
        np.testing.assert_allclose(stretched.in_frame_weights([t], np)[0], np.sinc(f), atol=1e-6)
