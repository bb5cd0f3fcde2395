import numpy as np
import pytest

from tests.io.samples import counts, mrc_bytes
from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.gains import divides, read_dark, read_defects, read_gain
from xmipp_accel.io.images import write_image, write_stack

tifffile = pytest.importorskip("tifffile")

SHAPE = (6, 8)


def _reference(shape=SHAPE):
    return np.random.default_rng(1).uniform(0.5, 2.0, shape).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    def write(array, name="gain.mrc"):
        path = tmp_path / name
        if path.suffix == ".mrc":
            write_image(path, array, 1.0)
        else:
            tifffile.imwrite(path, array, photometric="minisblack")
        return path

    return write


@pytest.mark.parametrize("name", ["gain.mrc", "gain.tif", "gain.tiff", "a.gain"])
def test_all_formats_but_tiff_give_the_stored_rows_in_order(write, name):
    """A .gain file belongs to EER movies, whose rows keep their order as well."""
    reference = _reference()
    stored = reference[::-1] if name.startswith("gain.tif") else reference
    gain, defects = read_gain(write(stored, name), SHAPE)
    assert gain.dtype == np.float32 and gain.flags.c_contiguous
    np.testing.assert_array_equal(gain, reference)
    assert defects.dtype == bool and not defects.any()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", ["none", "up_down", "left_right"])
def test_rotation_counter_clockwise_then_flip(write, rotation, flip):
    reference = _reference()
    reference[0, 1] = 0
    shape = SHAPE if rotation % 180 == 0 else SHAPE[::-1]
    expected = np.rot90(reference, rotation // 90)
    expected = {"none": expected, "up_down": np.flipud(expected), "left_right": np.fliplr(expected)}[flip]
    path = write(reference)
    gain, defects = read_gain(path, shape, rotation, flip)
    np.testing.assert_array_equal(gain, expected)
    np.testing.assert_array_equal(defects, expected == 0)
    dark = read_dark(path, shape, rotation, flip)
    np.testing.assert_array_equal(dark, expected)
    assert dark.flags.c_contiguous


def test_the_mean_is_divided_by_a_divisive_reference(write):
    reference = _reference() * 200
    reference[2, 3] = 0
    gain, defects = read_gain(write(reference), SHAPE, divide=True)
    assert defects.sum() == 1 and gain[2, 3] == 0
    np.testing.assert_allclose(gain[~defects], reference[~defects].mean() / reference[~defects], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "name", "is_eer", "expected"),
    [
        ("auto", "a.gain", True, False),
        ("auto", "a.GAIN", True, False),
        ("auto", "a.mrc", True, True),
        ("auto", "a.tif", True, True),
        ("auto", "a.gain", False, False),
        ("auto", "a.mrc", False, False),
        ("multiply", "a.mrc", True, False),
        ("divide", "a.gain", True, True),
        ("divide", "a.mrc", False, True),
    ],
)
def test_what_is_divided(mode, name, is_eer, expected):
    assert divides(mode, f"/data/{name}", is_eer) is expected


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_zero_negative_and_not_finite_pixels_are_defects(write, value, divide):
    reference = _reference()
    reference[4, 5] = value
    gain, defects = read_gain(write(reference), SHAPE, divide=divide)
    assert np.argwhere(defects).tolist() == [[4, 5]]
    assert gain[4, 5] == 0 and np.isfinite(gain).all()


@pytest.mark.parametrize("divide", [False, True])
def test_a_number_too_small_to_divide_by_is_a_defect(write, divide):
    reference = _reference()
    reference[0, 0] = 1e-40
    gain, defects = read_gain(write(reference), SHAPE, divide=divide)
    assert defects[0, 0] and defects.sum() == 1 and np.isfinite(gain).all()


@pytest.mark.parametrize("divide", [False, True])
def test_a_reference_of_twice_the_size_corrects_what_four_pixels_count(write, divide):
    """An evenly lit detector of twice the size is summed over 2 x 2 pixels; corrected, it is even again."""
    reference = _reference((12, 16))
    response = reference if divide else 1 / reference
    counts = response.reshape(6, 2, 8, 2).sum(axis=(1, 3))
    gain, defects = read_gain(write(reference), SHAPE, divide=divide)
    assert gain.dtype == np.float32 and not defects.any()
    corrected = counts * gain / 4
    np.testing.assert_allclose(corrected, response.mean() if divide else 1.0, rtol=1e-5)


@pytest.mark.parametrize("divide", [False, True])
def test_the_defects_of_a_reference_of_twice_the_size_do_not_count(write, divide):
    reference = np.full((12, 16), 2.0, np.float32)
    reference[:2, :2] = 0
    reference[3, 5] = 0
    gain, defects = read_gain(write(reference), SHAPE, divide=divide)
    assert np.argwhere(defects).tolist() == [[0, 0]] and gain[0, 0] == 0
    np.testing.assert_allclose(gain[~defects], 1.0 if divide else 2.0, rtol=1e-6)


