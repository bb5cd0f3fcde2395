"""The decoder of electron events on every device against its oracle; counts must be equal."""

import numpy as np
import pytest

from tests.io.samples import electron_events, electron_sum
from xmipp_accel.backend import to_host
from xmipp_accel.io.electrons import Coding, add_electrons
from xmipp_accel.kernels.reference import eer as oracle

SENSOR = (16, 17)
# Widths of the codes, and whether a skip without electron is as wide as the others.
CODINGS = [
    (8, 2, 2, True),
    (7, 2, 2, False),
    (6, 1, 2, False),
    (5, 3, 4, False),
    (3, 2, 2, False),
    (16, 4, 4, True),
]


def _events(count, density, shape, coding, seed=0):
    frames = electron_events((count, *shape), density, seed)
    for events in frames:
        events[:, 2] %= 1 << coding[2]
        events[:, 3] %= 1 << coding[1]
    return frames


def _decode(device, streams, shape, coding, upsampling=1, targets=None, dtype=np.uint8):
    """Sums (k, y, x) and numbers of electrons of streams (uint8 arrays) that stand beside each other in memory."""
    targets = [0] * len(streams) if targets is None else targets
    ends = np.cumsum([len(stream) // 4 + 2 for stream in streams])
    starts = np.concatenate([[0], ends[:-1]])
    words = np.zeros(ends[-1], np.uint32)
    for stream, start in zip(streams, starts):
        words.view(np.uint8)[4 * start : 4 * start + len(stream)] = stream
    size = max(targets) + 1, shape[0] * upsampling, shape[1] * upsampling
    memory = device.xp.zeros(-(-np.prod(size) * np.dtype(dtype).itemsize // 4), np.uint32)
    counts = memory.view(dtype)[: np.prod(size)].reshape(size)
    bits = [8 * len(stream) for stream in streams]
    electrons = add_electrons(
        Coding(*shape, *coding), upsampling, device.asarray(words), starts, bits, targets, counts
    )
    return to_host(counts), electrons.tolist()


def _expected(stream, shape, coding, upsampling=1):
    out = np.zeros((shape[0] * upsampling, shape[1] * upsampling), np.uint8)
    return out, oracle.decode_frame(stream, *shape, *coding, upsampling, out)


@pytest.mark.parametrize("density", [0.0, 0.002, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 37), (64, 64)])
@pytest.mark.parametrize("coding", CODINGS)
def test_the_decoder_its_oracle_and_the_electrons_agree(device, density, shape, coding):
    (events,) = _events(1, density, shape, coding)
    stream = oracle.encode_frame(events, *shape, *coding)
    for upsampling in (1, 2):
        expected, count = _expected(stream, shape, coding, upsampling)
        assert count == len(events)
        found, electrons = _decode(device, [stream], shape, coding, upsampling)
        assert electrons == [count]
        np.testing.assert_array_equal(found[0], expected)
        if coding[1:3] == (2, 2):
            np.testing.assert_array_equal(found[0], electron_sum([events], shape, upsampling))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("coding", CODINGS)
def test_electrons_of_many_camera_frames_add_up_in_their_frames(device, coding, dtype):
    frames = _events(12, 0.2, (7, 37), coding)
    streams = [oracle.encode_frame(events, 7, 37, *coding) for events in frames]
    targets = [0] * 5 + [2] * 7
    found, electrons = _decode(device, streams, (7, 37), coding, targets=targets, dtype=dtype)
    assert electrons == [len(events) for events in frames]
    assert found.dtype == dtype and not found[1].any()
    for k in (0, 2):
        expected = electron_sum([f for f, target in zip(frames, targets) if target == k], (7, 37))
        np.testing.assert_array_equal(found[k], expected)


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("coding", CODINGS[:2])
def test_frames_larger_than_a_cpus_cache(device, coding, upsampling):
    """The CPU decodes them band by band: three of them, and twelve with upsampling."""
    shape = 701, 1097
    frames = _events(2, 0.02, shape, coding)
    streams = [oracle.encode_frame(events, *shape, *coding) for events in frames]
    found, electrons = _decode(device, streams, shape, coding, upsampling)
    assert electrons == [len(events) for events in frames]
    np.testing.assert_array_equal(found[0], electron_sum(frames, shape, upsampling))


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("density", [0.003, 0.01, 0.3])
def test_imagecodecs_agrees_on_7_bit_streams_of_an_even_length(device, density, upsampling):
    imagecodecs = pytest.importorskip("imagecodecs")
    shape, coding = (64, 64), (7, 2, 2, False)
    for seed in range(5):
        (events,) = _events(1, density, shape, coding, seed)
        stream = oracle.encode_frame(events, *shape, *coding)
        stream = np.append(stream, np.zeros(len(stream) % 2, np.uint8))
        found, _electrons = _decode(device, [stream], shape, coding, upsampling)
        other = np.zeros_like(found[0])
        imagecodecs.eer_decode(stream.tobytes(), other.shape, 7, 2, 2, superres=upsampling - 1, out=other)
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("coding", CODINGS)
def test_streams_that_are_cut_or_nonsense_are_told_as_by_the_oracle(device, coding):
    """All lengths of a good stream, also for a sensor that has another size, and random bytes."""
    (events,) = _events(1, 0.05, SENSOR, coding)
    good = oracle.encode_frame(events, *SENSOR, *coding)
    rng = np.random.default_rng(0)
    streams = [good[:cut] for cut in range(len(good))]
    streams += [rng.integers(0, 256, rng.integers(0, 120)).astype(np.uint8) for _ in range(200)]
    for shape in (SENSOR, (16, 16), (17, 17), (3, 5)):
        expected = [_expected(stream, shape, coding) for stream in streams]
        found, electrons = _decode(device, streams, shape, coding, targets=range(len(streams)))
        assert electrons == [count for _out, count in expected]
        for counts, (out, count) in zip(found, expected):
            assert count < 0 or np.array_equal(counts, out)
    if coding[0] > 3:
        assert {oracle.TOO_SHORT, oracle.TOO_LONG} <= set(electrons)
