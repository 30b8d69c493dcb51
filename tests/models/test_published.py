"""The figures of the published sizes, held to the exact numbers of parameters of the language models in them."""

import re

import pytest

from adatp.errors import InputError
from adatp.flops import prefill_flops
from adatp.models.published import TEXT_CONFIGS, published_text_config

# The parameters of Qwen2.5-3B, -7B and -72B and of Qwen3-1.7B, -4B, -8B, -32B and -30B-A3B, as their weights hold them.
# InternVL3-8B begins from Qwen2.5-7B, InternVL3.5-8B from Qwen3-8B; their vocabularies may differ.
PARAMETERS = {
    "qwen2.5-vl-3b": 3_085_938_688,
    "qwen2.5-vl-7b": 7_615_616_512,
    "qwen2.5-vl-72b": 72_706_203_648,
    "qwen3-vl-2b": 1_720_574_976,
    "qwen3-vl-4b": 4_022_468_096,
    "qwen3-vl-8b": 8_190_735_360,
    "qwen3-vl-32b": 32_762_123_264,
    "qwen3-vl-30b-a3b": 30_532_122_624,
    "internvl3-8b": 7_615_616_512,
    "internvl3.5-8b": 8_190_735_360,
}
TIED = {"qwen2.5-vl-3b", "qwen3-vl-2b", "qwen3-vl-4b"}  # the embedding is the head as well
LARGER = {"qwen2.5-vl-7b", "qwen2.5-vl-72b", "internvl3-8b"}  # the vocabulary
VOCABULARY = {name: 152_064 if name in LARGER else 151_936 for name in PARAMETERS}


def head_dim(values):
    return values.get("head_dim", values["hidden_size"] // values["num_attention_heads"])


def projections(values, experts):
    """Weights of a layer's matrices, with so many experts if it is a mixture of them."""
    hidden, head = values["hidden_size"], head_dim(values)
    weights = 2 * hidden * head * (values["num_attention_heads"] + values["num_key_value_heads"])
    if "num_experts" not in values:
        return weights + 3 * hidden * values["intermediate_size"]
    return weights + hidden * values["num_experts"] + experts * 3 * hidden * values["moe_intermediate_size"]


def norms_and_biases(values):
    """Qwen2 has biases of queries, keys and values; Qwen3 has norms of queries and keys, one head wide each."""
    head, heads, groups = head_dim(values), values["num_attention_heads"], values["num_key_value_heads"]
    own = 2 * head if values["model_type"].startswith("qwen3") else head * (heads + 2 * groups)
    return 2 * values["hidden_size"] + own


def parameters(name, experts):
    values = TEXT_CONFIGS[name]
    embeddings = (1 if name in TIED else 2) * VOCABULARY[name] * values["hidden_size"]
    layer = projections(values, experts) + norms_and_biases(values)
    return embeddings + values["num_hidden_layers"] * layer + values["hidden_size"]


def test_the_sizes_are_those_of_this_file():
    assert TEXT_CONFIGS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_language_model(name):
    assert parameters(name, TEXT_CONFIGS[name].get("num_experts")) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_about_those_of_the_name(name):
    billions = int(re.search(r"-(\d+)b", name)[1])
    assert PARAMETERS[name] == pytest.approx(billions * 1e9, rel=0.15)


def test_active_parameters_of_the_mixture_of_experts():
    name = "qwen3-vl-30b-a3b"  # 3.3 billion, by its card
    assert parameters(name, TEXT_CONFIGS[name]["num_experts_per_tok"]) == pytest.approx(3.3e9, rel=0.02)


@pytest.mark.parametrize("name", PARAMETERS)
def test_flops_in_closed_form(name):
    values = TEXT_CONFIGS[name]
    layers, weights = values["num_hidden_layers"], projections(values, values.get("num_experts_per_tok"))
    lengths = [6000] * 3 + [1700] * (layers - 3)
    flops = prefill_flops(published_text_config(name), lengths, 6000)
    assert flops.linear == 2 * weights * sum(lengths)
    assert flops.linear_full == 2 * weights * layers * 6000
    width = head_dim(values) * values["num_attention_heads"]
    assert flops.attention == 4 * width * sum(length**2 for length in lengths)
    assert flops.attention_full == 4 * width * layers * 6000**2


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_configuration_has_these_values(name):
    config = published_text_config(name)
    assert {key: getattr(config, key) for key in TEXT_CONFIGS[name]} == TEXT_CONFIGS[name]


@pytest.mark.parametrize("name", ["qwen2.5-vl-32b", "", 7])
def test_an_unknown_size_is_refused(name):
    with pytest.raises(InputError, match="name must be"):
        published_text_config(name)
