"""Damaged files end in an `InputFileError` or in the right content, not in wrong pixels, a hang or a memory flood.

Bytes are damaged where a format describes itself; damage to pixels or digits cannot be found without checksums.
"""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from tests.io.samples import (
    SHAPE,
    counts,
    eer_bytes,
    electron_events,
    mrc_bytes,
    pack_4bit,
    spider_bytes,
)
from xmipp_accel.errors import InputFileError
from xmipp_accel.io.gains import read_gain
from xmipp_accel.io.ifd import STRIP_BYTE_COUNTS, STRIP_OFFSETS, DirectoryReader
from xmipp_accel.io.images import read_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.particles import Particles, read_particles, write_particles

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

CASES, CUTS = 2000, 300
LONGEST = 2.0  # s
MOST_MEMORY = 1 << 20  # the files have some kB; the rest is Python's
POSE_AND_CTF = ("index", "rot", "tilt", "psi", "shift_x", "shift_y", "defocus_u", "defocus_v", "defocus_angle")
POSE_AND_CTF += ("voltage", "cs", "amplitude_contrast", "phase_shift", "half", "class_id")


def _tiff(path, array, **options):
    tifffile.imwrite(path, array, photometric="minisblack", metadata=None, **options)
    return path.read_bytes()


def _read_movie(path):
    return [open_movie(path, eer_frames=3).read()]


def _read_particles(path):
    particles = read_particles(path)
    return [np.array(particles.stack), *(getattr(particles, name) for name in POSE_AND_CTF)]


def _particles_bytes(path):
    rng = np.random.default_rng(0)
    (path.parent / "s.stk").write_bytes(spider_bytes(counts((9, 4, 4))))
    values = {name: rng.uniform(1, 90, 9) for name in POSE_AND_CTF[1:]}
    values.update(index=np.arange(9), half=rng.integers(1, 3, 9), class_id=rng.integers(1, 9, 9))
    values.update(amplitude_contrast=np.full(9, 0.1), voltage=np.full(9, 200), cs=np.full(9, 2.0))
    stack = [str(path.parent / "s.stk")] * 9
    write_particles(path, Particles(stack, sampling_rate=1.5, has_ctf=True, has_pose=True, **values))
    return path.read_bytes()


def _floats():
    return np.random.default_rng(0).uniform(0.5, 2, SHAPE[1:]).astype(np.float32)


def _events():
    return eer_bytes(electron_events((9, 16, 17), 0.05), (16, 17), 65001, sampling_rate=1.0)


FORMATS = {
    "mrc_bytes": ("a.mrc", lambda path: mrc_bytes(counts(), 0), _read_movie),
    "mrc_words": (
        "a.mrc",
        lambda path: mrc_bytes(counts(dtype=np.uint16), 6, ">", extended=b"e" * 80),
        _read_movie,
    ),
    "mrc_floats": ("a.mrcs", lambda path: mrc_bytes(counts(dtype=np.float32), 2), _read_movie),
    "mrc_4bit": ("a.mrc", lambda path: mrc_bytes(pack_4bit(counts()), 101, packed_width=17), _read_movie),
    "tiff_plain": ("a.tif", lambda path: _tiff(path, counts()), _read_movie),
    "tiff_lzw": ("a.tif", lambda path: _tiff(path, counts(), compression="lzw", rowsperstrip=5), _read_movie),
    "tiff_deflate": ("a.tif", lambda path: _tiff(path, counts(), compression="zlib", bigtiff=True), _read_movie),
    "eer": ("a.eer", lambda path: _events(), _read_movie),
    "spider": ("a.stk", lambda path: spider_bytes(counts()), lambda path: [read_stack(path)]),
    "star": ("a.star", _particles_bytes, _read_particles),
    "xmd": ("a.xmd", _particles_bytes, _read_particles),
    "gain_tiff": ("a.gain", lambda path: _tiff(path, _floats()), lambda path: read_gain(path, SHAPE[1:])),
    "gain_lzw": (
        "a.tif",
        lambda path: _tiff(path, _floats(), compression="lzw"),
        lambda p: read_gain(p, SHAPE[1:]),
    ),
    "gain_mrc": ("a.mrc", lambda path: mrc_bytes(_floats()[None], 2), lambda path: read_gain(path, SHAPE[1:])),
}


