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
    found = frame_kernels.clean_frames(device.asarray(raw), frames, *arrays[:2], window, *arrays[2:])
    expected = reference.clean_frames(raw, frames, dark, gain, window, index, sources)
    assert found.dtype == np.float32
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-5, atol=1e-4)
    assert (np.abs(expected - (raw[frames] - dark.astype(float))[:, 5:28, 2:49] * gain[5:28, 2:49]) > 1).any()


@pytest.mark.parametrize(("with_dark", "with_gain"), [(False, False), (True, False), (False, True)])
def test_clean_frames_without_references(device, with_dark, with_gain):
    raw, dark, gain, index, sources = random_movie("uint8", (2, 1, 7), 0, np.random.default_rng(0))
    dark, gain = dark if with_dark else None, gain if with_gain else None
    arrays = [None if array is None else device.asarray(array) for array in (dark, gain)]
    window, bad = (0, 0, 1, 7), [device.asarray(array) for array in (index, sources)]
    found = frame_kernels.clean_frames(device.asarray(raw), [1], *arrays, window, *bad)
    expected = reference.clean_frames(raw, [1], dark, gain, window, index, sources)
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (64, 33)])
def test_spectra_are_moved_and_summed_in_place(device, shape):
    rng = np.random.default_rng(1)
    spectrum, total = (
        (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64) for _ in range(2)
    )
    ey, ex = (np.exp(1j * rng.normal(size=n)).astype(np.complex64) for n in shape)
    weight, power = (rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(2))
    on_device = [device.asarray(array.copy()) for array in (spectrum, total, power)]
    frame_kernels.turn_phases(on_device[0], device.asarray(ey), device.asarray(ex))
    np.testing.assert_allclose(to_host(on_device[0]), reference.turn_phases(spectrum, ey, ex), atol=1e-5)
    frame_kernels.add_weighted(*on_device[1:], device.asarray(spectrum), device.asarray(weight), 1.7)
    expected = reference.add_weighted(total, power, spectrum, weight, 1.7)
    for found, wanted in zip(on_device[1:], expected):
        np.testing.assert_allclose(to_host(found), wanted, atol=1e-5)
