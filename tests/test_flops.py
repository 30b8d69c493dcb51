from math import floor

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs import Outputs
from transformers import AutoConfig, Qwen2Config

from adatp import flops as flops_module
from adatp.errors import InputError, UnsupportedType
from adatp.evaluation.paper.shapes import MODEL_SHAPES, ModelShape, shape_flops
from adatp.flops import Flops, PrefillCounter, linear_ratio, prefill_flops
from adatp.layout import Grid, VideoSize
from adatp.methods import AdaTP

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
WIDE = {**SMALL, "head_dim": 16}  # 6 heads of 16 are wider than the hidden size
EXPERTS = {**WIDE, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
DENSE = {
    "qwen2": SMALL,
    "llama": SMALL,
    "llama, wide heads": WIDE,
    "mistral": SMALL,
    "qwen3": WIDE,
    "qwen2_vl_text": SMALL,
    "qwen2_5_vl_text": SMALL,
    "qwen3_vl_text": WIDE,
}


def config_of(kind, **shape):
    """The configuration of a `model_type`; what follows a comma is for the reader."""
    return AutoConfig.for_model(kind.split(",")[0], **shape)


def head_dim(shape):
    return shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"])


def linear_flops(shape, length, experts=False):
    """One layer's projections; a multiply-add counts as two. With `experts`, its MLP is a mixture of experts."""
    hidden, head = shape["hidden_size"], head_dim(shape)
    wide, narrow = head * shape["num_attention_heads"], head * shape["num_key_value_heads"]
    weights = hidden * wide + 2 * hidden * narrow + wide * hidden
    if experts:
        weights += hidden * shape["num_experts"]  # the router
        weights += shape["num_experts_per_tok"] * 3 * hidden * shape["moe_intermediate_size"]
    else:
        weights += 3 * hidden * shape["intermediate_size"]
    return 2 * weights * length


def attention_flops(shape, length):
    """Queries with keys and probabilities with values, every token with every token."""
    return 2 * 2 * length * length * head_dim(shape) * shape["num_attention_heads"]


def check_closed_form(config, shape, lengths, full_length, experts=()):
    """Compare the count with the closed form; `experts` are the layers with a mixture of experts."""
    found = prefill_flops(config, lengths, full_length)
    layers = range(len(lengths))
    assert found.linear == sum(linear_flops(shape, lengths[i], i in experts) for i in layers)
    assert found.linear_full == sum(linear_flops(shape, full_length, i in experts) for i in layers)
    assert found.attention == sum(attention_flops(shape, length) for length in lengths)
    assert found.attention_full == len(lengths) * attention_flops(shape, full_length)


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
    check_closed_form(Qwen2Config(**shape), shape, lengths, 100)


@pytest.mark.parametrize(("kind", "shape"), DENSE.items(), ids=DENSE)
def test_dense_decoders_in_closed_form(kind, shape):
    check_closed_form(config_of(kind, **shape), shape, [17, 17, 9, 4, 1], 100)


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_vl_moe_text"])
@pytest.mark.parametrize(
    ("where", "experts"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"mlp_only_layers": [0, 3]}, [1, 2, 4]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1]),
    ],
    ids=["all", "but two", "every second", "one"],
)
def test_a_mixture_of_experts_costs_the_experts_of_each_token(kind, where, experts):
    check_closed_form(config_of(kind, **EXPERTS, **where), EXPERTS, [17, 17, 9, 4, 1], 100, experts)


