"""Copies of stacks on a fast disk: what is read, what stays, what gives way."""

import collections
import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.io.samples import counts, negate_unseen
from xmipp_accel.errors import InputFileError
from xmipp_accel.io import scratch as scratch_module
from xmipp_accel.io import scratch_folder
from xmipp_accel.io.files import read_into
from xmipp_accel.io.images import write_stack
from xmipp_accel.io.particles import Particles, read_particles, write_particles
from xmipp_accel.io.scratch import scratch

BOX, COUNT = 8, 4
SIZE = 1024 + 4 * COUNT * BOX * BOX


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def small(disk, monkeypatch):
    """Give the disk room for so many copies, and nothing for others."""

    def small(most):
        def usage(path):
            taken = sum(file.stat().st_size for file in copies(disk, parts=True) if file.suffix != ".txt")
            free = most * SIZE - taken
            return collections.namedtuple("usage", "free")(free)

        monkeypatch.setattr(scratch_folder.shutil, "disk_usage", usage)
        monkeypatch.setattr(scratch_folder, "RESERVE", 0)

    return small


def stack(path, seed=0):
    write_stack(path, 1 + counts((COUNT, BOX, BOX), seed=seed).astype(np.float32), 2.0)
    return Particles([str(path)] * COUNT, np.arange(COUNT))


def stacks(folder, number):
    """Particles of so many stacks, the first of which has a 0 in its name."""
    for place in range(number):
        stack(folder / f"{place}.mrcs", seed=place)
    names = [str(folder / f"{place}.mrcs") for place in range(number) for _ in range(COUNT)]
    return Particles(names, np.tile(np.arange(COUNT), number))


def of(particles, *places):
    """Those of some of the stacks."""
    return particles.take(np.concatenate([np.arange(COUNT) + COUNT * place for place in places]))


def copies(disk, parts=False):
    """Files of ours on the disk, with those that are not complete or without."""
    (own,) = disk.iterdir()
    return [path for path in own.iterdir() if path.suffix and (parts or path.name[0] != ".")]


def copied_into(disk, particles):
    with scratch(str(disk)) as copied:
        return copied(particles)


@pytest.mark.parametrize("name", ["a.mrcs", "b.stk", "c.tif", "d.MRC"])
def test_images_come_from_the_copy_and_names_from_the_original(tmp_path, disk, name):
    particles = stack(tmp_path / name)
    before = particles.images()
    with scratch(str(disk)) as copied:
        found = copied(particles)
        negate_unseen(tmp_path / name)
        assert (particles.images() != before).any()
        np.testing.assert_array_equal(found.images(), before)
        np.testing.assert_array_equal(found.take([2, 0]).images(), before[[2, 0]])
    assert found.stack == particles.stack and particles.copies == {}
    write_particles(tmp_path / "p.star", found)
    assert read_particles(tmp_path / "p.star").stack == particles.stack
    assert str(disk) not in (tmp_path / "p.star").read_text()
    (copy,) = copies(disk)
    assert copy.suffix == (tmp_path / name).suffix


def test_a_later_run_uses_the_copies_that_are_there(tmp_path, disk, caplog):
    caplog.set_level(logging.INFO)
    particles = stacks(tmp_path, 3)
    before = particles.images()
    copied_into(disk, of(particles, 0, 2))
    for place in range(3):
        negate_unseen(tmp_path / f"{place}.mrcs")
    found, after = copied_into(disk, particles).images(), particles.images()
    assert "1 of 3 stacks to copy" in caplog.text
    for place, expected in enumerate((before, after, before)):
        rows = slice(COUNT * place, COUNT * (place + 1))
        np.testing.assert_array_equal(found[rows], expected[rows])
        assert (before[rows] != after[rows]).any()


def test_a_stack_that_has_changed_is_copied_anew(tmp_path, disk):
    particles = stack(tmp_path / "a.mrcs")
    copied_into(disk, particles)
    stack(tmp_path / "a.mrcs", seed=1)
    os.utime(tmp_path / "a.mrcs", ns=(0, 12345))
    np.testing.assert_array_equal(copied_into(disk, particles).images(), particles.images())
    assert len(copies(disk)) == 2


def test_only_stacks_of_the_rows_that_are_read_are_copied(tmp_path, disk):
    particles = stacks(tmp_path, 3)
    with scratch(str(disk)) as copied:
        found = copied(particles, np.array([5, 6]))
    assert list(found.copies) == [str(tmp_path / "1.mrcs")] and len(copies(disk)) == 1
    np.testing.assert_array_equal(found.images(), particles.images())


def test_one_file_under_two_names_is_one_copy(tmp_path, disk):
    particles = stack(tmp_path / "a.mrcs")
    os.symlink("a.mrcs", tmp_path / "link.mrcs")
    both = Particles([*particles.stack, str(tmp_path / "link.mrcs")], [*range(COUNT), 1])
    found = copied_into(disk, both)
    assert len(found.copies) == 2 and len(copies(disk, parts=True)) == 1
    np.testing.assert_array_equal(found.images(), both.images())


