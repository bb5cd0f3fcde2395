"""The file of what was measured: shared by processes, and never in the way."""

import fcntl
import json
import multiprocessing
import time

import pytest

from xmipp_accel.tuning import cache as caches
from xmipp_accel.tuning.cache import Entry, TuningCache

ENTRY = Entry.of("columns", {"scatter": [3e-5, 2e-5], "columns": [1e-5, 1.5e-5, 2e-5], "bricks": []})


def test_an_entry_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    TuningCache().store("a problem", ENTRY)
    assert TuningCache(tmp_path / "xmipp_accel" / "tune.json").entries() == {"a problem": ENTRY}
    assert (ENTRY.option, ENTRY.median, ENTRY.count) == ("columns", 1.5e-5, 5)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(TuningCache().path) == "/home/me/.cache/xmipp_accel/tune.json"


GOOD = dict(option="a", median=1.0, count=1, date="", trials={"a": [1.0]})


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "\0",
        "[]",
        json.dumps({"version": 2, "entries": {}}),
        json.dumps({"version": 1, "entries": []}),
        *(
            json.dumps({"version": 1, "entries": {"key": {**GOOD, **wrong}}})
            for wrong in ({"trials": 3}, {"trials": {"a": ["1"]}}, {"trials": {}}, {"median": "1"}, {"more": 1})
        ),
        '{"version": 1, "entries": {"key": {"option": "a", "median": 1.0, "trials": {"a": [Infinity]}}}}',
    ],
)
def test_a_broken_file_is_told_of_once_and_replaced(tmp_path, caplog, content):
    path = tmp_path / "tune.json"
    path.write_text(content)
    for _ in range(3):
        assert TuningCache(path).entries() == {}
    (line,) = caplog.messages
    assert str(path) in line
    TuningCache(path).store("key", ENTRY)
    assert TuningCache(path).entries() == {"key": ENTRY}
    assert len(caplog.messages) == 1


def test_a_folder_that_cannot_be_written_is_told_of_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for _ in range(3):
        cache = TuningCache(tmp_path / "file" / "tune.json")
        cache.store("key", ENTRY)
        assert cache.entries() == {}
    (line,) = caplog.messages
    assert "not used or kept" in line


def _write(path, name):
    for number in range(15):
        TuningCache(path).store(f"{name} {number}", ENTRY)


def test_processes_do_not_lose_each_others_entries(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path / "tune.json", name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(TuningCache(tmp_path / "tune.json").entries()) == {
        f"{name} {i}" for name in "ab" for i in range(15)
    }


def test_a_lock_that_is_held_for_long_is_given_up(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(caches, "PATIENCE", 0.05)
    with open(tmp_path / "tune.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        TuningCache(tmp_path / "tune.json").store("key", ENTRY)
    assert time.monotonic() - begun < 1
    assert not (tmp_path / "tune.json").exists() and len(caplog.messages) == 1
