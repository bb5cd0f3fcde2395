import numpy as np
import pytest

from xmipp_accel.errors import InputFileError, ParameterError
from xmipp_accel.io.tables import _Parser, read_blocks, write_blocks

STAR = """
# version 30001

data_optics

loop_ 
_rlnOpticsGroup #1 
_rlnOpticsGroupName #2 
           1 opticsGroup1 
           2 'a group with # spaces'

data_single
_rlnCount      3
_rlnName   "two words"

data_particles
loop_
_rlnImageName #1
_rlnAnglePsi #2 [degrees]
_rlnClassNumber #3
000001@stack.mrcs   0      1
# a comment between rows
000002@stack.mrcs  -1.5e1  2   # and one behind a row

000003@stack.mrcs   2.25   3
"""  # noqa: W291


def _read(tmp_path, text, name="a.star"):
    (tmp_path / name).write_text(text)
    return read_blocks(tmp_path / name)


def test_loops_single_values_quotes_and_comments(tmp_path):
    blocks = _read(tmp_path, STAR)
    assert list(blocks) == ["optics", "single", "particles"]
    assert blocks["optics"]["rlnOpticsGroupName"] == ["opticsGroup1", "a group with # spaces"]
    assert blocks["single"]["rlnCount"].tolist() == [3]
    assert blocks["single"]["rlnName"] == ["two words"]
    particles = blocks["particles"]
    assert particles["rlnImageName"][2] == "000003@stack.mrcs"
    np.testing.assert_array_equal(particles["rlnAnglePsi"], [0, -15, 2.25])
    assert particles["rlnClassNumber"].dtype == np.int64


def test_a_column_is_numeric_only_if_all_its_values_are(tmp_path):
    text = "data_a\nloop_\n_b\n_c\n_d\n_e\n1 1 1_0 ٣\n2.5 x 1_1 ٤\n"
    block = _read(tmp_path, text)["a"]
    np.testing.assert_array_equal(block["b"], [1, 2.5])
    assert (block["c"], block["d"], block["e"]) == (["1", "x"], ["1_0", "1_1"], ["٣", "٤"])


def test_windows_line_ends_and_a_trailing_comment(tmp_path):
    block = _read(tmp_path, "data_a\r\nloop_\r\n_b\r\n1\r\n2\r\n# end")["a"]
    assert block["b"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("data_a\nloop_\n_b\n_c\n1 2\n3\n", "2 values in line 6, found 1"),
        ("data_a\nloop_\n_b\n_c\n1 2\n3 4 5\n", "2 values in line 6, found 3"),
        ("data_a\nloop_\n_b\n1\n2.34", "a line end after the last value"),
        ("data_a\nloop_\n_b\n_b\n1 2\n", "a new label"),
        ("data_a\nloop_\n_b\n1\ndata_a\nloop_\n_b\n1\n", "a new block name"),
        ("data_a\nloop_\n_b\n1\nloop_\n_c\n1\n", "one table a block"),
        ("data_a\nloop_\n1 2\n", "loop_ or a label"),
        ("data_a\n_b\n", "a label and its value"),
        ("data_a\nloop_\n_b 1\n1\n", "a label in line 3"),
        ("data_a\nloop_\n_b\n'open\n", "a closing quotation mark"),
        ("data_a\nloop_\n_b@c\n1\n", "a new label"),
        ("data_a\nloop_\n_b #1x1@c\n2@c\n", "an image name behind it"),
        ("data_a\nloop_\n", "labels after loop_"),
        ("hello\ndata_a\n", "before the first block"),
        ("# nothing\n", "begins with data_"),
        ("", "begins with data_"),
    ],
)
def test_a_file_that_does_not_fit_names_the_line(tmp_path, text, expected):
    with pytest.raises(InputFileError, match=expected):
        _read(tmp_path, text)


def _long(change, line, columns):
    """A table of 2400 rows, of which the one in file line `line` is changed."""
    rows = ["data_a", "loop_", *("_" + "bc"[place] for place in range(columns))]
    rows += [" ".join(["7", str(row)][:columns]) for row in range(2400)]
    rows[line - 1 : line] = change(rows[line - 1])
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("line", [1500, 2024, 2025])
@pytest.mark.parametrize(
    "change",
    [
        lambda row: [row],
        lambda row: [row, ""],
        lambda row: ["# aside", row],
        lambda row: [row + " # aside"],
        lambda row: [row.replace("7", "'seven up'")],
        lambda row: [row.replace("7", "data_7")],
        lambda row: [row, "data_b", "loop_", "_d", "1", "2", ""],
        lambda row: [row, "loop_"],
        lambda row: [row + " 7"],
        lambda row: ["7", row + " 8"],
        lambda row: ["_7" + row],
    ],
)
def test_long_tables_read_at_once_are_what_they_are_line_by_line(tmp_path, monkeypatch, change, line, columns):
    found = []
    for at_once in (_Parser.rows_at_once, lambda *_: False):
        monkeypatch.setattr(_Parser, "rows_at_once", at_once)
        try:
            found.append(_read(tmp_path, _long(change, line, columns)))
        except InputFileError as error:
            found.append(str(error))
    np.testing.assert_equal(*found)


