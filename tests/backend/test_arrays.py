"""Arrays on their way to a device."""

import numpy as np
import pytest

from xmipp_accel.backend import from_host, from_host_at_once, to_host


@pytest.mark.parametrize("values", [
    np.zeros((0, 3)),
    np.array(2.5),
    np.arange(12.0).reshape(3, 4)[:, ::-1],
    np.arange(12).reshape(3, 4).T,
    np.arange(1 << 16, dtype=np.float64),
    [1.5, 2.5],
], ids=["empty", "scalar", "reversed", "transposed", "large", "list"])  # fmt: skip
@pytest.mark.parametrize("dtype", [None, np.float32])
def test_arrays_from_the_host(device, values, dtype):
    found = from_host(values, device.xp, dtype)
    assert isinstance(found, device.xp.ndarray)
    assert found.dtype == (dtype or np.asarray(values).dtype)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(to_host(found), np.asarray(values, dtype))
    again = from_host(found[..., ::-1] if found.ndim else found, device.xp, np.float64)  # from the device too
    assert again.dtype == np.float64 and again.flags.c_contiguous
    np.testing.assert_array_equal(to_host(again), np.asarray(values, dtype)[..., ::-1] if found.ndim else values)


def test_several_arrays_at_once_keep_types_and_shapes(device):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    arrays = [values, values.T, np.arange(5, dtype=np.int32), np.zeros((0, 2), np.float32), values[1:, 0]]
    for given, found in zip(arrays, from_host_at_once(arrays, device.xp)):
        assert isinstance(found, device.xp.ndarray) and found.dtype == given.dtype
        np.testing.assert_array_equal(to_host(found), given)
    assert from_host_at_once([], np) == []


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_arrays_from_the_host_keep_their_values(device):
    """The copy is taken before the call returns, however much the GPU has still to do."""
    busy, values, found = device.xp.ones((4000, 4000)), np.zeros(100), []
    for k in range(20):
        busy = busy @ busy * 1e-4
        values[:] = k
        found.append(from_host(values, device.xp))
    np.testing.assert_array_equal([to_host(array) for array in found], np.arange(20)[:, None] + np.zeros(100))
