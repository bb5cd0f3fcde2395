import struct

import numpy as np
import pytest

from tests.io.samples import SHAPE, counts
from xmipp_accel.errors import InputFileError
from xmipp_accel.io import tiff
from xmipp_accel.io.images import read_image, read_stack, write_image, write_stack
from xmipp_accel.io.movies import open_movie

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

COMPRESSIONS = {None: 1, "lzw": 5, "zlib": 8, "zstd": 50000, "packbits": 32773}


@pytest.fixture
def movie(tmp_path):
    """Writes a TIFF with tifffile and returns its path."""

    def write(array, name="a.tif", **options):
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", metadata=None, **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "f4", "f2"])
@pytest.mark.parametrize("order, big", [("<", False), (">", False), ("<", True), (">", True)])
def test_compressions_types_and_byte_orders(movie, compression, dtype, order, big):
    array = counts().astype(dtype)
    path = movie(array, compression=compression, byteorder=order, bigtiff=big, rowsperstrip=5)
    reader = open_movie(path)
    assert tiff.read_header(path).format.compression == COMPRESSIONS[compression]
    assert reader.shape == SHAPE and reader.dtype == np.dtype(dtype) and reader.dtype.isnative
    np.testing.assert_array_equal(reader.read(), array[:, ::-1])
    np.testing.assert_array_equal(reader.read(1, 3), array[1:, ::-1])


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
@pytest.mark.parametrize("order", "<>")
def test_horizontal_differences(movie, dtype, order):
    array = counts(top=255).astype(dtype) * (1 if dtype == "u1" else 100)
    path = movie(array, compression="lzw", predictor=True, byteorder=order)
    np.testing.assert_array_equal(open_movie(path).read(), array[:, ::-1])


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_threads_gives_the_same(movie, workers):
    array = counts((9, 33, 31))
    header = tiff.read_header(movie(array, compression="lzw", rowsperstrip=5))
    np.testing.assert_array_equal(tiff.read_page_list(header, [8, 0, 3, 3], workers=workers), array[[8, 0, 3, 3]])


def test_strips_may_stand_far_from_each_other(movie):
    array = counts((3, 16, 17))
    path = movie(array, rowsperstrip=8)
    with tifffile.TiffFile(path) as file:
        tags = [page.tags["StripOffsets"] for page in (file.pages[0], file.pages[2])]
        places, second = [tag.valueoffset + 4 for tag in tags], [tag.value[1] for tag in tags]
    raw = bytearray(path.read_bytes())
    size = 8 * 17
    contents = [raw[place : place + size] for place in second]
    for place, offset, start, content in zip(places, second[::-1], second, contents[::-1]):
        raw[place : place + 4] = struct.pack("<I", offset)
        raw[start : start + size] = content
    path.write_bytes(raw)
    np.testing.assert_array_equal(open_movie(path).read(), array[:, ::-1])


@pytest.mark.parametrize("unit, expected", [("CENTIMETER", 1.23), ("INCH", 0), ("NONE", 0)])
def test_the_sampling_rate_comes_from_pixels_a_centimetre(movie, unit, expected):
    path = movie(counts(), resolution=((81300813, 1), (81300813, 1)), resolutionunit=unit)
    assert open_movie(path).sampling_rate == pytest.approx(expected, rel=1e-6)


def test_the_resolution_of_a_print_is_no_sampling_rate(movie):
    assert open_movie(movie(counts(), resolution=(28.3, 28.3), resolutionunit="CENTIMETER")).sampling_rate == 0


def test_written_images_and_stacks_are_read_by_tifffile(tmp_path):
    array = counts().astype(np.float32)
    write_stack(tmp_path / "a.tif", array, 1.23)
    write_image(tmp_path / "b.tif", array[0], 0.0, np.uint16)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), array)
    np.testing.assert_array_equal(read_stack(tmp_path / "a.tif", [2, 0]), array[[2, 0]])
    assert tifffile.imread(tmp_path / "b.tif").dtype == np.uint16
    image, sampling_rate = read_image(tmp_path / "b.tif")
    np.testing.assert_array_equal(image, array[0])
    assert sampling_rate == 0 and image.dtype == np.float32
    assert open_movie(tmp_path / "a.tif").sampling_rate == pytest.approx(1.23, rel=1e-6)


