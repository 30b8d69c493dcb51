"""Checks of the values that users give. A refusal names the argument, its value, and what would be right."""

import math
import os
from numbers import Integral, Real
from typing import Any

from adatp.errors import InputError, InputTypeError

_NUMBER, _WHOLE = "a number (int or float)", "a whole number (int)"


def require(holds: bool, name: str, value: object, wanted: str, error: type[InputError] = InputError) -> None:
    """Raise an `error` that names the argument, its value and what is `wanted`, unless `holds`."""
    if not holds:
        raise error(f"{name} must be {wanted}, got {shown(value)}")


def number(name: str, value: Any) -> float:
    """Check that a value is a number, and return it as a float; an int stays one if a float can hold it exactly.

    NaN and infinity pass. They are for the caller's range to refuse.
    """
    require(isinstance(value, Real) and not isinstance(value, bool), name, value, _NUMBER, InputTypeError)
    try:
        found = float(value)
    except OverflowError:  # of an int beyond all floats
        found = math.inf if value > 0 else -math.inf
    return value if type(value) is int and found == value else found


def integer(name: str, value: Any, least: int = -(2**63)) -> int:
    """Check that a value is a whole number from `least` to 2**63 - 1, and return it as an int."""
    require(isinstance(value, Integral) and not isinstance(value, bool), name, value, _WHOLE, InputTypeError)
    found = int(value)
    require(found >= least, name, value, f"at least {least}" if least > -(2**63) else "at least -2**63")
    require(found < 2**63, name, value, "below 2**63")
    return found


def switch(name: str, value: Any) -> bool:
    """Check that a value is True or False, and return it."""
    require(isinstance(value, bool), name, value, "True or False", InputTypeError)
    return bool(value)


def text(name: str, value: Any) -> str:
    """Check that a value is a string that can be encoded: tokenizers and files cannot take half a surrogate pair."""
    require(isinstance(value, str), name, value, "a string", InputTypeError)
    require(is_encodable(value), name, value, "text that UTF-8 can encode, without half a surrogate pair")
    return str(value)


def name_or_path(name: str, value: Any) -> str:
    """Check that a value is a checkpoint's name or path, and return it as a string."""
    require(isinstance(value, str | os.PathLike), name, value, "a name or a path", InputTypeError)
    return text(name, os.fspath(value))


def is_encodable(value: str) -> bool:
    """Tell whether UTF-8 can encode a string."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """Return the repr of a value for a message, cut if it is long; its type if it has no repr."""
    try:
        told = repr(value)
    except Exception:  # whatever the user's object does; and an int of more than 4300 digits has none
        told = f"a {type(value).__name__} that cannot be shown"
    return cut(" ".join(line.strip() for line in told.splitlines()))


def cut(text: str, most: int = 200) -> str:
    """Return a text without what comes after its first `most` characters."""
    return text if len(text) <= most else f"{text[:most]} ..."
