import numpy as np
import pytest

from tests.io.samples import SHAPE, counts, mrc_bytes, pack_4bit
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io import mrc
from xmipp_accel.io.images import stack_writer, write_image, write_stack
from xmipp_accel.io.movies import open_movie
from xmipp_accel.io.volumes import write_volume

mrcfile = pytest.importorskip("mrcfile")

MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", MODES)
def test_all_modes_in_both_byte_orders(tmp_path, mode, order):
    array = counts(top=100, dtype=MODES[mode]) - MODES[mode](3 if mode != 6 else 0)
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(array, mode, order, extended=b"x" * 160))
    with open_movie(tmp_path / "a.mrc") as movie:
        assert movie.shape == SHAPE and movie.sampling_rate == 1.5
        assert movie.dtype == MODES[mode] and movie.dtype.isnative
        np.testing.assert_array_equal(movie.read(), array)
        np.testing.assert_array_equal(movie.read(1, 2), array[1:2])
        assert movie.read().dtype == movie.dtype
    with mrcfile.open(tmp_path / "a.mrc", permissive=True) as other:
        np.testing.assert_array_equal(other.data, array)


@pytest.mark.parametrize("width", [1, 2, 16, 17])
def test_4_bit_pixels_low_nibble_first_with_padded_rows(tmp_path, width):
    array = counts((3, 5, width), top=16)
    packed = pack_4bit(array)
    assert packed.shape[-1] == (width + 1) // 2
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(packed, 101, packed_width=width))
    with open_movie(tmp_path / "a.mrc") as movie:
        assert movie.shape == array.shape and movie.dtype == np.uint8
        np.testing.assert_array_equal(movie.read(), array)
        np.testing.assert_array_equal(movie.read(2, 3), array[2:])


def test_4_bit_pixels_in_bytes_that_imod_marks(tmp_path):
    array = counts((2, 5, 16), top=16)
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(pack_4bit(array), 0, imod=16))
    np.testing.assert_array_equal(open_movie(tmp_path / "a.mrc").read(), array)


@pytest.mark.parametrize(
    "imod, dtype", [(None, np.int8), (0, np.uint8), (1, np.int8), (4, np.uint8), (5, np.int8)]
)
def test_mode_0_is_unsigned_only_where_imod_says_so(tmp_path, imod, dtype):
    raw = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(raw, 0, imod=imod))
    movie = open_movie(tmp_path / "a.mrc")
    assert movie.dtype == dtype
    np.testing.assert_array_equal(movie.read(), raw.view(dtype))


@pytest.mark.parametrize("stamp", [b"\0\0\0\0", b"\x11\x11\0\0", b"DA\0\0"])
def test_a_wrong_machine_stamp_does_not_matter(tmp_path, stamp):
    array = counts(dtype=np.float32)
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(array, 2, "<", stamp=stamp))
    np.testing.assert_array_equal(open_movie(tmp_path / "a.mrc").read(), array)


@pytest.mark.parametrize("indices", [[0], [2, 0, 1], [1, 1, 2], [0, 1, 2], []])
def test_lists_of_sections_in_any_order(tmp_path, indices):
    array = counts(dtype=np.uint16)
    (tmp_path / "a.mrc").write_bytes(mrc_bytes(array, 6, ">"))
    result = mrc.read_section_list(mrc.read_header(tmp_path / "a.mrc"), indices)
    np.testing.assert_array_equal(result, array[indices] if indices else array[:0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16, np.uint16, np.int8])
def test_mrcfile_reads_what_is_written(tmp_path, dtype):
    array = counts(top=50).astype(np.float64) + 0.3
    write_stack(tmp_path / "a.mrcs", array, 1.25, dtype)
    # mrcfile sums the squares of halves as halves, finds infinity and complains.
    assert dtype == np.float16 or mrcfile.validate(str(tmp_path / "a.mrcs"))
    with mrcfile.open(tmp_path / "a.mrcs") as other:
        assert other.data.dtype == dtype and other.is_image_stack()
        assert float(other.voxel_size.x) == pytest.approx(1.25) and int(other.header.mz) == 1
        expected = array.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(array)
        np.testing.assert_array_equal(other.data, expected)
        header = other.header
        for name, value in dict(dmin=np.min, dmax=np.max, dmean=np.mean, rms=np.std).items():
            assert float(header[name]) == pytest.approx(value(other.data.astype(np.float64)), rel=1e-6), name


