import pickle

import numpy as np
import pytest

from tests.io.samples import counts, eer_bytes, electron_events, electron_sum, mrc_bytes
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.frame_groups import read_frame_groups
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tiff import write_tiff


@pytest.fixture
def groups(tmp_path):
    def write(text):
        (tmp_path / "groups.txt").write_text(text)
        return read_frame_groups(tmp_path / "groups.txt")

    return write


@pytest.mark.parametrize(
    ("text", "available", "sizes"),
    [
        ("4 2\n6 3", 10, (2, 2, 3, 3)),
        ("# early frames\n4 2  # in pairs\n\n3 3\n", 14, (2, 2, 3, 3, 3)),  # the last row goes on, one is dropped
        ("4 2\n6 3", 9, (2, 2, 3)),
        ("4 2\n6 3", 3, (2,)),  # cut within the first row, whose rest is no sum of the second one
        ("3 3\n4 1", 5, (3, 1, 1)),
        ("6 3\n4 1", 5, (3,)),
        ("10 4", 10, (4, 4)),
    ],
)
def test_rows_say_how_many_frames_are_summed(groups, text, available, sizes):
    assert groups(text).sizes("movie", available) == sizes


def test_exposures_are_those_of_the_frames_that_are_summed(groups):
    rows = groups("4 2 0.5\n3 3 1.25\n2 1 0.1\n")
    sizes = rows.sizes("movie", 11)
    assert rows.has_doses and sizes == (2, 2, 3, 1, 1, 1, 1)
    np.testing.assert_allclose(rows.exposures(sizes, 9.0), [1, 1, 3.75, 0.1, 0.1, 0.1, 0.1])
    rows = groups("4 2\n3 3\n")
    assert not rows.has_doses
    np.testing.assert_allclose(rows.exposures(rows.sizes("movie", 7), 0.4), [0.8, 0.8, 1.2])
    assert not rows.exposures((2, 2, 3)).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows of"),
        ("4\n", "line 1"),
        ("4 2 1 1\n", "line 1, found '4 2 1 1'"),
        ("4 2\n4 x\n", "line 2, found '4 x'"),
        ("4.0 2\n", "line 1"),
        ("2 4\n", "1 <= integration size <= group size in line 1, found '2 4'"),
        ("4 0\n", "line 1"),
        ("-4 -2\n", "line 1"),
        ("4 2 0\n", "a positive dose in line 1"),
        ("4 2 nan\n", "a positive dose in line 1"),
        ("4 2 1\n4 2\n", "in all rows or in none, found 1 doses in 2 rows"),
        ("5 2\n4 2\n", "a multiple of the integration size, found 5 and 2 in row 1"),
        ("4 2\0", "a binary file"),
    ],
)
def test_other_texts_are_refused_with_the_line(groups, text, message):
    with pytest.raises(InputFileError, match=message) as caught:
        groups(text)
    assert "groups.txt" in str(caught.value)


def test_a_movie_too_short_for_one_sum_is_refused(groups):
    with pytest.raises(InputFileError, match=r"m\.mrc: expected at least 4 frames.*groups\.txt, found 3"):
        groups("8 4").sizes("m.mrc", 3)


@pytest.mark.parametrize(("name", "dtype"), [("a.mrc", "i1"), ("a.mrc", "u2"), ("a.mrc", "f4"), ("a.tif", "u1")])
def test_frames_are_summed_without_overflow(tmp_path, groups, name, dtype):
    dtype = np.dtype(dtype)
    top = 1000.0 if dtype.kind == "f" else np.iinfo(dtype).max
    array = counts((11, 16, 17), top=10).astype(dtype)
    array[:, 0, 0] = top
    if dtype.kind == "i":
        array[:, 0, 1] = np.iinfo(dtype).min
    path = tmp_path / name
    if path.suffix == ".mrc":
        path.write_bytes(mrc_bytes(array, {"i1": 0, "u2": 6, "f4": 2}[dtype.str[1:]]))
    else:
        write_tiff(path, array[:, ::-1], 1.5, "lzw")
    bounds = [0, 2, 4, 7, 10]
    expected = np.add.reduceat(array[:10].astype(np.float64), bounds[:-1], axis=0)
    with open_movie(path, groups=groups("4 2\n3 3")) as movie:
        assert movie.shape == (4, 16, 17) and movie.group_sizes == (2, 2, 3, 3)
        assert movie.dtype.kind == dtype.kind
        assert movie.dtype.itemsize <= 2 * dtype.itemsize
        np.testing.assert_array_equal(movie.read(), expected)
        np.testing.assert_array_equal(movie.read(1, 3), expected[1:3])
        np.testing.assert_array_equal(np.stack(list(movie.frames(2))), expected[2:])
        out = np.empty((2, 16, 17), movie.dtype)
        assert movie.read(2, 4, out) is out
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(movie)).read(), expected)


@pytest.mark.parametrize("upsampling", [1, 2])
def test_camera_frames_of_an_eer_file_are_decoded_into_groups(tmp_path, groups, upsampling):
    frames = electron_events((11, 16, 17), 0.1)
    (tmp_path / "a.eer").write_bytes(eer_bytes(frames, (16, 17)))
    movie = open_movie(tmp_path / "a.eer", eer_upsampling=upsampling, groups=groups("4 2\n3 3"))
    assert movie.is_eer and movie.dtype == np.uint8 and movie.group_sizes == (2, 2, 3, 3)
    expected = [electron_sum(frames[a:b], (16, 17), upsampling) for a, b in ((0, 2), (2, 4), (4, 7), (7, 10))]
    np.testing.assert_array_equal(movie.read(), expected)
    np.testing.assert_array_equal(movie.read(3), expected[3:])
