"""Methods from settings that a user has typed."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from adatp.checks.values import shown
from adatp.errors import InputError
from adatp.methods import method_of
from adatp.methods.method import Method

_SWITCH = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def configure(name: str, settings: Mapping[str, str]) -> Method:
    """Return the method of that name with the given settings.

    Args:
        name: one of `METHODS`.
        settings: values by the name of the setting. A switch takes true or false; a setting that may be None takes
            none.

    Raises:
        InputError: there is no such method or setting, or a value does not fit its setting.
    """
    default = method_of(name)
    known = [field.name for field in fields(default)]  # type: ignore[arg-type]
    types = get_type_hints(type(default))
    values = {}
    for field, text in settings.items():
        if field not in known:
            raise InputError(f"method {name!r} has no setting {shown(field)}; it has {', '.join(known) or 'none'}")
        values[field] = _value(field, types[field], text)
    return type(default)(**values)


def describe(method: Method) -> str:
    """Return the method's name and the settings that differ from the defaults: `fastv (keep=0.25)`."""
    default = type(method)().settings()
    changed = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
               for name, value in method.settings().items() if value != default[name]]  # fmt: skip
    return f"{method.name} ({', '.join(changed)})" if changed else method.name


def _value(name: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in _SWITCH:
            raise InputError(f"{name} must be true or false, got {shown(text)}")
        return _SWITCH[text.lower()]
    if kind == int | None and text.lower() == "none":
        return None
    try:
        return int(text) if kind in (int, int | None) else float(text)
    except ValueError:
        wanted = "a whole number" if kind in (int, int | None) else "a number"
        raise InputError(f"{name} must be {wanted}, got {shown(text)}") from None