def test_mrcfile_takes_a_written_volume_for_a_volume(tmp_path):
    array = counts((5, 6, 7)).astype(np.float32)
    write_volume(tmp_path / "a.mrc", array, 2.5)
    assert mrcfile.validate(str(tmp_path / "a.mrc"))
    with mrcfile.open(tmp_path / "a.mrc") as other:
        assert other.is_volume() and int(other.header.ispg) == 1 and int(other.header.mz) == 5
        np.testing.assert_allclose(other.voxel_size.tolist(), (2.5, 2.5, 2.5), rtol=1e-6)
        np.testing.assert_array_equal(other.data, array)


def test_the_writing_of_values_that_do_not_fit_is_refused(tmp_path):
    for array, dtype in [([[300.0]], np.int8), ([[-1]], np.uint16), ([[1e6]], np.float16), ([[np.nan]], np.int16)]:
        with pytest.raises(ParameterError, match="cannot hold"):
            write_image(tmp_path / "a.mrc", np.array(array), 1.0, dtype)
    with pytest.raises(ParameterError, match="float64"):
        mrc.write_mrc(tmp_path / "a.mrc", np.ones((1, 2, 2)), 1.0, volume=False)
    assert not (tmp_path / "a.mrc").exists()


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda raw: raw[:1000], "an MRC header of 1024 bytes"),
        (lambda raw: raw[:-1], "2658 bytes|2656 bytes"),
        (lambda raw: raw + b"\0", "found 2657 bytes"),
        (lambda raw: raw[:12] + b"\3" + raw[13:], "mode 3"),
        (lambda raw: raw[:8] + b"\0\0\0\0" + raw[12:], "positive sizes"),
        (lambda raw: raw[:8] + b"\xff\xff\xff\x7f" + raw[12:], "2147483647 sections"),
        (lambda raw: raw[:92] + b"\xff\xff\xff\xff" + raw[96:], "extended header"),
        (lambda raw: raw[:64] + b"\1\0\0\0\1\0\0\0" + raw[72:], "permutation"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, change, expected):
    raw = mrc_bytes(counts(dtype=np.uint16), 6)
    (tmp_path / "a.mrc").write_bytes(change(raw))
    with pytest.raises(InputFileError, match=expected) as error:
        open_movie(tmp_path / "a.mrc")
    assert error.value.path == str(tmp_path / "a.mrc")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_stack_written_image_by_image_equals_one_written_at_once(tmp_path, dtype):
    """Byte for byte, but for the last bits of the mean and the deviation in the header."""
    stack = np.random.default_rng(0).normal(100, 2, (5, 7, 9)).astype(np.float32)
    with stack_writer(tmp_path / "a.mrcs", 1.5, dtype) as append:
        for image in stack:
            append(image)
            assert not (tmp_path / "a.mrcs").exists()
    write_stack(tmp_path / "b.mrcs", stack, 1.5, dtype)
    one, other = ((tmp_path / name).read_bytes() for name in ("a.mrcs", "b.mrcs"))
    assert one[1024:] == other[1024:] and one[:84] == other[:84]
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        assert mrcfile.validate(tmp_path / "a.mrcs") and file.header.nz == 5
        assert file.header.dmean == pytest.approx(stack.mean(), rel=1e-5)
        assert file.header.rms == pytest.approx(stack.astype(dtype).astype(float).std(), rel=1e-4)


def test_a_stack_that_breaks_off_or_stays_empty_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), stack_writer(tmp_path / "a.mrcs", 1.0) as append:
        append(np.zeros((4, 4)))
        raise KeyboardInterrupt
    with pytest.raises(ParameterError, match="at least one section"), stack_writer(tmp_path / "a.mrcs", 1.0):
        pass
    with (
        pytest.raises(ParameterError, match=r"as before.*4, 4.*4, 5"),
        stack_writer(tmp_path / "a.mrcs", 1.0) as append,
    ):
        append(np.zeros((4, 4)))
        append(np.zeros((4, 5)))
    assert not list(tmp_path.iterdir())