@pytest.mark.parametrize("divide", [False, True])
def test_a_reference_of_half_the_size_is_repeated(write, divide):
    reference = _reference((3, 4))
    reference[1, 1] = 0
    gain, defects = read_gain(write(reference), SHAPE, divide=divide)
    factor = reference.copy()
    if divide:
        factor[reference > 0] = reference[reference > 0].mean() / reference[reference > 0]
    np.testing.assert_allclose(gain, np.kron(factor, np.ones((2, 2))), rtol=1e-6)
    assert defects.sum() == 4 and defects[2:4, 2:4].all()


def test_a_wrong_size_names_both(write):
    path = write(_reference((6, 7)))
    for read in (read_gain, read_dark):
        with pytest.raises(InputFileError, match="8 x 6 px, found 7 x 6 px"):
            read(path, SHAPE)
    with pytest.raises(InputFileError, match="8 x 6 px, found 6 x 8 px"):
        read_gain(write(_reference()), SHAPE, rotation=90)
    with pytest.raises(InputFileError, match="8 x 6 px, found 16 x 12 px"):
        read_dark(write(_reference((12, 16))), SHAPE)


def test_what_is_no_gain_reference_is_refused(write, tmp_path):
    with pytest.raises(InputFileError, match="48 of 48 pixels"):
        read_gain(write(np.full(SHAPE, np.nan, np.float32)), SHAPE)
    write_stack(tmp_path / "stack.mrc", np.ones((2, *SHAPE)), 1.0)
    with pytest.raises(InputFileError, match="one image, found 2"):
        read_gain(tmp_path / "stack.mrc", SHAPE)
    with pytest.raises(InputFileError, match="No such file"):
        read_gain(tmp_path / "missing.mrc", SHAPE)
    path = write(_reference())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputFileError, match="bytes"):
        read_gain(path, SHAPE)


def test_wrong_words_for_the_orientation_are_parameter_errors(write):
    path = write(_reference())
    with pytest.raises(ParameterError, match="rotation"):
        read_gain(path, SHAPE, rotation=45)
    with pytest.raises(ParameterError, match="flip"):
        read_gain(path, SHAPE, flip="upside_down")


def test_a_dark_reference_must_be_finite_and_may_be_negative(write):
    dark = _reference() - 1
    np.testing.assert_array_equal(read_dark(write(dark), SHAPE), dark)
    dark[1, 2] = np.nan
    with pytest.raises(InputFileError, match="1 that are not"):
        read_dark(write(dark), SHAPE)


def test_defect_boxes_are_x_y_width_height(tmp_path):
    (tmp_path / "defects.txt").write_text("# a comment\n1 2 3 1\n\n  7 0 1 6  # a column\n")
    defects = read_defects(tmp_path / "defects.txt", SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[2, 1:4] = expected[:, 7] = True
    np.testing.assert_array_equal(defects, expected)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1 2 3\n", "line 1"),
        ("1 2 3 1\n1 2 3 x\n", "line 2"),
        ("1.5 2 3 1\n", "line 1"),
        ("7 0 2 1\n", "within frames of 8 x 6"),
        ("-1 0 2 1\n", "within frames"),
        ("0 0 0 1\n", "within frames"),
        ("CameraSizeX 5760\nCameraSizeY 4092\n", "SerialEM"),
        ("BadPixels 1 2 3 4\n", "SerialEM"),
        ("1 2 3 1\0", "a binary file"),
    ],
)
def test_other_texts_are_refused_with_the_reason(tmp_path, text, expected):
    (tmp_path / "defects.txt").write_text(text)
    with pytest.raises(InputFileError, match=expected):
        read_defects(tmp_path / "defects.txt", SHAPE)


@pytest.mark.parametrize("name", ["map.mrc", "map.tif"])
def test_defect_maps(write, tmp_path, name):
    expected = counts(SHAPE, top=2)
    stored = expected[::-1] if name == "map.tif" else expected
    np.testing.assert_array_equal(read_defects(write(stored, name), SHAPE), expected == 1)
    with pytest.raises(InputFileError, match="8 x 7 px, found 8 x 6"):
        read_defects(write(expected, name), (7, 8))
    with pytest.raises(InputFileError, match="a map of 0 and 1"):
        read_defects(write(expected * 2, name), SHAPE)


def test_an_unsigned_map_of_bytes(tmp_path):
    expected = counts((1, *SHAPE), top=2)
    (tmp_path / "map.mrc").write_bytes(mrc_bytes(expected, 0))
    np.testing.assert_array_equal(read_defects(tmp_path / "map.mrc", SHAPE), expected[0] == 1)
