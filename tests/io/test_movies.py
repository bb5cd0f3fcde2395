import os
import pickle

import numpy as np
import pytest

from tests.io.samples import counts, eer_bytes, electron_events, mrc_bytes
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.tiff import write_tiff


@pytest.fixture(params=["a.mrc", "a.tif", "a.eer"])
def path(tmp_path, request):
    path = tmp_path / request.param
    if path.suffix == ".mrc":
        path.write_bytes(mrc_bytes(counts((7, 16, 17)), 0, imod=0))
    elif path.suffix == ".tif":
        write_tiff(path, counts((7, 16, 17)), 1.5, "lzw")
    else:
        path.write_bytes(eer_bytes(electron_events((7, 16, 17), 0.05), (16, 17)))
    return path


def _open(path):
    return open_movie(path, eer_frames=7)


def test_iteration_and_slices_give_the_same_frames(path):
    with _open(path) as movie:
        assert len(movie) == 7
        whole = movie.read()
        assert whole.any()
        np.testing.assert_array_equal(np.stack(list(movie.frames())), whole)
        np.testing.assert_array_equal(np.stack(list(movie.frames(2, 5))), whole[2:5])
        np.testing.assert_array_equal(movie.read(2, 5), whole[2:5])
        np.testing.assert_array_equal(movie.read(6), whole[6:])


def test_frames_go_into_given_memory(path):
    movie = _open(path)
    memory = np.full((2, 16, 17), 99, movie.dtype)
    assert movie.read(1, 3, out=memory) is memory
    np.testing.assert_array_equal(memory, movie.read(1, 3))
    for wrong in (memory[:1], memory.astype(np.float64), np.empty((2, 17, 16), movie.dtype).transpose(0, 2, 1)):
        with pytest.raises(ParameterError, match="memory"):
            movie.read(1, 3, out=wrong)


@pytest.mark.parametrize("first, last", [(-1, 2), (0, 8), (3, 3), (5, 2), (7, None)])
def test_frames_that_are_not_there_are_a_parameter_error(path, first, last):
    with pytest.raises(ParameterError, match="0 to 7"):
        _open(path).read(first, last)


def test_a_file_that_is_cut_after_opening_is_an_input_file_error(path):
    movie = _open(path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(InputFileError, match=r"before the file's end|complete"):
        movie.read()


def test_a_file_that_vanishes_after_opening_is_an_input_file_error(path):
    movie = _open(path)
    path.unlink()
    with pytest.raises(InputFileError, match="No such file"):
        movie.read()


def test_many_readers_hold_no_file_open(path):
    before = len(os.listdir("/proc/self/fd"))
    readers = [_open(path) for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    readers[0].read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_readable_file_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "folder.mrc").mkdir()
    os.mkfifo(tmp_path / "pipe.mrc")
    (tmp_path / "empty.mrc").touch()
    (tmp_path / "link.tif").symlink_to(tmp_path / "nowhere.tif")
    cases = dict(folder="a folder", pipe="a pipe", empty="0 bytes", link="No such file", missing="No such file")
    for name, found in cases.items():
        file = tmp_path / (name + (".tif" if name == "link" else ".mrc"))
        with pytest.raises(InputFileError, match=found) as error:
            open_movie(file)
        assert str(file) in str(error.value)
    with pytest.raises(InputFileError, match=r"ends in \.mrc"):
        open_movie(tmp_path / "movie.dm4")


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(counts(), 0))

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("xmipp_accel.io.files.open", refuse, raising=False)
    with pytest.raises(InputFileError, match="Permission denied"):
        open_movie(tmp_path / "a.mrc")


def test_the_error_crosses_process_borders(tmp_path):
    with pytest.raises(InputFileError) as error:
        open_movie(tmp_path / "missing.mrc")
    copy = pickle.loads(pickle.dumps(error.value))
    assert (copy.path, copy.expected, copy.found) == (error.value.path, error.value.expected, error.value.found)


def test_names_with_spaces_and_foreign_letters(tmp_path):
    for name in ("a movie.mrc", "película ñ.MRC", "x" * 240 + ".mrcs"):
        (tmp_path / name).write_bytes(mrc_bytes(counts(), 0))
        assert open_movie(tmp_path / name).shape == (3, 16, 17)
