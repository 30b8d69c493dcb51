"""Values that nobody should give, and some that look right: for tests of what a user may pass."""

from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatp.errors import InputError


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class OddEquality:
    """Equal to everything, and to nothing: comparisons give arrays and errors."""

    __hash__ = None

    def __eq__(self, other):
        return np.array([True, False])

    def __lt__(self, other):
        raise RuntimeError("no order")

    def __bool__(self):
        raise RuntimeError("no truth")


class IsFloat:
    """Converts to a float without being a number."""

    def __float__(self):
        return 0.5


LARGE = 10**5000  # has no repr
FIXED = [
    *(None, True, False, ..., NotImplemented, 0, 1, -1, 2, 2**63, -(2**63) - 1, 10**400, LARGE, -LARGE),
    *(0.0, -0.0, 0.5, 1.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 0.5j),
    *(Fraction(1, 2), Fraction(LARGE, 3), Decimal("0.5"), Decimal("sNaN")),
    *("", " ", "1", "0.5", "auto", "none", "adatp", "\ud800", "a\0b", "x" * 5000, b"", b"1", bytearray(b"1")),
    *(Path("/nowhere"), Path(), np.str_("1"), np.bytes_(b"1")),
    *(np.float16(0.5), np.float32(0.5), np.float64("nan"), np.int8(1), np.int64(2), np.uint64(2**64 - 1)),
    *(np.bool_(True), np.array(0.5), np.array([]), np.array([0.5, 1]), np.zeros((1000, 1000)), np.array(["a", "b"])),
    *(torch.tensor(0.5), torch.tensor(2), torch.tensor(True), torch.tensor([1.0, 2.0]), torch.float32),
    *((), [], {}, set(), (1,), (1, 2, 3), [1, "a"], ["a", None], ["\ud800"], [[]], {"p": 1}, range(3), [LARGE]),
    *(NoRepr(), OddEquality(), IsFloat(), [OddEquality()], object(), int, float, len, iter("ab")),
]  # fmt: skip
OTHERS = st.one_of(
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
)
TYPED = [
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "-0.0",
        "1",
        "0.5",
        "1.0",
        "9" * 5000,
        "1_0",
        "０",
        "0x1",
        "none",
        "true",
    ),
    *("0", "-1", "2", "3", str(2**63), "\0", "\u2028", "\udcff", "p=1", "x" * 5000),
]
QUICK = settings(derandomize=True, deadline=None, max_examples=30)  # the same values in every run


def try_odd_values(check):
    """Call `check` with every value of the list, and with others of the usual types."""
    _try(check, FIXED, OTHERS)


def try_typed(check):
    """Call `check` with texts that somebody may type for a number, a switch or a name."""
    _try(check, TYPED, st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=8)))


def _try(check, fixed, others):
    for value in fixed:
        check(value)

    @QUICK
    @given(others)
    def try_others(value):
        check(value)

    try_others()


@contextmanager
def refused_by_name(*names):
    """Let the block succeed, or refuse the value in a message that names the argument and is not long."""
    try:
        yield
    except InputError as error:
        told = str(error)
        assert any(name in told for name in names), told
        assert len(told) < 1000
