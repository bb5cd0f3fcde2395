import argparse
import dataclasses

import pytest

from xmipp_accel.errors import ParameterError
from xmipp_accel.parameters import Parameters, parameter


@dataclasses.dataclass(frozen=True)
class Example(Parameters):
    length: float = parameter(30.0, "A length, 50% of it.", unit="A", minimum=1)
    count: int = parameter(3, "A count.", maximum=9)
    mode: str = parameter("fast", "A mode.", choices=("fast", "exact"))
    flag: bool = parameter(True, "A flag.")


def test_whole_numbers_become_floats_where_floats_are_declared():
    assert type(Example(length=2).length) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 0.5}, "length: expected at least 1, found 0.5"),
        ({"length": float("nan")}, "length: expected at least 1, found nan"),
        ({"length": "30"}, "length: expected float, found '30'"),
        ({"count": 10}, "count: expected at most 9, found 10"),
        ({"count": 2.0}, "count: expected int, found 2.0"),
        ({"count": True}, "count: expected int, found True"),
        ({"mode": "slow"}, "mode: expected one of fast, exact, found 'slow'"),
        ({"flag": 1}, "flag: expected bool, found 1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        Example(**values)


def test_json_round_trip():
    example = Example(length=7.5, count=1, mode="exact", flag=False)
    assert Example.from_dict(example.to_dict()) == example
    with pytest.raises(ParameterError, match="unknown parameter 'width'"):
        Example.from_dict({"width": 1})


def test_command_line_round_trip():
    parser = argparse.ArgumentParser()
    Example.add_arguments(parser)
    read = Example.from_arguments
    assert read(parser.parse_args([])) == Example()
    options = parser.parse_args(["--length", "7", "--count", "2", "--mode", "exact", "--no-flag"])
    assert read(options) == Example(length=7.0, count=2, mode="exact", flag=False)
    text = parser.format_help()
    assert "[A] (default: 30.0)" in " ".join(text.split())
    assert "50% of it" in " ".join(text.split())