def test_what_is_no_text_is_refused(tmp_path):
    for raw, expected in ((b"data_a\0", "binary"), (b"data_a\nloop_\n_b\n\xff\n", "0xff at 16")):
        (tmp_path / "a.star").write_bytes(raw)
        with pytest.raises(InputFileError, match=expected):
            read_blocks(tmp_path / "a.star")


BLOCKS = {
    "one": {
        "whole": np.array([1, -2, 3]),
        "small": np.array([1e-7, -2.25, 123456.789012]),
        "flag": np.array([True, False, True]),
        "name": ["plain", "two words", ""],
        "odd": ["_label", "#hash", "data_x"],
        "mark": ["it's", 'say "so" now', "loop_"],
    },
    "two": {"mixed": [1.5, "x", 3]},
}


@pytest.mark.parametrize("name", ["a.star", "a.xmd", "a.doc"])
def test_blocks_survive_the_round_trip(tmp_path, name):
    write_blocks(tmp_path / name, BLOCKS)
    read = read_blocks(tmp_path / name)
    assert list(read) == ["one", "two"] and list(read["one"]) == list(BLOCKS["one"])
    np.testing.assert_array_equal(read["one"]["whole"], BLOCKS["one"]["whole"])
    np.testing.assert_allclose(read["one"]["small"], BLOCKS["one"]["small"], rtol=1e-11)
    np.testing.assert_array_equal(read["one"]["flag"], [1, 0, 1])
    for label in ("name", "odd", "mark"):
        assert read["one"][label] == BLOCKS["one"][label]
    assert read["two"]["mixed"] == ["1.5", "x", "3"]


ODD = "", "two words", "a\tb", "a\u00a0b", " a", "a ", "'a", '"a', "#a", "_a", "data_", "loop_", "it's", "a#_data_"


@pytest.mark.parametrize("value", ODD)
def test_one_odd_value_among_plain_ones_survives(tmp_path, value):
    for names in ([value, "plain"], ["plain", value, "plain"]):
        write_blocks(tmp_path / "a.star", {"one": {"name": names}})
        assert read_blocks(tmp_path / "a.star")["one"]["name"] == names


@pytest.mark.parametrize("name", ["a.star", "a.xmd"])
def test_emtable_reads_what_is_written(tmp_path, name):
    emtable = pytest.importorskip("emtable")
    columns = {"rlnB": np.array([0.5, 1.5]), "rlnC": ["two words", "u"]}
    blocks = {"optics": {"rlnA": np.array([1, 2])}, "particles": columns}
    write_blocks(tmp_path / name, blocks)
    optics = emtable.Table(fileName=str(tmp_path / name), tableName="optics")
    assert optics.getColumnValues("rlnA") == [1, 2]
    particles = emtable.Table(fileName=str(tmp_path / name), tableName="particles")
    assert particles.getColumnNames() == ["rlnB", "rlnC"]
    assert particles.getColumnValues("rlnB") == [0.5, 1.5]
    assert particles.getColumnValues("rlnC") == ["two words", "u"]


def test_what_emtable_writes_is_read(tmp_path):
    emtable = pytest.importorskip("emtable")
    table = emtable.Table(columns=["rlnImageName", "rlnAnglePsi"])
    for row in (("000001@a.mrcs", 1.5), ("000002@a.mrcs", -2.0)):
        table.addRow(*row)
    table.write(str(tmp_path / "a.star"), tableName="particles")
    block = read_blocks(tmp_path / "a.star")["particles"]
    assert block["rlnImageName"] == ["000001@a.mrcs", "000002@a.mrcs"]
    np.testing.assert_array_equal(block["rlnAnglePsi"], [1.5, -2])


def test_the_dialects_have_their_first_lines(tmp_path):
    write_blocks(tmp_path / "a.star", BLOCKS)
    write_blocks(tmp_path / "a.xmd", BLOCKS)
    assert "# version 30001\n\ndata_one\n\nloop_\n_whole #1\n" in (tmp_path / "a.star").read_text()
    assert (tmp_path / "a.xmd").read_text().startswith("# XMIPP_STAR_1 * \n# \ndata_one\nloop_\n _whole\n")


def test_what_cannot_be_written_is_a_parameter_error(tmp_path):
    for blocks in (
        {"a": {"b": [1, 2], "c": [1]}},
        {"a": {"b": ["two\nlines"]}},
        {"a": {"b": ["""both ' and " marks"""]}},
    ):
        with pytest.raises(ParameterError):
            write_blocks(tmp_path / "a.star", blocks)
    with pytest.raises(ParameterError, match=r"\.star"):
        write_blocks(tmp_path / "a.txt", BLOCKS)
    assert list(tmp_path.iterdir()) == []
