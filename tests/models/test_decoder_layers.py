"""What a family takes as given of a decoder layer, on the layers of several language models."""

import pytest
import torch
from transformers import (
    AutoModel,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.cache_utils import DynamicCache

from adatp.models.family import Family

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 17,
    "pad_token_id": None,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SMALL),
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen3, with norms of queries and keys": Qwen3Config(**SMALL, head_dim=16),
}


class Layers:
    """What a family does with decoder layers. A subclass of `Family` would count as a family."""

    query_projection, mlp, scale = Family.query_projection, Family.mlp, Family.scale
    queries, project = Family.queries, Family.project


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def decoder(request):
    torch.manual_seed(0)
    model = AutoModel.from_config(request.param, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms begin with ones, which would hide them
            parameter.copy_(torch.randn_like(parameter) / 4)
    return model


@torch.no_grad()
def test_queries_and_keys_are_those_of_the_layers_own_attention(decoder):
    """Its keys are in the cache. Its attention weights are the softmax of our queries and keys, with our scale."""
    family, length = Layers(), 9
    layer, hidden = decoder.layers[1], torch.randn(1, length, 32)
    tables = decoder.rotary_emb(hidden, torch.arange(3, 3 + length)[None])
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    seen, cache = [], DynamicCache()
    layer.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    layer(hidden, position_embeddings=tables, attention_mask=mask, past_key_values=cache)
    rows = torch.tensor([8, 2, 5])
    query, key = family.project(layer, hidden, rows, *tables)
    torch.testing.assert_close(key, cache.layers[1].keys)
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) * family.scale(layer)
    torch.testing.assert_close((scores + mask[:, :, rows]).softmax(-1), seen[0][:, :, rows])


@torch.no_grad()
def test_queries_of_all_tokens_and_of_some(decoder):
    family, layer, hidden = Layers(), decoder.layers[0], torch.randn(2, 6, 32)
    cos, sin = decoder.rotary_emb(hidden, torch.arange(6).expand(2, -1))
    projected = family.query_projection(layer)(layer.input_layernorm(hidden))
    rows = torch.tensor([4, 1])
    every = family.queries(layer, projected, cos, sin)
    assert every.shape == (2, 4, 6, layer.self_attn.head_dim)
    assert torch.equal(every[:, :, rows], family.queries(layer, projected, cos[:, rows], sin[:, rows], rows=rows))


@torch.no_grad()
def test_the_mlp_acts_on_each_token(decoder):
    layer = decoder.layers[0]
    hidden = torch.randn(1, 5, 32)
    whole = Layers().mlp(layer)(hidden)
    torch.testing.assert_close(whole[:, 2:4], Layers().mlp(layer)(hidden[:, 2:4]))
