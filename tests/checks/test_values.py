import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from odd_values import LARGE, NoRepr, refused_by_name, try_odd_values

from adatp.checks import values
from adatp.errors import InputError, InputTypeError


@pytest.mark.parametrize(
    ("value", "found"),
    [(1, 1), (0.5, 0.5), (np.float32(0.5), 0.5), (np.int64(2), 2.0), (Fraction(1, 4), 0.25), (10**400, math.inf)],
    ids=["int", "float", "float32", "int64", "fraction", "huge"],
)
def test_numbers(value, found):
    number = values.number("p", value)
    assert number == found
    assert type(number) is (int if type(value) is int and value < 2**53 else float)


@pytest.mark.parametrize("value", [True, "1", None, 0.5j, np.array(0.5), [1]])
def test_what_is_no_number(value):
    with pytest.raises(InputTypeError, match=r"^p must be a number \(int or float\), got ") as error:
        values.number("p", value)
    assert isinstance(error.value, TypeError)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(("value", "found"), [(3, 3), (np.uint8(3), 3), (-(2**63), -(2**63)), (2**63 - 1, 2**63 - 1)])
def test_whole_numbers(value, found):
    whole = values.integer("layer", value)
    assert whole == found
    assert type(whole) is int


@pytest.mark.parametrize("value", [True, "1", None, 1.0, np.float64(1), np.array(1)])
def test_what_is_no_whole_number(value):
    with pytest.raises(InputTypeError, match=r"^layer must be a whole number \(int\), got "):
        values.integer("layer", value)


@pytest.mark.parametrize(
    ("value", "least", "message"),
    [
        (0, 1, "count must be at least 1, got 0"),
        (2**63, 1, r"count must be below 2\*\*63, got 9223372036854775808"),
        (LARGE, 1, r"count must be below 2\*\*63, got a int that cannot be shown"),
        (-(2**63) - 1, -(2**63), r"count must be at least -2\*\*63, got -9223372036854775809"),
    ],
    ids=["low", "high", "huge", "lowest"],
)
def test_whole_numbers_out_of_range(value, least, message):
    with pytest.raises(InputError, match=f"^{message}$") as error:
        values.integer("count", value, least)
    assert not isinstance(error.value, TypeError)


@pytest.mark.parametrize("value", [0, 1, None, "true", np.bool_(True)])
def test_a_switch_is_true_or_false(value):
    assert values.switch("segments", True) is True
    with pytest.raises(InputTypeError, match=r"^segments must be True or False, got "):
        values.switch("segments", value)


def test_texts():
    assert values.text("question", "Who? ½ 😀") == "Who? ½ 😀"
    with pytest.raises(InputTypeError, match=r"^question must be a string, got b'Who'$"):
        values.text("question", b"Who")
    with pytest.raises(InputError, match=r"^question must be text that UTF-8 can encode, .*, got '\\udcff'$"):
        values.text("question", "\udcff")


def test_names_and_paths():
    assert values.name_or_path("checkpoint", "a/b") == "a/b"
    assert values.name_or_path("checkpoint", Path("a/b")) == "a/b"
    with pytest.raises(InputTypeError, match=r"^checkpoint must be a name or a path, got 3$"):
        values.name_or_path("checkpoint", 3)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("a  b", "'a  b'"),
        (NoRepr(), "a NoRepr that cannot be shown"),
        ([LARGE], "a list that cannot be shown"),
        ("x" * 1000, "'" + "x" * 199 + " ..."),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
    ],
    ids=["text", "no repr", "huge", "long", "lines"],
)
def test_a_value_is_shown_in_a_line(value, told):
    assert values.shown(value) == told


@pytest.mark.parametrize("check", [values.number, values.integer, values.switch, values.text, values.name_or_path])
def test_any_value_is_taken_or_refused(check):
    def called(value):
        with refused_by_name("given must be"):
            check("given", value)

    try_odd_values(called)
