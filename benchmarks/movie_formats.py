"""How fast compressed movies are read: TIFF with LZW and deflate, and EER.

``make bench-movies-formats`` runs it; the last line is JSON. What counts is the share of the codec's own speed
from memory to memory: of one thread's times the number of cores, which a machine with other users does not give,
and of that of as many threads at once. Files are read from the system's cache. Each time is the shortest of some,
taken in turns.
"""

from __future__ import annotations

import argparse
import struct
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from benchmarks.reporting import print_json, print_machine, print_table
from xmipp_accel.backend import CPU, resolve_device
from xmipp_accel.backend.threads import cpu_count
from xmipp_accel.io import eer, tiff
from xmipp_accel.io.electrons import Streams
from xmipp_accel.io.files import open_input
from xmipp_accel.io.ifd import DirectoryReader
from xmipp_accel.io.movies import open_movie

K3 = 8, 4092, 5760
COUNTS = 0.7  # electrons a pixel and frame
STRIPS = 8, 4092  # rows
CODECS: dict[str, Callable] = {"lzw": imagecodecs.lzw_decode, "zlib": imagecodecs.deflate_decode}
FALCON = 4096
CAMERA_FRAMES, FRAMES = 160, 8
EVENTS = 0.03  # electrons a pixel and camera frame
CODINGS = {65000: (8, True), 65001: (7, False)}  # bits of a skip, and whether one alone is as wide as the others
REPEATS = 7
CODEC = "codec, 1 thread", f"codec, {cpu_count()}"
OURS = "ours, 1 thread", f"ours, {cpu_count()}"
SHARES = f"share of {cpu_count()} x 1", f"share of {cpu_count()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small movies, to try the script")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N, which EER movies are also read to")
    arguments = parser.parse_args()
    print_machine()
    device = resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        figures = tiff_movies(Path(folder), (4, 400, 576) if arguments.quick else K3)
        figures |= eer_movies(Path(folder), 512 if arguments.quick else FALCON, device)
    print_json(figures)


def tiff_movies(folder, shape) -> dict[str, float]:
    """Speed for each codec and size of strips, MB/s of pixels of one byte."""
    frames = np.random.default_rng(0).poisson(COUNTS, shape).astype(np.uint8)
    memory = np.empty_like(frames)
    megabytes, rows = frames.nbytes / 1e6, []
    figures: dict[str, float] = {}
    for codec, decode in CODECS.items():
        for strip in STRIPS:
            name, path = f"{codec}_{strip}", folder / f"{codec}_{strip}.tif"
            tifffile.imwrite(
                path, frames, photometric="minisblack", metadata=None, compression=codec, rowsperstrip=strip
            )
            header = tiff.read_header(path)
            times = shortest(
                codec=unpacking(header, decode, 1),
                codecs=unpacking(header, decode, cpu_count()),
                one=lambda header=header: tiff.read_page_list(header, range(shape[0]), 1, memory[:, ::-1]),
                all=lambda path=path: open_movie(path).read(out=memory),
                tifffile=lambda path=path: tifffile.imread(path),
            )
            if not np.array_equal(memory[:, ::-1], frames):
                raise AssertionError(f"{path}: other pixels than written")
            times["codec"] *= shape[0]
            times["codecs"] *= shape[0] / cpu_count()
            speeds = {key: megabytes / seconds for key, seconds in times.items()}
            figures |= {f"{name}_mb_s": speeds["all"]} | shares(name, speeds)
            rows.append([codec, strip, *speeds.values(), *shares(name, speeds).values()])
    columns = ["codec", "rows a strip", *CODEC, *OURS, "tifffile", *SHARES]
    print_table(f"TIFF, {shape[2]} x {shape[1]} px, MB/s of pixels", columns, rows)
    return figures


def unpacking(header, decode, threads):
    """What the codec alone does with the strips of the first page, in each of some threads."""
    offsets, counts = header.strips[0]
    content = header.path.read_bytes()
    packed = [content[offset : offset + count] for offset, count in zip(offsets, counts)]
    size = header.format.rows_per_strip * header.format.columns + 1
    rooms = [np.empty(size, np.uint8) for _ in range(threads)]
    return at_once([lambda room=room: [decode(strip, out=room) for strip in packed] for room in rooms])


def at_once(actions):
    """Function that does all actions, each in a thread of its own."""

    def act():
        with ThreadPoolExecutor(len(actions)) as pool:
            for task in [pool.submit(action) for action in actions]:
                task.result()

    return act


