import numpy as np
import pytest

from tests.io.samples import SHAPE, counts, mrc_bytes, spider_bytes
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.images import read_image, read_stack, stack_shape, write_image, write_stack
from xmipp_accel.io.volumes import read_volume, write_volume

NAMES = ["a.mrcs", "a.mrc", "a.stk", "a.tif"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (4, 31, 300), (2, 5, 256)])
def test_stacks_survive_the_round_trip(tmp_path, name, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_stack(tmp_path / name, array, 1.25)
    assert stack_shape(tmp_path / name) == shape
    read = read_stack(tmp_path / name)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", [[2], [2, 0, 0], [1, 2], np.array([0, 2]), []])
def test_images_come_in_the_order_asked_for(tmp_path, name, indices):
    array = counts().astype(np.float32)
    write_stack(tmp_path / name, array, 1.25)
    np.testing.assert_array_equal(read_stack(tmp_path / name, indices), array[np.asarray(indices, int)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", [[3], [0, 7], [-1]])
def test_an_index_beyond_the_stack_is_named(tmp_path, name, indices):
    write_stack(tmp_path / name, counts(), 1.0, np.float32)
    worst = indices[-1]
    with pytest.raises(InputFileError, match=rf"index {worst} \(from 0\), found 3 images"):
        read_stack(tmp_path / name, indices)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("shape", [(3, 16, 17), (2, 5, 300), (1, 64, 64)])
def test_spider_stacks_in_both_byte_orders(tmp_path, shape, order):
    array = counts(shape).astype(np.float32)
    (tmp_path / "a.stk").write_bytes(spider_bytes(array, order))
    np.testing.assert_array_equal(read_stack(tmp_path / "a.stk"), array)
    write_stack(tmp_path / "b.stk", array, 0.0)
    words = np.frombuffer((tmp_path / "b.stk").read_bytes(), "<f4", 26)
    np.testing.assert_array_equal(words, np.frombuffer(spider_bytes(array), "<f4", 26))


def test_spider_images_and_volumes(tmp_path):
    array = counts((4, 6, 5)).astype(np.float32)
    words = np.zeros(52 * 5, "<f4")
    words[[0, 1, 4, 11, 12, 21, 22]] = 4, 6, 3, 5, 52, 1040, 20
    (tmp_path / "a.vol").write_bytes(words.tobytes() + array.tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "a.vol")[0], array)
    words[[0, 4]] = 1, 1
    (tmp_path / "a.xmp").write_bytes(words.tobytes() + array[1].tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "a.xmp")[0], array[1])


@pytest.mark.parametrize(
    "word, value, expected",
    [
        (26, 4, "bytes for 4 x 16 x 17"),
        (26, 0, "at least 1"),
        (1, 2, "volumes"),
        (12, 18, "SPIDER header"),
        (13, 3, "SPIDER"),
    ],
)
def test_a_damaged_spider_header_is_refused(tmp_path, word, value, expected):
    raw = bytearray(spider_bytes(counts((3, 16, 17))))
    raw[4 * word - 4 : 4 * word] = np.float32(value).tobytes()
    (tmp_path / "a.stk").write_bytes(raw)
    with pytest.raises(InputFileError, match=expected):
        read_stack(tmp_path / "a.stk")


def test_one_image_with_its_sampling_rate(tmp_path):
    write_image(tmp_path / "a.mrc", counts((5, 7)), 0.83)
    image, sampling_rate = read_image(tmp_path / "a.mrc")
    assert image.shape == (5, 7) and image.dtype == np.float32 and sampling_rate == pytest.approx(0.83)
    write_stack(tmp_path / "b.mrcs", counts(), 0.83)
    with pytest.raises(InputFileError, match="one image, found 3"):
        read_image(tmp_path / "b.mrcs")


def test_wrong_shapes_and_names_are_parameter_errors(tmp_path):
    with pytest.raises(ParameterError, match=r"found shape \(3, 16, 17\)"):
        write_image(tmp_path / "a.mrc", counts(), 1.0)
    with pytest.raises(ParameterError, match="shape"):
        write_stack(tmp_path / "a.mrcs", counts((5, 7)), 1.0)
    with pytest.raises(ParameterError, match="shape"):
        write_stack(tmp_path / "a.mrcs", counts((0, 5, 7)), 1.0)
    with pytest.raises(ParameterError, match="ends in"):
        write_stack(tmp_path / "a.hdf", counts(), 1.0)
    with pytest.raises(ParameterError, match="ends in"):
        write_volume(tmp_path / "a.mrcs", counts(), 1.0)
    with pytest.raises(ParameterError, match="shape"):
        write_volume(tmp_path / "a.mrc", counts((5, 7)), 1.0)


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 1, 1), (65, 3, 2)])
def test_volumes_survive_the_round_trip(tmp_path, shape):
    array = np.random.default_rng(0).normal(size=shape)
    write_volume(tmp_path / "a.mrc", array, 2.75)
    volume, sampling_rate = read_volume(tmp_path / "a.mrc")
    assert volume.dtype == np.float32 and sampling_rate == pytest.approx(2.75)
    np.testing.assert_array_equal(volume, array.astype(np.float32))


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1)])
def test_volumes_come_as_z_y_x_whatever_the_order_in_the_file(tmp_path, axes):
    """`axes` are those of columns, rows and sections; the voxel values tell x, y and z."""
    sizes = {1: 5, 2: 6, 3: 7}
    z, y, x = np.meshgrid(np.arange(7), np.arange(6), np.arange(5), indexing="ij")
    truth = (100 * z + 10 * y + x).astype(np.float32)
    stored = truth.transpose([3 - axes[2], 3 - axes[1], 3 - axes[0]])
    assert stored.shape == tuple(sizes[axis] for axis in axes[::-1])
    raw = bytearray(mrc_bytes(stored, 2))
    raw[64:76] = np.array(axes, "<i4").tobytes()
    raw[28:40] = np.array([5, 6, 7], "<i4").tobytes()
    raw[40:52] = np.array([10, 12, 14], "<f4").tobytes()
    (tmp_path / "a.map").write_bytes(raw)
    volume, sampling_rate = read_volume(tmp_path / "a.map")
    np.testing.assert_array_equal(volume, truth)
    assert sampling_rate == 2.0 and volume.flags.c_contiguous


def test_volumes_with_flat_voxels_or_without_numbers_are_refused(tmp_path):
    raw = bytearray(mrc_bytes(counts(dtype=np.float32), 2))
    raw[48:52] = np.float32(3.0).tobytes()
    (tmp_path / "a.mrc").write_bytes(raw)
    with pytest.raises(InputFileError, match=r"3 x 1\.5 x 1\.5 A"):
        read_volume(tmp_path / "a.mrc")
    array = counts().astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    write_volume(tmp_path / "b.mrc", array, 1.0)
    with pytest.raises(InputFileError, match="2 that are not"):
        read_volume(tmp_path / "b.mrc")