def test_without_a_folder_nothing_is_copied(tmp_path):
    particles = stack(tmp_path / "a.mrcs")
    with scratch("") as copied:
        assert copied(particles) is particles
    assert [path.name for path in tmp_path.iterdir()] == ["a.mrcs"]


def test_variables_in_the_name_of_the_folder_are_negate_unseen(tmp_path, disk, monkeypatch):
    monkeypatch.setenv("NODE_SCRATCH", str(disk))
    found = copied_into("$NODE_SCRATCH", stack(tmp_path / "a.mrcs"))
    assert [os.path.dirname(os.path.dirname(path)) for path in found.copies.values()] == [str(disk)]


def test_the_copies_are_for_their_owner_alone(tmp_path, disk):
    copied_into(disk, stack(tmp_path / "a.mrcs"))
    (own,) = disk.iterdir()
    assert own.stat().st_mode & 0o777 == 0o700


# ---------------------------------------------------------------------------------------------------------- room
def test_the_least_recently_used_copies_give_way(tmp_path, disk, small):
    small(3)
    particles = stacks(tmp_path, 5)
    found = [copied_into(disk, of(particles, place)).copies[str(tmp_path / f"{place}.mrcs")] for place in range(3)]
    for place, path in enumerate(found):
        os.utime(path, ns=(1000 * place, 0))
    notes = os.path.join(os.path.dirname(found[0]), "0123.txt")
    with open(notes, "w") as file:
        file.write("of somebody else")
    copied_into(disk, of(particles, 0))  # used again
    copied_into(disk, of(particles, 3))
    assert list(map(os.path.exists, found)) == [True, False, True]
    copied_into(disk, of(particles, 4))
    assert list(map(os.path.exists, found)) == [True, False, False]
    assert os.path.exists(notes)


def test_copies_in_use_are_not_removed(tmp_path, disk, small, caplog):
    small(2)
    particles = stacks(tmp_path, 4)
    with scratch(str(disk)) as copied:
        first = copied(of(particles, 0, 1))
        other = copied_into(disk, of(particles, 2, 3))
        assert other.copies == {} and "reading 2 of 2 stacks" in caplog.text
        np.testing.assert_array_equal(other.images(), of(particles, 2, 3).images())
        negate_unseen(tmp_path / "0.mrcs")
        assert (first.images()[:COUNT] != of(particles, 0).images()).any(), "still read from the copy"
    assert len(copied_into(disk, of(particles, 2, 3)).copies) == 2, "the run has ended"


def test_what_a_killed_run_has_left_gives_way(tmp_path, disk, small):
    small(1)
    particles = stacks(tmp_path, 2)
    found = copied_into(disk, of(particles, 0))
    (copy,) = copies(disk)
    copy.rename(copy.with_name("." + copy.name))
    (copy.parent / "run_1").write_text(copy.name)
    found = copied_into(disk, of(particles, 1))
    assert len(found.copies) == 1 and len(copies(disk, parts=True)) == 1
    assert not (copy.parent / "run_1").exists()


def test_what_a_killed_run_has_begun_is_finished(tmp_path, disk, small):
    small(1)
    particles = stacks(tmp_path, 1)
    copied_into(disk, particles)
    (copy,) = copies(disk)
    copy.unlink()
    copy.with_name("." + copy.name).write_bytes(bytes(SIZE))
    found = copied_into(disk, particles)
    assert copies(disk, parts=True) == [copy]
    negate_unseen(tmp_path / "0.mrcs")
    assert (found.images() != particles.images()).any() and found.images().any()


def test_a_damaged_copy_is_made_anew(tmp_path, disk):
    particles = stack(tmp_path / "a.mrcs")
    copied_into(disk, particles)
    (copy,) = copies(disk)
    copy.write_bytes(copy.read_bytes()[:-100])
    found = copied_into(disk, particles)
    np.testing.assert_array_equal(found.images(), particles.images())
    assert copy.stat().st_size == SIZE


def test_stacks_without_room_are_read_from_where_they_are(tmp_path, disk, small, caplog):
    small(2)
    particles = stacks(tmp_path, 5)
    found = copied_into(disk, particles)
    assert len(found.copies) == 2 and len(copies(disk, parts=True)) == 2
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"{disk}: reading 3 of 5 stacks, 0.0 GB, from where they are" in record.getMessage()
    np.testing.assert_array_equal(found.images(), particles.images())


