import os

import numpy as np
import pytest

from xmipp_accel.errors import InputFileError
from xmipp_accel.io import publish
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.publish import atomic_path, read_json, write_json
from xmipp_accel.io.tables import write_blocks
from xmipp_accel.io.volumes import write_volume


def test_the_temporary_file_has_the_same_folder_and_suffix_and_is_gone_afterwards(tmp_path):
    final = tmp_path / "result.mrc"
    with atomic_path(final) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".mrc" and temporary != final
        temporary.write_bytes(b"new")
        assert not final.exists()
    assert final.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["result.mrc"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    final = tmp_path / "result.txt"
    final.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "result.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_the_longest_name_of_a_file_system_can_be_published(tmp_path):
    final = tmp_path / ("ñ" * 125 + ".json")
    write_json(final, {"a": 1})
    assert read_json(final) == {"a": 1}


def test_published_files_have_the_permissions_of_ordinary_ones(tmp_path):
    write_json(tmp_path / "a.json", {})
    (tmp_path / "b.json").write_text("{}")
    assert os.stat(tmp_path / "a.json").st_mode == os.stat(tmp_path / "b.json").st_mode


class _Failing:
    """Lets every system call of a kind pass but the n-th."""

    def __init__(self, function, n):
        self.function, self.left = function, n

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise OSError(28, "No space left on device")
        return self.function(*args, **kwargs)


WRITERS = {
    "volume.mrc": lambda path: write_volume(path, np.ones((4, 4, 4)), 1.0),
    "stack.mrcs": lambda path: write_stack(path, np.ones((4, 4, 4)), 1.0),
    "stack.stk": lambda path: write_stack(path, np.ones((4, 4, 4)), 1.0),
    "table.star": lambda path: write_blocks(path, {"a": {"b": [1, 2]}}),
    "result.json": lambda path: write_json(path, {"a": 1}),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_whichever_call_fails_the_file_is_whole_or_absent(tmp_path, monkeypatch, name, call):
    """Fail the first, second, third... call until the writer passes without meeting the fault."""
    failures = 0
    for n in range(1, 20):
        folder = tmp_path / str(n)
        folder.mkdir()
        failing = _Failing(getattr(os, call), n)
        with monkeypatch.context() as patch:
            patch.setattr(publish.os, call, failing)
            try:
                WRITERS[name](folder / name)
            except OSError:
                failures += 1
        left = os.listdir(folder)
        # Only the last call, which flushes the folder, can fail with the file in place, and then it is whole.
        assert left in ([], [name])
        if failing.left > 0:
            break
    assert failing.left > 0 and failures >= 1
    assert left == [name]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, n):
    """The n-th write to the file fails, as on a full disk."""
    real_open, writes = open, []

    def failing_open(path, *args, **kwargs):
        file = real_open(path, *args, **kwargs)

        class Wrapped:
            def write(self, data):
                writes.append(len(data))
                if len(writes) == n:
                    file.write(bytes(data)[: len(data) // 2])
                    raise OSError(28, "No space left on device")
                return file.write(data)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

        return Wrapped() if "w" in "".join(map(str, args)) else file

    monkeypatch.setattr("xmipp_accel.io.spider.open", failing_open, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_stack(tmp_path / "stack.stk", np.ones((3, 5, 5)), 1.0)
    assert len(writes) == n
    assert os.listdir(tmp_path) == []


def test_json_survives_the_round_trip(tmp_path):
    content = {"shifts": [[0.1, -2.5]], "name": "μ.mrc", "count": 3, "none": None}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


def test_values_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("text", ["", '{"a": 1', "[1]", "\ufeff{}", "[" * 100000])
def test_anything_but_a_json_object_is_an_input_file_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputFileError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
