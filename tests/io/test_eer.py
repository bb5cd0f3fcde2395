import numpy as np
import pytest

from tests.io.samples import eer_bytes, electron_events, electron_sum
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.movies import open_movie
from xmipp_accel.kernels.cpu import eer as kernel
from xmipp_accel.kernels.reference import eer as oracle

imagecodecs = pytest.importorskip("imagecodecs")

SENSOR = (16, 17)
CODINGS = [(65000, (8, 2, 2)), (65001, (7, 2, 2)), (65002, (6, 1, 2)), (65002, (5, 3, 4))]


def _events(count=11, density=0.05, shape=SENSOR, widths=(7, 2, 2), seed=0):
    frames = electron_events((count, *shape), density, seed)
    for events in frames:
        events[:, 2] %= 1 << widths[2]
        events[:, 3] %= 1 << widths[1]
    return frames


@pytest.mark.parametrize("density", [0.0, 0.002, 0.05, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (7, 37), (64, 64)])
@pytest.mark.parametrize("compression, widths", CODINGS)
def test_the_decoder_its_oracle_and_the_electrons_agree(density, shape, compression, widths):
    (events,) = _events(1, density, shape, widths)
    stream = oracle.encode_frame(events, *shape, *widths, wide=compression == 65000)
    for upsampling in (1, 2):
        size = shape[0] * upsampling, shape[1] * upsampling
        results = []
        for decoder in (kernel.decode_frame, oracle.decode_frame):
            out = np.zeros(size, np.uint8)
            assert decoder(stream, *shape, *widths, compression == 65000, upsampling, out) == len(events)
            results.append(out)
        np.testing.assert_array_equal(*results)
        if widths[1:] == (2, 2):
            np.testing.assert_array_equal(results[0], electron_sum([events], shape, upsampling))


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("density", [0.003, 0.01, 0.3])
def test_imagecodecs_agrees_on_7_bit_streams_of_an_even_length(density, upsampling):
    shape = (64, 64)
    for seed in range(5):
        (events,) = _events(1, density, shape, seed=seed)
        stream = oracle.encode_frame(events, *shape, 7, 2, 2, wide=False)
        stream = np.append(stream, np.zeros(len(stream) % 2, np.uint8))
        out = np.zeros((64 * upsampling, 64 * upsampling), np.uint8)
        kernel.decode_frame(stream, *shape, 7, 2, 2, False, upsampling, out)
        other = np.zeros_like(out)
        imagecodecs.eer_decode(stream.tobytes(), other.shape, 7, 2, 2, superres=upsampling - 1, out=other)
        np.testing.assert_array_equal(out, other)


def test_electrons_add_up_in_the_same_array():
    frames = _events(3)
    out = np.zeros(SENSOR, np.uint8)
    for events in frames:
        stream = oracle.encode_frame(events, *SENSOR, 7, 2, 2, wide=False)
        kernel.decode_frame(stream, *SENSOR, 7, 2, 2, False, 1, out)
    np.testing.assert_array_equal(out, electron_sum(frames, SENSOR))


@pytest.mark.parametrize("decoder", [kernel.decode_frame, oracle.decode_frame])
def test_streams_that_end_early_or_late_are_told_apart(decoder):
    (events,) = _events(1)
    stream = oracle.encode_frame(events, *SENSOR, 7, 2, 2, wide=False)
    out = np.zeros(SENSOR, np.uint8)
    for cut in range(len(stream) - 2):
        assert decoder(stream[:cut], *SENSOR, 7, 2, 2, False, 1, out) == kernel.TOO_SHORT
    # A sensor of one pixel fewer: the last code skips beyond its end.
    events = np.array([(0, 0, 0, 0)])
    stream = oracle.encode_frame(events, *SENSOR, 7, 2, 2, wide=False)
    assert decoder(stream, 16, 16, 7, 2, 2, False, 1, out) == kernel.TOO_LONG


