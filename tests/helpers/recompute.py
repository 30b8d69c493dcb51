"""The pruned language model once more, without hooks, without a cache, and with its own attention."""

import torch
from torch import Tensor

from adatp.report import Sample


def kept_tokens(sample: Sample, prompt: int, padding: int = 0) -> list[Tensor]:
    """For every layer, the indices of the prompt's tokens that the report says enter it (padding left out)."""
    everything = torch.arange(padding, prompt)
    result = []
    for layer in range(len(sample.kept)):
        mask = torch.ones(prompt, dtype=torch.bool)
        mask[padding + sample._visual] = sample.kept_mask(layer).flatten()
        result.append(everything[mask[padding:]])
    return result


def recompute(
    model,
    embeds: Tensor,
    kept: list[Tensor],
    padding: int = 0,
    attentions: list | None = None,
    *,
    renumber: bool = False,
    before: list | None = None,
) -> Tensor:
    """Logits of the last text and of every generated token.

    Args:
        embeds: `[L, D]` embeddings of prompt and generated tokens.
        kept: for every layer the prompt tokens that enter it.
        padding: left padding of the prompt, which positions do not count.
        attentions: filled with every layer's `[H, W, W]` attention and the tokens it is over, if given.
        renumber: whether the tokens that are left take consecutive positions.
        before: filled with every layer's attention over what the layer before it has put out, if given, and the
            tokens that is.

    Returns:
        `[W, V]` logits of the tokens that entered the last layer.
    """
    decoder = model.model.language_model
    length, prompt = embeds.shape[0], int(kept[0][-1]) + 1
    alive = torch.arange(padding, length)
    hidden = embeds[alive]

    def tables() -> tuple[Tensor, Tensor]:
        positions = torch.arange(len(alive)) if renumber else alive - padding
        cos, sin = decoder.rotary_emb(hidden, positions[None])
        return cos[0], sin[0]

    for layer, prompt_tokens in zip(decoder.layers, kept, strict=True):
        if before is not None:
            before.append((_layer(layer, hidden, *tables())[1], alive))
        wanted = torch.cat([prompt_tokens, torch.arange(prompt, length)])
        hidden = hidden[torch.isin(alive, wanted)]
        alive = wanted
        hidden, attention = _layer(layer, hidden, *tables())
        if attentions is not None:
            attentions.append((attention, alive))
    return model.lm_head(decoder.norm(hidden))


def _layer(layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = project(layer, hidden, cos, sin)
    future = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    return attend(layer, hidden, query, key, value, future)


def project(layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Post-rotary queries `[H, W, d]` and keys, and values, `[H, W, d]` repeated for the heads that share them."""
    attention = layer.self_attn
    x = layer.input_layernorm(hidden)
    query, key, value = (
        projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    repeats = query.shape[0] // key.shape[0]
    return query, key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)


def attend(layer, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, hide: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer makes of `[W, D]` where `hide`, `[W, K]` bool, is not seen; and its `[H, W, K]` attention."""
    attention = layer.self_attn
    weights = (query @ key.transpose(1, 2) * attention.head_dim**-0.5).masked_fill(hide, float("-inf")).softmax(-1)
    hidden = hidden + attention.o_proj((weights @ value).transpose(0, 1).flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), weights


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


@torch.no_grad()
def prompt_embeds(model, inputs) -> Tensor:
    """`[B, L, D]` what enters the unpruned language model: text embeddings with the video's features in place."""
    return model(**inputs, output_hidden_states=True).hidden_states[0]


CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@torch.no_grad()
def check_sequence(model, prompt: Tensor, sample: Sample, tokens: Tensor, logits: Tensor, padding: int = 0) -> None:
    """Hold generated `[t]` tokens' `[t, V]` logits to a recomputation after the prompt's `[L, D]` embeddings."""
    kept = kept_tokens(sample, len(prompt), padding)
    assert len(kept[-1]) < len(kept[0]), "something must have been dropped"
    again = recompute(model, embeds_of(model, prompt, tokens[:-1]), kept, padding)
    torch.testing.assert_close(logits, again[-len(tokens) :], **CLOSE)


def embeds_of(model, prompt: Tensor, tokens: Tensor) -> Tensor:
    """`[L, D]` of the prompt and of `[t]` tokens after it."""
    return torch.cat([prompt, model.get_input_embeddings()(tokens)])