def _refused(path, expected):
    with pytest.raises(InputFileError, match=expected):
        open_movie(path).read()


def test_what_is_not_a_stack_of_grey_frames_is_refused(movie, tmp_path):
    grey = counts((16, 16))
    tifffile.imwrite(tmp_path / "rgb.tif", counts((16, 16, 3)), photometric="rgb")
    _refused(tmp_path / "rgb.tif", "one sample a pixel")
    _refused(movie(counts((32, 32)), tile=(16, 16)), "strips")
    _refused(movie(grey.astype("c8")), "32 or 64 bits")
    _refused(movie(grey.astype("u4")), "with a sample format")
    _refused(movie(grey, compression="png"), "no compression, LZW")
    _refused(movie(grey.astype("f4"), compression="zlib", predictor=3), "predictor")
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    _refused(tmp_path / "white.tif", "0 is black")


def test_pages_that_differ_are_refused(tmp_path):
    for second in (counts((16, 18)), counts((16, 17)).astype("u2")):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(counts((16, 17)), photometric="minisblack", metadata=None)
            writer.write(second, photometric="minisblack", metadata=None)
        _refused(tmp_path / "a.tif", "page 1 with")


def _first_entry(raw, tag):
    (start,) = struct.unpack("<I", raw[4:8])
    (count,) = struct.unpack("<H", raw[start : start + 2])
    places = [start + 2 + 12 * k for k in range(count)]
    return next(place for place in places if struct.unpack("<H", raw[place : place + 2])[0] == tag)


@pytest.mark.parametrize(
    "tag, value, expected",
    [
        (256, 18, "page 1 with|bytes in strip"),
        (273, 4, "separate places"),
        (273, 1 << 30, "a file of"),
        (279, 271, "272 bytes in strip 0 of page 0"),
        (278, 8, "1 strips"),
        (259, 7, "no compression"),
    ],
)
def test_tags_that_contradict_the_file_are_refused(movie, tag, value, expected):
    path = movie(counts())
    raw = bytearray(path.read_bytes())
    place = _first_entry(raw, tag)
    kind = struct.unpack("<H", raw[place + 2 : place + 4])[0]
    raw[place + 8 : place + 12] = struct.pack(
        "<HH" if kind == 3 else "<I", *([value, 0] if kind == 3 else [value])
    )
    path.write_bytes(raw)
    _refused(path, expected)


def test_a_chain_of_pages_that_ends_early_is_refused(movie):
    """A tifffile stack whose second page points nowhere is one of two pages without this check."""
    path = movie(counts(), compression="lzw")
    with tifffile.TiffFile(path) as file:
        place = file.pages[2].offset
    raw = path.read_bytes()
    assert raw.count(struct.pack("<I", place)) == 1
    path.write_bytes(raw.replace(struct.pack("<I", place), bytes(4)))
    assert tifffile.imread(path).shape[0] == 2
    _refused(path, "that none refers to")


def test_a_chain_of_pages_that_runs_in_a_circle_is_refused(movie):
    path = movie(counts())
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[2].offset
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", last), struct.pack("<I", first)))
    _refused(path, "separate places")


def test_strips_that_unpack_to_another_size_are_refused(movie):
    for compression in ("lzw", "zlib", "zstd", "packbits"):
        path = movie(counts((16, 16)), compression=compression)
        raw = bytearray(path.read_bytes())
        place = _first_entry(raw, 256)
        for width, found in ((15, "or more"), (17, "found")):
            raw[place + 8] = width
            path.write_bytes(raw)
            _refused(path, f"unpack to {16 * width} bytes, {found}|unpack to {16 * width} bytes")


def test_a_size_that_no_strip_can_unpack_to_is_refused_before_memory_is_taken(movie):
    path = movie(counts((1, 16, 16)), compression="lzw")
    raw = bytearray(path.read_bytes())
    for tag in (256, 257, 278):
        place = _first_entry(raw, tag)
        raw[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 200000)
    path.write_bytes(raw)
    with pytest.raises(InputFileError, match="too few for that"):
        open_movie(path)


def test_without_imagecodecs_compressed_files_are_refused_and_others_read(movie, monkeypatch):
    compressed, plain = movie(counts(), compression="lzw"), movie(counts(), name="b.tif")
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    np.testing.assert_array_equal(open_movie(plain).read(), counts()[:, ::-1])
    _refused(compressed, "imagecodecs")
