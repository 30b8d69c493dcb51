"""Settings of any type and value: a method takes them, or refuses them by name."""

import math
from dataclasses import fields

import pytest
from odd_values import refused_by_name, try_odd_values, try_typed

from adatp.errors import InputTypeError
from adatp.layout import Grid, Videos, VideoSize
from adatp.methods import METHODS, AdaTP, FastV, method_of
from adatp.methods.settings import configure

SETTINGS = [(name, field.name) for name, method in METHODS.items() for field in fields(method)]
LAYERS, TINY = 24, 5e-324


class Prompt(Videos):
    videos = VideoSize(5, Grid(3, 4, newlines=True)), VideoSize(8, Grid(3, 4, newlines=True))


VIDEO = Prompt()


def use(method, *names):
    """Ask of a method what `apply` and a prefill ask of its settings."""
    with refused_by_name(*names):
        method.check(LAYERS)
        assert 0 < method.cost(VIDEO, LAYERS, other_tokens=20) <= 1
        assert method.settings() == type(method)(**method.settings()).settings()


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_any_value_is_taken_or_refused(name, setting):
    def check(value):
        with refused_by_name(f"{setting} must be", "end_ratio must be", "last must be"):
            use(METHODS[name](**{setting: value}), setting, "last")

    try_odd_values(check)


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_any_text_is_taken_or_refused(name, setting):
    def check(text):
        with refused_by_name(f"{setting} must be", "end_ratio must be", "last must be"):
            use(configure(name, {setting: text}), setting, "last")

    try_typed(check)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"p": "1"}, r"p must be a number \(int or float\), got '1'"),
        ({"p": True}, r"p must be a number \(int or float\), got True"),
        ({"first": 2.0}, r"first must be a whole number \(int\), got 2.0"),
        ({"last": "3"}, r"last must be a whole number \(int\), got '3'"),
        ({"segments": 1}, "segments must be True or False, got 1"),
    ],
)
def test_a_wrong_type_is_told(fields, message):
    with pytest.raises(InputTypeError, match=f"^{message}$"):
        AdaTP(**fields)


@pytest.mark.parametrize("fields", [{"alpha": math.inf}, {"p": math.inf, "start_ratio": TINY, "end_ratio": TINY}])
def test_a_setting_is_finite(fields):
    """JSON has no infinity, and reports hold the settings."""
    with pytest.raises(ValueError, match=r"must be .*, got inf"):
        AdaTP(**fields)


def test_any_name_is_a_method_or_refused():
    def check(value):
        with refused_by_name("method must be"):
            method_of(value)

    try_odd_values(check)
    with pytest.raises(InputTypeError, match="method must be a name or a method such as"):
        method_of(FastV)


@pytest.mark.parametrize("name", METHODS)
def test_any_share_of_flops_is_taken_or_refused(name):
    def check(value):
        method = method_of(name)
        with refused_by_name("flops must be", "flops cannot be used with"):
            method.check_flops(value)
            assert abs(method.at_flops(value, VIDEO, LAYERS, 20).cost(VIDEO, LAYERS, 20) - value) < 0.1

    try_odd_values(check)
