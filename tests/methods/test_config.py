import dataclasses
import math

import pytest

from adatp.methods import AdaTP

BELOW_0, ABOVE_0 = -5e-324, 5e-324
BELOW_1, ABOVE_1 = math.nextafter(1.0, 0), math.nextafter(1.0, 2)


def test_the_papers_defaults():
    assert dataclasses.asdict(AdaTP()) == {
        "p": 1.0,
        "first": 2,
        "last": None,
        "start_ratio": 0.40,
        "end_ratio": 0.12,
        "tau_s": 0.95,
        "tau_t": 0.05,
        "alpha": 2.2,
        "gamma": 0.75,
        "segments": True,
        "global_debias": True,
        "local_debias": True,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"p": ABOVE_0},
        {"p": 1.5},
        {"p": 2.0},
        {"p": 2.5},  # keeps everything at layer `first`
        {"p": 2.0, "start_ratio": 0.5},
        {"p": 1.0, "start_ratio": 1.0},
        {"first": 1},
        {"first": 40},
        {"last": 2},
        {"last": 5, "first": 5},
        {"last": 1, "first": 1},
        {"start_ratio": 1.0},
        {"start_ratio": 0.12},
        {"start_ratio": ABOVE_0, "end_ratio": ABOVE_0},
        {"end_ratio": ABOVE_0},
        {"end_ratio": 0.40},
        {"tau_s": -1.0},
        {"tau_s": 1.0},
        {"tau_t": -1.0},
        {"tau_t": 1.0},
        {"alpha": 1.0},
        {"alpha": 1000.0},
        {"gamma": ABOVE_0},
        {"gamma": 1.0},
    ],
)
def test_within_range(fields):
    config = AdaTP(**fields)
    assert all(getattr(config, name) == value for name, value in fields.items())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p", 0.0),
        ("p", -1.0),
        ("p", math.nextafter(2.5, 3)),
        ("p", math.inf),
        ("first", 0),
        ("first", -1),
        ("last", 1),
        ("last", 0),
        ("last", -1),
        ("start_ratio", 0.0),
        ("start_ratio", BELOW_0),
        ("start_ratio", ABOVE_1),
        ("end_ratio", 0.0),
        ("end_ratio", BELOW_0),
        ("end_ratio", math.nextafter(0.40, 1)),
        ("tau_s", -ABOVE_1),
        ("tau_s", ABOVE_1),
        ("tau_t", -ABOVE_1),
        ("tau_t", ABOVE_1),
        ("alpha", BELOW_1),
        ("alpha", -2.2),
        ("gamma", 0.0),
        ("gamma", BELOW_0),
        ("gamma", ABOVE_1),
        *[(name, math.nan) for name in ("p", "start_ratio", "end_ratio", "tau_s", "tau_t", "alpha", "gamma")],
    ],
)
def test_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*got {value!r}"):
        AdaTP(**{name: value})


def test_p_is_limited_by_the_start_ratio():
    with pytest.raises(ValueError, match="p must be"):
        AdaTP(p=2.1, start_ratio=0.5)


def test_last_is_no_earlier_than_first():
    with pytest.raises(ValueError, match="last must be"):
        AdaTP(first=6, last=5)


def test_the_start_ratio_may_not_fall_below_the_end_ratio():
    with pytest.raises(ValueError, match="end_ratio must be"):
        AdaTP(start_ratio=0.1)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(AdaTP)])
def test_frozen(field):
    config = AdaTP()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, getattr(config, field))


def test_replace_is_validated():
    assert dataclasses.replace(AdaTP(), p=2.0).p == 2.0
    with pytest.raises(ValueError, match="gamma"):
        dataclasses.replace(AdaTP(), gamma=2.0)


def test_equal_configurations_are_interchangeable():
    assert AdaTP(p=2.0) == AdaTP(p=2.0)
    assert hash(AdaTP(p=2.0)) == hash(AdaTP(p=2.0))


@pytest.mark.parametrize(("layers", "last"), [(24, 12), (28, 16), (15, 3), (80, 68)])
def test_the_schedule_ends_twelve_layers_before_the_models_end(layers, last):
    assert AdaTP().last_of(layers) == last


@pytest.mark.parametrize("layers", [14, 13, 4])
def test_small_models_need_their_own_last(layers):
    with pytest.raises(ValueError, match=rf"AdaTP\(last=\.\.\.\).* 2 to {layers - 1}\b"):
        AdaTP().last_of(layers)


@pytest.mark.parametrize(("last", "layers"), [(2, 24), (12, 24), (23, 24), (3, 4), (2, 3)])
def test_an_explicit_last_holds(last, layers):
    assert AdaTP(last=last).last_of(layers) == last


@pytest.mark.parametrize(("last", "layers"), [(24, 24), (25, 24), (4, 4)])
def test_an_explicit_last_is_a_layer_of_the_model(last, layers):
    with pytest.raises(ValueError, match=rf"last must be .*at most {layers - 1}.*got {last}"):
        AdaTP(last=last).last_of(layers)


def test_the_default_needs_room_after_first():
    assert AdaTP(first=11).last_of(24) == 12
    with pytest.raises(ValueError, match="last"):
        AdaTP(first=13).last_of(24)