def _describing_bytes(path, raw):
    """Places of the bytes that are neither pixels nor rows of a table."""
    if path.suffix in (".mrc", ".mrcs", ".stk"):
        return np.arange(1024)
    places = np.ones(len(raw), bool)
    if path.suffix in (".star", ".xmd"):
        start = 0
        for line in raw.split(b"\n"):
            if line[:1] == b" " and not line.startswith(b" _"):
                places[start : start + len(line) + 1] = False
            start += len(line) + 1
        return np.flatnonzero(places)
    for page in DirectoryReader(path).pages:
        for offset, count in zip(page.tags[STRIP_OFFSETS], page.tags[STRIP_BYTE_COUNTS]):
            places[offset : offset + count] = False
    return np.flatnonzero(places)


@pytest.fixture(params=FORMATS)
def sample(request, tmp_path):
    name, make, read = FORMATS[request.param]
    path = tmp_path / name
    raw = make(path)
    path.write_bytes(raw)
    return path, raw, read, read(path)


def _outcome(path, read):
    """What reading gives: arrays, or None for the one error that is allowed; anything else fails the test."""
    start = time.perf_counter()
    try:
        return read(path)
    except InputFileError as error:
        assert error.expected and error.found and str(path.parent) in str(error)
        return None
    finally:
        assert time.perf_counter() - start < LONGEST


def _same(found, truth):
    return all(np.array_equal(a, b) for a, b in zip(found, truth))


def test_damaged_headers(sample):
    path, raw, read, truth = sample
    places = _describing_bytes(path, raw)
    rng = np.random.default_rng(20)
    refused = 0
    for case in range(CASES):
        damaged = np.frombuffer(raw, np.uint8).copy()
        hit = rng.choice(places, rng.integers(1, 4), replace=False)
        damaged[hit] ^= rng.integers(1, 256, len(hit)).astype(np.uint8)
        path.write_bytes(damaged.tobytes())
        watched = case % 25 == 0
        if watched:
            tracemalloc.start()
        try:
            found = _outcome(path, read)
            assert not watched or tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()
        refused += found is None
        assert found is None or _same(found, truth), (
            f"case {case}: wrong content after damage to bytes {sorted(hit)}"
        )
    assert 0 < refused < CASES, "the damage must sometimes matter and sometimes not"


def test_truncated_files(sample):
    path, raw, read, truth = sample
    rng = np.random.default_rng(21)
    for cut in rng.integers(0, len(raw) - 1, CUTS).tolist():
        path.write_bytes(raw[:cut])
        found = _outcome(path, read)
        if path.suffix in (".star", ".xmd"):
            # A table that ends with a whole row is a table; its rows must be right.
            assert found is None or not raw[:cut].rpartition(b"\n")[2].strip()
            assert found is None or _same(found, [column[: len(found[0])] for column in truth])
        else:
            # tifffile leaves some bytes at the end that no page needs.
            whole = cut > len(raw) - 20 and found is not None and _same(found, truth)
            assert found is None or whole, f"a file cut at byte {cut} of {len(raw)} was read"


def test_files_that_grow(sample):
    """As a table is no table of contents, only formats with sizes can tell that something follows."""
    path, raw, read, truth = sample
    for more in (1, 7, len(raw)):
        path.write_bytes(raw + bytes(more))
        found = _outcome(path, read)
        assert found is None or (path.suffix in (".tif", ".eer", ".gain") and more < 20 and _same(found, truth))


@pytest.mark.parametrize("name", ["tiff_lzw", "tiff_deflate", "eer", "star", "xmd"])
def test_damage_anywhere_gives_the_typed_error_or_a_result_of_the_right_kind(tmp_path, name):
    file, make, read = FORMATS[name]
    path = tmp_path / file
    raw = make(path)
    path.write_bytes(raw)
    truth = read(path)
    rng = np.random.default_rng(22)
    for _ in range(500):
        damaged = bytearray(raw)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(damaged)
        found = _outcome(path, read)
        assert found is None or len(found) == len(truth)
        assert found is None or name in ("star", "xmd") or found[0].shape == truth[0].shape


def test_noise_and_files_of_another_format(tmp_path):
    rng = np.random.default_rng(23)
    contents = [rng.integers(0, 256, size).astype(np.uint8).tobytes() for size in (0, 1, 16, 1023, 1024, 5000)]
    contents += [make(tmp_path / name) for name, make, _ in FORMATS.values()]
    for name, make, read in FORMATS.values():
        path = tmp_path / f"x{(tmp_path / name).suffix}"
        own = make(tmp_path / name)
        for content in contents:
            path.write_bytes(content)
            found = _outcome(path, read)
            same_kind = content[:4] == own[:4] or path.suffix in (
                ".mrc",
                ".mrcs",
                ".tif",
                ".gain",
                ".star",
                ".xmd",
            )
            assert found is None or same_kind