def eer_movies(folder, edge, device) -> dict[str, float]:
    """Camera frames a second for each coding and upsampling."""
    rows = []
    figures: dict[str, float] = {}
    for compression, (bits, wide) in CODINGS.items():
        path = folder / f"{compression}.eer"
        path.write_bytes(eer_file(edge, compression, bits, wide))
        for upsampling in (1, 2):
            header = eer.read_header(
                DirectoryReader(path), lambda *_: (CAMERA_FRAMES // FRAMES,) * FRAMES, upsampling
            )
            memory = np.empty(header.shape, header.dtype)
            actions = dict(
                codec=counting(header),
                codecs=at_once([counting(header) for _ in range(cpu_count())]),
                one=lambda header=header, memory=memory: eer.read_frames(header, 0, FRAMES, 1, memory),
                all=lambda header=header, memory=memory: eer.read_frames(header, 0, FRAMES, out=memory),
            )
            if not wide:  # imagecodecs reads the others wrongly
                actions["imagecodecs"] = others(header)
            if device != CPU:
                actions["device"] = lambda header=header: eer.read_frames_to(header, device, 0, FRAMES)
            times = shortest(**actions)
            times["codec"] *= FRAMES
            times["codecs"] *= FRAMES / cpu_count()
            speeds = {key: CAMERA_FRAMES / seconds for key, seconds in times.items()}
            name = f"eer_{compression}_{upsampling}"
            figures |= {f"{name}_frames_s": speeds["all"]} | shares(name, speeds)
            if "device" in speeds:
                figures[f"{name}_device_frames_s"] = speeds["device"]
            found = [speeds.get(key) for key in ("codec", "codecs", "one", "all", "imagecodecs", "device")]
            rows.append([compression, upsampling, *found, *shares(name, speeds).values()])
    columns = ["compression", "upsampling", *CODEC, *OURS, "imagecodecs, 1 thread", "GPU", *SHARES]
    print_table(f"EER, {edge} x {edge} px, {EVENTS} e/px, camera frames a second", columns, rows)
    return figures


def counting(header):
    """What the decoder alone does with the streams of the first frame."""
    streams = Streams(header, 0, 1)
    words = np.empty(streams.words, np.uint32)
    with open_input(header.path) as (file, _size):
        for k in range(len(streams.numbers)):
            streams.read(file, k, words)
    counts = np.zeros((1, *header.shape[1:]), header.dtype)

    def count():
        counts[:] = 0
        streams.add_electrons(words, counts)

    return count


def others(header):
    """The same movie by imagecodecs' decoder."""
    content = header.path.read_bytes()
    streams = [content[offsets[0] : offsets[0] + counts[0]] for offsets, counts in header.strips]
    streams = [stream + bytes(len(stream) % 2) for stream in streams]  # it wants an even number of bytes
    counts = np.empty(header.shape, header.dtype)

    def decode():
        counts[:] = 0
        for number, stream in enumerate(streams):
            frame = counts[number * FRAMES // CAMERA_FRAMES]
            imagecodecs.eer_decode(stream, frame.shape, 7, 2, 2, superres=header.upsampling - 1, out=frame)

    return decode


def eer_file(edge, compression, position_bits, wide) -> bytes:
    """Electrons at random places, in camera frames that are one strip each."""
    rng = np.random.default_rng(compression)
    raw = bytearray(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16))
    for number in range(CAMERA_FRAMES):
        places = np.flatnonzero(rng.random(edge * edge, np.float32) < EVENTS)
        stream = electron_stream(places, rng.integers(0, 16, len(places)), edge * edge, position_bits, wide)
        tags = [(256, edge), (257, edge), (258, 1), (259, compression), (262, 1), (273, 0), (278, edge)]
        tags.append((279, len(stream)))
        start = len(raw) + 16 + 20 * len(tags)
        tags[5] = 273, start
        entries = b"".join(struct.pack("<HHQQ", tag, 16, 1, value) for tag, value in tags)
        following = start + len(stream) if number + 1 < CAMERA_FRAMES else 0
        raw += struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", following) + stream
    return bytes(raw)


def electron_stream(places, within, pixels, position_bits, wide) -> bytes:
    """As `kernels.reference.eer.encode_frame`, for many electrons at `places`, with four bits `within` each."""
    gaps = np.diff(places, prepend=-1, append=pixels) - 1
    full = (1 << position_bits) - 1
    last = np.cumsum(gaps // full + 1) - 1  # the code of each electron, behind its skips
    codes = np.full(last[-1] + 1, full)
    lengths = np.full(len(codes), position_bits + 4 * wide)
    codes[last] = gaps % full
    codes[last[:-1]] |= within << position_bits
    lengths[last] = position_bits + 4
    bits = (codes[:, None] >> np.arange(position_bits + 4) & 1).astype(np.uint8)
    return np.packbits(bits[np.arange(position_bits + 4) < lengths[:, None]], bitorder="little").tobytes()


def shortest(**actions) -> dict[str, float]:
    """Shortest time (s) of each action; they take turns, since the machine's speed changes."""
    times = dict.fromkeys(actions, float("inf"))
    for _ in range(REPEATS):
        for key, action in actions.items():
            start = time.perf_counter()
            action()
            times[key] = min(times[key], time.perf_counter() - start)
    return times


def shares(name, speeds) -> dict[str, float]:
    of_one = speeds["all"] / (cpu_count() * speeds["codec"])
    return {f"{name}_share": of_one, f"{name}_share_at_once": speeds["all"] / speeds["codecs"]}


if __name__ == "__main__":
    main()
