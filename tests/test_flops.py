from math import floor

import oracle
import pytest
import torch
from outputs import Outputs
from transformers import Qwen2Config

from adatp.evaluation.paper.shapes import MODEL_SHAPES, ModelShape, shape_flops
from adatp.flops import Flops, linear_ratio, prefill_flops
from adatp.methods import AdaTP

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def linear_flops(shape, length):
    """One layer's seven projections; a multiply-add counts as two."""
    hidden, middle = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    weights = hidden * hidden + 2 * hidden * narrow + hidden * hidden + 3 * hidden * middle
    return 2 * weights * length


def attention_flops(shape, length):
    """Queries with keys and probabilities with values, every token with every token."""
    return 2 * 2 * length * length * shape["hidden_size"]


def percent(model, **settings):
    shape = MODEL_SHAPES[model]
    flops, _ = shape_flops(shape, AdaTP(**settings), shape.text_tokens)
    return 100 * flops.ratio


@pytest.mark.parametrize(
    ("model", "p", "figure"),
    [
        ("onevision-0.5b", 2.0, 45.3),
        ("onevision-0.5b", 1.5, 36.5),
        ("onevision-0.5b", 1.0, 27.6),
        ("onevision-7b", 2.0, 46.5),
        ("onevision-7b", 1.5, 37.2),
        ("onevision-7b", 1.0, 27.8),
        ("llava-video-7b", 2.0, 47.0),
        ("llava-video-7b", 1.5, 37.7),
        ("llava-video-7b", 1.0, 28.4),
    ],
)
def test_flops_of_the_schedule_alone(model, p, figure):
    assert percent(model, p=p) == pytest.approx(figure, abs=0.1)


def test_the_papers_figure_without_segments_and_debiasing():
    assert percent("onevision-0.5b") == pytest.approx(27.65, abs=0.1)


@pytest.mark.parametrize(("last", "figure"), [(8, 25.4), (10, 26.5), (12, 27.6), (14, 28.8), (16, 29.9)])
def test_flops_of_shorter_and_longer_schedules(last, figure):
    assert percent("onevision-0.5b", last=last) == pytest.approx(figure, abs=0.1)


def test_the_papers_shapes():
    got = {name: (s.frames, s.tokens_per_frame, s.text_tokens) for name, s in MODEL_SHAPES.items()}
    assert got == {"onevision-0.5b": (32, 196, 113), "onevision-7b": (32, 196, 130), "llava-video-7b": (20, 182, 106)}
    layers = {name: shape.text_config["num_hidden_layers"] for name, shape in MODEL_SHAPES.items()}
    assert layers == {"onevision-0.5b": 24, "onevision-7b": 28, "llava-video-7b": 28}


@pytest.mark.parametrize("shape", [SMALL, MODEL_SHAPES["onevision-0.5b"].text_config])
def test_one_layer_in_closed_form(shape):
    lengths = [17] + [1] * (shape["num_hidden_layers"] - 1)
    flops = prefill_flops(Qwen2Config(**shape), lengths, 100)
    assert flops.linear == linear_flops(shape, 17) + (len(lengths) - 1) * linear_flops(shape, 1)
    assert flops.attention == attention_flops(shape, 17) + (len(lengths) - 1) * attention_flops(shape, 1)
    assert flops.linear_full == len(lengths) * linear_flops(shape, 100)
    assert flops.attention_full == len(lengths) * attention_flops(shape, 100)


def test_full_lengths_cost_all():
    flops = prefill_flops(Qwen2Config(**SMALL), [33] * 5, 33)
    assert flops.ratio == flops.ratio_with_attention == 1
    assert (flops.linear, flops.attention) == (flops.linear_full, flops.attention_full)


def test_the_ratio_of_linear_layers_is_that_of_the_lengths():
    lengths = [40, 40, 20, 10, 10]
    flops = prefill_flops(Qwen2Config(**SMALL), lengths, 40)
    assert flops.ratio == pytest.approx(120 / 200, rel=1e-12)
    assert flops.attention / flops.attention_full == pytest.approx(3800 / 8000, rel=1e-12)
    assert flops.attention / flops.attention_full < flops.ratio_with_attention < flops.ratio


def test_the_ratio_can_be_had_from_the_lengths_without_counting():
    lengths = [40, 40, 20, 10, 10]
    assert linear_ratio(lengths, 40) == pytest.approx(prefill_flops(Qwen2Config(**SMALL), lengths, 40).ratio, rel=1e-12)


def test_prefills_add_up():
    total = Flops(1, 2, 3, 4) + Flops(10, 20, 30, 40)
    assert total == Flops(11, 22, 33, 44)
    assert total.ratio == 0.5
    assert total.ratio_with_attention == 44 / 66
    assert total.to_dict() == {
        "ratio": 0.5,
        "ratio_with_attention": 44 / 66,
        "linear": 11,
        "linear_full": 22,
        "attention": 33,
        "attention_full": 44,
    }


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize(("layers", "last"), [(24, 12), (28, 16)])
def test_lengths_of_the_schedule(layers, last, p):
    ratios = oracle.schedule(layers, p, 2, last, 0.40, 0.12)
    # 6272 times a ratio of the paper's is nowhere near a half
    assert AdaTP(p=p).counts(MODEL_SHAPES["onevision-0.5b"], layers) == [floor(6272 * r + 1 / 2) for r in ratios]


def test_lengths_round_halves_up():
    video = ModelShape({"num_hidden_layers": 4}, (2,), (1, 5), 0)
    assert AdaTP(start_ratio=0.25, end_ratio=0.25, last=2).counts(video, 4) == [10, 10, 3, 3]


def test_shape_flops_counts_the_lengths_it_returns():
    shape = MODEL_SHAPES["onevision-0.5b"]
    flops, lengths = shape_flops(shape, AdaTP(), 50)
    assert lengths == [count + 50 for count in AdaTP().counts(shape, 24)]
    assert flops == prefill_flops(Qwen2Config(**shape.text_config), lengths, 6322)


def test_the_configuration_is_left_alone():
    config = Qwen2Config(**SMALL)
    before = config.to_dict()
    prefill_flops(config, [9] * 5, 9)
    assert config.to_dict() == before


def test_counting_takes_no_memory():
    shape = MODEL_SHAPES["onevision-7b"]
    with Outputs() as seen:
        torch.zeros(3, 4)
        assert sum(seen.in_memory) == 12
        shape_flops(shape, AdaTP(), shape.text_tokens)
    assert sum(seen.in_memory) < 10_000
