"""Passes over whole frames against their oracles in float64."""

import numpy as np
import pytest

from xmipp_accel.backend import to_host
from xmipp_accel.kernels.reference import frames as reference
from xmipp_accel.movie_alignment import frame_kernels

TYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64"]


def random_movie(dtype, shape, n_bad, rng):
    raw = rng.integers(0, 120, shape).astype(dtype)
    dark, gain = (rng.uniform(0.5, 2, shape[1:]).astype(np.float32) for _ in range(2))
    index = np.sort(rng.choice(raw[0].size, n_bad, replace=False))
    good = np.setdiff1d(np.arange(raw[0].size), index)
    return raw, dark, gain, index, rng.choice(good, (8, n_bad))


@pytest.mark.parametrize("dtype", TYPES)
def test_clean_frames(device, dtype):
    rng = np.random.default_rng(TYPES.index(dtype))
    raw, dark, gain, index, sources = random_movie(dtype, (11, 37, 53), 60, rng)
    frames, window = [0, 3, 10], (5, 2, 23, 47)
    arrays = [device.asarray(array) for array in (dark, gain, index, sources)]
    found = frame_kernels.clean_frames(device.asarray(raw), frames, *arrays[:2], window, 3.5, *arrays[2:])
    expected = reference.clean_frames(raw, frames, dark, gain, window, 3.5, index, sources)
    assert found.dtype == np.float32
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-5, atol=1e-4)
    assert (
        np.abs(expected + 3.5 - (raw[frames] - dark.astype(float))[:, 5:28, 2:49] * gain[5:28, 2:49]) > 1
    ).any()


@pytest.mark.parametrize(("with_dark", "with_gain"), [(False, False), (True, False), (False, True)])
def test_clean_frames_without_references(device, with_dark, with_gain):
    raw, dark, gain, index, sources = random_movie("uint8", (2, 1, 7), 0, np.random.default_rng(0))
    dark, gain = dark if with_dark else None, gain if with_gain else None
    arrays = [None if array is None else device.asarray(array) for array in (dark, gain)]
    window, bad = (0, 0, 1, 7), [device.asarray(array) for array in (index, sources)]
    found = frame_kernels.clean_frames(device.asarray(raw), [1], *arrays, window, 0.0, *bad)
    expected = reference.clean_frames(raw, [1], dark, gain, window, 0.0, index, sources)
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-6)
    found = frame_kernels.sum_frames(device.asarray(raw), [1, 0], *arrays, *bad)
    np.testing.assert_allclose(
        to_host(found), reference.sum_frames(raw, [1, 0], dark, gain, index, sources), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_sum_of_frames(device, dtype):
    """Bad pixels take what replaces them in each frame."""
    rng = np.random.default_rng(TYPES.index(dtype))
    raw, dark, gain, index, sources = random_movie(dtype, (21, 37, 53), 60, rng)
    frames = [0, 3, 20, 4, 5, 6, 7, 8, 9, 10, 11]
    arrays = [device.asarray(array) for array in (dark, gain, index, sources)]
    found = to_host(frame_kernels.sum_frames(device.asarray(raw), frames, *arrays))
    expected = reference.sum_frames(raw, frames, dark, gain, index, sources)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    plain = ((raw[frames] - dark.astype(float)) * gain).sum(axis=0)
    changed = np.flatnonzero(np.abs(found - plain) > 0.5)
    assert len(changed) > 50
    assert np.isin(changed, index).all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (9, 14), (11, 300)])
@pytest.mark.parametrize("more", [(0, 0), (1, 0), (3, 2), (40, 0)])
def test_images_are_continued_to_a_grid(device, shape, more):
    """Each with a shift of its own: none, within the grid's margin, beyond it, and beyond half the frame."""
    rng = np.random.default_rng(0)
    shifts = [(0.0, 0.0), (0.4, -0.4), (2.0, -1.5), (-3.2, 4.0), (-100.0, 100.0), (0.0, -100.0)]
    images = rng.normal(size=(len(shifts), *shape)).astype(np.float32)
    padded = tuple(s + m for s, m in zip(shape, more))
    expected = reference.continued(images, padded, shifts)
    found = frame_kernels.continued(device.asarray(images.copy()), padded, shifts)
    np.testing.assert_array_equal(to_host(found), expected)


@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (64, 33)])
def test_spectra_are_moved_in_place(device, shape):
    rng = np.random.default_rng(1)
    spectra = (rng.normal(size=(3, *shape)) + 1j * rng.normal(size=(3, *shape))).astype(np.complex64)
    ey, ex = (np.exp(1j * rng.normal(size=(3, n))).astype(np.complex64) for n in shape)
    on_device = device.asarray(spectra.copy())
    frame_kernels.turn_phases(on_device, device.asarray(ey), device.asarray(ex))
    np.testing.assert_allclose(to_host(on_device), reference.turn_phases(spectra, ey, ex), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (64, 33)])
def test_frames_are_summed_in_place(device, shape, dtype):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(5, *shape)) + 1j * rng.normal(size=(5, *shape))
    values = (values if dtype == "complex64" else values.real).astype(dtype)
    frames, total = values[:4], values[4]
    weights, power = (rng.uniform(-1, 1, (n, *shape)).astype(np.float32) for n in (4, 1))
    for chosen, weight in (([0, 3, 2], weights), ([1], weights), ([2, 0], None)):
        noise = rng.uniform(1, 2, len(chosen))
        expected = reference.add_frames(total, power[0], frames, chosen, weight, noise)
        found = [device.asarray(total.copy()), None if weight is None else device.asarray(power[0].copy())]
        arrays = device.asarray(frames), chosen, None if weight is None else device.asarray(weight)
        frame_kernels.add_frames(*found, *arrays, noise)
        np.testing.assert_allclose(to_host(found[0]), expected[0], atol=1e-5)
        if weight is not None:
            np.testing.assert_allclose(to_host(found[1]), expected[1], atol=1e-5)


def test_batches_hold_every_frame_once():
    batches = frame_kernels.frame_batches(range(3, 14), (4096, 4096), None, copies=2)
    assert [list(batch) for batch in batches] == [[3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13]]
    assert [len(batch) for batch in frame_kernels.frame_batches(range(3), (64, 64), np)] == [1, 1, 1]