def test_some_of_the_disk_is_left_to_others(tmp_path, disk, monkeypatch):
    for more, expected in ((-1, 0), (0, 1)):
        usage = collections.namedtuple("usage", "free")(scratch_folder.RESERVE + SIZE + more)
        monkeypatch.setattr(scratch_folder.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert len(copied_into(disk, stack(tmp_path / "a.mrcs")).copies) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_a_disk_that_is_full_all_the_same_is_no_error(tmp_path, disk, monkeypatch, caplog, call, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    particles = stack(tmp_path / "a.mrcs")
    monkeypatch.setattr(scratch_module.os, call, full)
    found = copied_into(disk, particles)
    assert found.copies == {} and "reading 1 of 1 stacks" in caplog.text
    assert sum(path.stat().st_size for path in copies(disk, parts=True)) == 0
    monkeypatch.undo()
    assert len(copied_into(disk, particles).copies) == 1


def test_a_stack_that_changes_while_it_is_copied_is_read_from_where_it_is(tmp_path, disk, monkeypatch, caplog):
    particles = stack(tmp_path / "a.mrcs")

    def read(path, *more):
        os.utime(path, ns=(0, 1))
        read_into(path, *more)

    monkeypatch.setattr(scratch_module, "read_into", read)
    assert copied_into(disk, particles).copies == {} and "changed meanwhile" in caplog.text
    assert sum(path.stat().st_size for path in copies(disk, parts=True)) == 0


# -------------------------------------------------------------------------------------------------- several runs
RUN = """
import sys
from xmipp_accel.io.particles import read_particles
from xmipp_accel.io.scratch import scratch
print("ready", flush=True)
sys.stdin.readline()
with scratch(sys.argv[2]) as copied:
    particles = copied(read_particles(sys.argv[1]))
    print(len(particles.copies), float(particles.images().sum()), flush=True)
    sys.stdin.readline()
"""


def test_two_processes_at_once_end_well(tmp_path, disk):
    particles = stacks(tmp_path, 12)
    particles.sampling_rate = 2.0
    write_particles(tmp_path / "p.star", particles)
    command = [sys.executable, "-c", RUN, str(tmp_path / "p.star"), str(disk)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    runs = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    expected = f"12 {float(particles.images().sum())}\n"
    assert [run.stdout.readline() for run in runs] == [expected] * 3
    (own,) = disk.iterdir()
    assert len(list(own.glob("run_*"))) == 3
    runs[0].kill()
    for run in runs[1:]:
        run.communicate("\n")
    assert [run.wait() for run in runs] == [-9, 0, 0]
    assert len(copies(disk, parts=True)) == 12


def test_a_stack_that_another_run_copies_is_waited_for(tmp_path, disk, monkeypatch):
    particles, read, waiting = stack(tmp_path / "a.mrcs"), [], threading.Event()

    def slow(path, *more):
        read.append(path)
        assert waiting.wait(10)
        read_into(path, *more)

    def flock(file, flags):
        if flags == fcntl.LOCK_EX and read:
            waiting.set()
        fcntl_flock(file, flags)

    fcntl_flock = fcntl.flock
    monkeypatch.setattr(scratch_module, "read_into", slow)
    monkeypatch.setattr(fcntl, "flock", flock)
    found = []
    threads = [threading.Thread(target=lambda: found.append(copied_into(disk, particles))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(read) == 1 and [len(one.copies) for one in found] == [1, 1]
    assert len(copies(disk, parts=True)) == 1
    np.testing.assert_array_equal(found[0].images(), particles.images())


# -------------------------------------------------------------------------------------------------------- errors
def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path, disk, monkeypatch):
    particles = stack(tmp_path / "a.mrcs")
    for name in ("missing", "a.mrcs", "$NO_SUCH_VARIABLE"):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputFileError, match="existing folder") as refused:
            copied_into(name, particles)
        assert refused.value.path == str(tmp_path / name)
    assert not (tmp_path / "missing").exists()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(scratch_module.Path, "mkdir", refuse)
    with pytest.raises(InputFileError, match="can be written, found Permission denied") as refused:
        copied_into(disk, particles)
    assert refused.value.path == str(disk)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path, disk):
    disk.chmod(0o500)
    with pytest.raises(InputFileError, match="Permission denied"):
        copied_into(disk, stack(tmp_path / "a.mrcs"))


def test_a_failing_disk_is_an_error_that_names_the_copy(tmp_path, disk, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    particles = stack(tmp_path / "a.mrcs")
    monkeypatch.setattr(scratch_module.os, "fsync", fail)
    with pytest.raises(InputFileError, match=r"a copy of .*a\.mrcs, found Input/output error") as failed:
        copied_into(disk, particles)
    assert str(disk) in failed.value.path


def test_a_missing_or_damaged_stack_is_refused_under_its_own_name(tmp_path, disk):
    particles, path = stack(tmp_path / "a.mrcs"), tmp_path / "a.mrcs"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(InputFileError) as refused:
        copied_into(disk, particles)
    assert refused.value.path == str(path)
    path.write_bytes(b"")
    with pytest.raises(InputFileError) as refused:
        copied_into(disk, particles)
    assert refused.value.path == str(path)
    path.unlink()
    with pytest.raises(InputFileError, match="No such file") as refused:
        copied_into(disk, particles)
    assert refused.value.path == str(path)
    path.write_bytes(content)
    found = copied_into(disk, Particles([str(path)], [COUNT]))
    with pytest.raises(InputFileError, match="an image with the index 4") as refused:
        found.images()
    assert refused.value.path == str(path)