@pytest.mark.parametrize("strips", [1, 3])
@pytest.mark.parametrize("compression, widths", CODINGS[:3])
def test_movies_are_sums_of_camera_frames_with_the_remainder_dropped(tmp_path, compression, widths, strips):
    frames = _events(11, widths=widths)
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, SENSOR, compression, widths, 0.73, strips=strips))
    for count, group in ((11, 1), (5, 2), (2, 5), (1, 11)):
        with open_movie(tmp_path / "a.eer", eer_frames=count) as movie:
            assert movie.shape == (count, *SENSOR) and movie.dtype == np.uint8
            assert movie.sampling_rate == pytest.approx(0.73, rel=1e-6)
            sums = movie.read()
            for k in range(count):
                expected = electron_sum(frames[k * group : (k + 1) * group], SENSOR)
                np.testing.assert_array_equal(sums[k], expected)
            np.testing.assert_array_equal(movie.read(count - 1), sums[-1:])


def test_upsampling_doubles_the_frames_and_keeps_the_electrons(tmp_path):
    frames = _events(6)
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, SENSOR))
    fine = open_movie(tmp_path / "a.eer", eer_frames=2, eer_upsampling=2)
    coarse = open_movie(tmp_path / "a.eer", eer_frames=2)
    assert fine.shape == (2, 32, 34)
    np.testing.assert_array_equal(fine.read()[1], electron_sum(frames[3:], SENSOR, 2))
    np.testing.assert_array_equal(fine.read().reshape(2, 16, 2, 17, 2).sum(axis=(2, 4)), coarse.read())


def test_more_camera_frames_than_a_byte_can_count(tmp_path):
    frames = [np.array([(3, 4, 0, 0)])] * 300
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, SENSOR))
    movie = open_movie(tmp_path / "a.eer", eer_frames=1)
    assert movie.dtype == np.uint16
    assert movie.read()[0, 3, 4] == 300 and movie.read().sum() == 300


def test_an_ordinary_image_among_the_frames_is_left_out(tmp_path):
    frames = _events(4)
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, SENSOR, image=np.full(SENSOR, 7)))
    np.testing.assert_array_equal(open_movie(tmp_path / "a.eer", 1).read()[0], electron_sum(frames, SENSOR))


def test_what_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "a.eer"
    path.write_bytes(eer_bytes(_events(5), SENSOR))
    with pytest.raises(InputFileError, match="at least 6 camera frames"):
        open_movie(path, eer_frames=6)
    with pytest.raises(ParameterError, match="eer_upsampling"):
        open_movie(path, eer_frames=5, eer_upsampling=4)
    with pytest.raises(ParameterError, match="eer_frames"):
        open_movie(path, eer_frames=0)
    path.write_bytes(eer_bytes(_events(5, widths=(7, 0, 0)), SENSOR, 65002, (7, 0, 0)))
    assert open_movie(path, eer_frames=5).read().sum() > 0
    with pytest.raises(InputFileError, match="places within pixels"):
        open_movie(path, eer_frames=5, eer_upsampling=2)


def test_a_damaged_camera_frame_is_named(tmp_path):
    raw = eer_bytes([np.array([(0, 0, 0, 0)]), np.array([(15, 16, 0, 0)])], SENSOR)
    stream = oracle.encode_frame(np.array([(15, 16, 0, 0)]), *SENSOR, 7, 2, 2, wide=False).tobytes()
    assert raw.endswith(stream)
    (tmp_path / "a.eer").write_bytes(raw[: -len(stream)] + bytes(len(stream)))
    movie = open_movie(tmp_path / "a.eer", eer_frames=2)
    assert movie.read(0, 1).sum() == 1
    with pytest.raises(InputFileError, match="complete camera frame 1"):
        movie.read()


def test_a_tiff_named_eer_is_refused(tmp_path):
    (tmp_path / "a.eer").write_bytes(eer_bytes([], SENSOR, image=np.ones(SENSOR)))
    with pytest.raises(InputFileError, match="electron events"):
        open_movie(tmp_path / "a.eer")
