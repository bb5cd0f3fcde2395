import functools

import numpy as np
import pytest

from tests.io.samples import eer_bytes, electron_events, electron_sum
from xmipp_accel.backend import array_module, to_host
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.movies import open_movie
from xmipp_accel.kernels.reference import eer as oracle

SENSOR = (16, 17)
CODINGS = [(65000, (8, 2, 2)), (65001, (7, 2, 2)), (65002, (6, 1, 2)), (65002, (5, 3, 4))]


def _events(count=11, density=0.05, shape=SENSOR, widths=(7, 2, 2), seed=0):
    frames = electron_events((count, *shape), density, seed)
    for events in frames:
        events[:, 2] %= 1 << widths[2]
        events[:, 3] %= 1 << widths[1]
    return frames


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


@pytest.mark.parametrize("compression, widths", CODINGS[:3])
@pytest.mark.parametrize("upsampling", [1, 2])
def test_frames_are_the_same_on_every_device(tmp_path, device, compression, widths, upsampling):
    frames = _events(23, widths=widths)
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, SENSOR, compression, widths, strips=3))
    with open_movie(tmp_path / "a.eer", eer_frames=5, eer_upsampling=upsampling) as movie:
        found = movie.read_to(device, 1, 4)
        assert array_module(found) is device.xp
        np.testing.assert_array_equal(to_host(found), movie.read(1, 4))
        assert found.dtype == movie.dtype and found.any()


def test_more_camera_frames_than_a_byte_can_count(tmp_path, device):
    frames = [np.array([(3, 4, 0, 0)])] * 300
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, SENSOR))
    movie = open_movie(tmp_path / "a.eer", eer_frames=1)
    assert movie.dtype == np.uint16
    for counts in (movie.read(), to_host(movie.read_to(device))):
        assert counts.dtype == np.uint16 and counts[0, 3, 4] == counts.sum() == 300


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


def test_a_damaged_camera_frame_is_named(tmp_path, device):
    raw = eer_bytes([np.array([(0, 0, 0, 0)]), np.array([(15, 16, 0, 0)])], SENSOR)
    stream = oracle.encode_frame(np.array([(15, 16, 0, 0)]), *SENSOR, 7, 2, 2, wide=False).tobytes()
    assert raw.endswith(stream)
    (tmp_path / "a.eer").write_bytes(raw[: -len(stream)] + bytes(len(stream)))
    movie = open_movie(tmp_path / "a.eer", eer_frames=2)
    assert movie.read(0, 1).sum() == 1
    for read in (movie.read, functools.partial(movie.read_to, device)):
        with pytest.raises(InputFileError, match="complete camera frame 1, found its end"):
            read()


def test_a_tiff_named_eer_is_refused(tmp_path):
    (tmp_path / "a.eer").write_bytes(eer_bytes([], SENSOR, image=np.ones(SENSOR)))
    with pytest.raises(InputFileError, match="electron events"):
        open_movie(tmp_path / "a.eer")
