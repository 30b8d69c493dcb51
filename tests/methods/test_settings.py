"""Methods from settings as they are typed."""

import pytest

from adatp.cli import flops, options
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.methods import METHODS, AdaTP, DyCoke, FastV, Random, Unpruned, method_of
from adatp.methods.settings import configure, describe


@pytest.mark.parametrize("name", METHODS)
def test_nothing_set_is_the_published_setting(name):
    assert configure(name, {}) == METHODS[name]() == method_of(name)


@pytest.mark.parametrize("method", [AdaTP(p=1.5, last=3), DyCoke(k=0.9, layer=2), Random(seed=7), Unpruned()])
def test_settings_survive_being_typed(method):
    typed = {name: str(value) for name, value in method.settings().items()}
    assert configure(method.name, typed) == method


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("On", True), ("1", True), ("no", False), ("FALSE", False), ("0", False)]
)
def test_switches(text, value):
    assert configure("adatp", {"segments": text}).segments is value


def test_numbers_have_their_type():
    method = configure("adatp", {"last": "8", "p": "2", "first": "3"})
    assert (method.last, method.p, method.first) == (8, 2.0, 3)
    assert isinstance(method.p, float)
    assert configure("adatp", {"last": "None"}).last is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fastest", {}, "method must be one of adatp, fastv, .*, got 'fastest'"),
        ("fastv", {"p": "1"}, "method 'fastv' has no setting 'p'; it has layer, keep"),
        ("none", {"keep": "1"}, "method 'none' has no setting 'keep'; it has none"),
        ("adatp", {"segments": "maybe"}, "segments must be true or false, got 'maybe'"),
        ("adatp", {"last": "8.5"}, "last must be a whole number, got '8.5'"),
        ("adatp", {"tau_s": "high"}, "tau_s must be a number, got 'high'"),
        ("adatp", {"p": "none"}, "p must be a number, got 'none'"),
        ("fastv", {"keep": "2"}, r"keep must be in \(0, 1\], got 2.0"),
        ("fastv", {"keep": "nan"}, r"keep must be in \(0, 1\], got nan"),
    ],
)
def test_what_cannot_be_set(name, settings, message):
    with pytest.raises(ValueError, match=message):
        configure(name, settings)


def test_a_description_has_what_was_changed():
    assert describe(FastV()) == "fastv"
    assert describe(FastV(keep=0.25)) == "fastv (keep=0.25)"
    assert describe(AdaTP(p=1.5, segments=False, last=8)) == "adatp (p=1.5, last=8, segments=False)"


def test_the_command_line_knows_all_methods_and_models():
    """It has their names written down, so that it starts without torch."""
    assert tuple(METHODS) == options.METHODS
    assert tuple(MODEL_SHAPES) == flops.PAPER