@st.composite
def mixtures(draw):
    """A small decoder's values, the layers with a mixture of experts, the lengths and the full length."""
    groups, layers = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    step, dense = draw(st.integers(1, 3)), draw(st.lists(st.integers(0, 3), unique=True))
    shape = {
        "hidden_size": draw(st.integers(1, 40)),
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": layers,
        "num_attention_heads": groups * draw(st.integers(1, 3)),
        "num_key_value_heads": groups,
        "head_dim": 2 * draw(st.integers(1, 8)),
        "num_experts": draw(st.integers(1, 6)),
        "moe_intermediate_size": draw(st.integers(1, 20)),
    }
    shape["num_experts_per_tok"] = draw(st.integers(1, shape["num_experts"]))
    config = config_of("qwen3_vl_moe_text", **shape, decoder_sparse_step=step, mlp_only_layers=dense)
    experts = [i for i in range(layers) if (i + 1) % step == 0 and i not in dense]
    lengths = draw(st.lists(st.integers(1, 60), min_size=layers, max_size=layers))
    return config, shape, lengths, draw(st.integers(60, 90)), experts


@settings(max_examples=50, deadline=None)
@given(mixtures())
def test_any_mixture_of_experts_in_closed_form(case):
    check_closed_form(*case)


def test_equal_layers_are_counted_once_at_each_length(monkeypatch):
    measured = []

    def measure(layer, length, true=flops_module._measure):
        measured.append(length)
        return true(layer, length)

    monkeypatch.setattr(flops_module, "_measure", measure)
    count = PrefillCounter(config_of("qwen3_moe", **EXPERTS, mlp_only_layers=[0, 3]))
    assert count([9, 9, 9, 4, 4], 9) == count([9, 9, 9, 4, 4], 9)
    assert sorted(measured) == [4, 4, 9, 9]  # the dense layers and the others


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({"hidden_size": 48}, "text_config must be the configuration of a language model, got a dict"),
        (config_of("qwen3_next", num_hidden_layers=4), "Qwen3NextConfig.*every layer.*self_attn.q_proj"),
        (config_of("phi3", **SMALL, pad_token_id=None), "Phi3Config.*every layer.*self_attn.q_proj"),
        (config_of("siglip_vision_model"), "SiglipVisionConfig.*every layer"),
        (config_of("gpt_oss", **SMALL, num_local_experts=4), "GptOssDecoderLayer.*does not run like Llama's"),
    ],
    ids=["no configuration", "linear attention", "fused projections", "no decoder", "other rotary tables"],
)
def test_what_cannot_be_counted_is_refused(config, cause):
    with pytest.raises(UnsupportedType, match=cause):
        prefill_flops(config, [9] * 5, 9)


def test_lengths_are_as_many_as_layers():
    with pytest.raises(InputError, match=r"lengths must be 5 numbers, one for each decoder layer, got \[9, 9\]"):
        prefill_flops(Qwen2Config(**SMALL), [9, 9], 9)


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
    video = ModelShape({"num_hidden_layers": 4}, (VideoSize(2, Grid(1, 5)),), 0)
    assert AdaTP(start_ratio=0.25, end_ratio=0.25, last=2).counts(video, 4) == [10, 10, 3, 3]


def test_shape_flops_counts_the_lengths_it_returns():
    shape = MODEL_SHAPES["onevision-0.5b"]
    flops, lengths = shape_flops(shape, AdaTP(), 50)
    assert lengths == [count + 50 for count in AdaTP().counts(shape, 24)]
    assert flops == prefill_flops(Qwen2Config(**shape.text_config), lengths, 6322)


def test_the_configuration_is_left_alone():
    config = config_of("qwen3_moe", **EXPERTS)
    before, own = config.to_dict(), dict(vars(config))
    prefill_flops(config, [9] * 5, 9)
    assert config.to_dict() == before
    assert vars(config) == own  # `to_dict` leaves the implementations out


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**MODEL_SHAPES["onevision-7b"].text_config),
        config_of("qwen3_moe", **MODEL_SHAPES["onevision-7b"].text_config, num_experts=128),
    ],
    ids=["dense", "mixture of experts"],
)
def test_counting_takes_no_memory(config):
    with Outputs() as seen:
        torch.zeros(3, 4)
        assert sum(seen.in_memory) == 12
        prefill_flops(config, [3000] * config.num_hidden_layers, 6000)
    assert sum(seen.in_memory) < 10_000
