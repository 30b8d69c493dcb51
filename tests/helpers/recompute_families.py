"""The pruned language models of Qwen-VL and InternVL once more, without hooks and without a cache.

Only the vision towers' features and the prompt's M-RoPE positions come from the model's own code.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Follow = Literal["generate", "loop"]


@torch.no_grad()
def recompute(
    model,
    inputs: dict[str, Tensor],
    b: int,
    tokens: Tensor,
    kept: list[Tensor],
    *,
    follow: Follow = "generate",
    renumber: bool = False,
    attentions: list | None = None,
    before: list | None = None,
) -> Tensor:
    """Logits of the last text and of every generated token of one sample.

    Args:
        inputs: what the unpruned model was given, for the whole batch.
        b: the sample's place in the batch.
        tokens: `[t]` ids of the tokens after its prompt.
        kept: for every layer the prompt's tokens that enter it: indices into the padded row, without the padding.
        follow: whose positions the new tokens have: `new_positions` tells them apart.
        renumber: whether the tokens that are left take consecutive positions.
        attentions: filled with every layer's `[H, W, W]` attention and the tokens it is over, if given.
        before: filled with every layer's attention over what the layer before it has put out, if given, and the
            tokens that is.

    Returns:
        `[W, V]` logits of the tokens that entered the last layer.
    """
    decoder = model.model.language_model
    hidden, deepstack = embed(model, inputs, b, tokens)
    positions = positions_of(model, inputs, b, len(tokens), follow)
    length, prompt = len(hidden), inputs["input_ids"].shape[1]
    alive = torch.arange(_padding(inputs, b), length)
    hidden = hidden[alive]

    def tables() -> tuple[Tensor, Tensor]:
        places = torch.arange(len(alive)).expand(3, -1) if renumber else positions[:, alive]
        return rotary(decoder.config, places)

    for i, (layer, prompt_tokens) in enumerate(zip(decoder.layers, kept, strict=True)):
        if before is not None:
            before.append((attend(layer, hidden, *tables())[1], alive))
        wanted = torch.cat([prompt_tokens, torch.arange(prompt, length)])
        hidden = hidden[torch.isin(alive, wanted)]
        alive = wanted
        hidden, attention = attend(layer, hidden, *tables())
        hidden = hidden + feed_forward(layer.mlp, norm(layer.post_attention_layernorm, hidden))
        if i < len(deepstack):
            hidden = hidden + deepstack[i][alive]
        if attentions is not None:
            attentions.append((attention, alive))
    return model.lm_head(norm(decoder.norm, hidden))


def embed(model, inputs: dict[str, Tensor], b: int, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """`[L, D]` of a padded prompt and `[t]` new tokens, with visual features in place; `[L, D]` that layers 0.. add."""
    body, ids = model.model, inputs["input_ids"]
    hidden = body.get_input_embeddings()(torch.cat([ids[b], tokens])).clone()
    deepstack: list[Tensor] = []
    for name, (pixels, placeholder) in {
        "image": ("pixel_values", model.config.image_token_id),
        "video": ("pixel_values_videos", getattr(model.config, "video_token_id", None)),
    }.items():
        if pixels not in inputs:
            continue
        grid = [inputs[f"{name}_grid_thw"]] if f"{name}_grid_thw" in inputs else []
        output = getattr(body, f"get_{name}_features")(inputs[pixels], *grid, return_dict=True)
        first = int((ids[:b] == placeholder).sum())  # features stand in the order of their placeholders
        places = (ids[b] == placeholder).nonzero()[:, 0]
        hidden[places] = _flat(output.pooler_output)[first : first + len(places)]
        for level, features in enumerate(getattr(output, "deepstack_features", None) or []):
            if level == len(deepstack):
                deepstack.append(torch.zeros_like(hidden))
            deepstack[level][places] = _flat(features)[first : first + len(places)]
    return hidden, deepstack


def _flat(features) -> Tensor:
    """`[N, D]` of features by video or by tile; of deepstack, transformers 5.17 gives them flat."""
    return (features if isinstance(features, Tensor) else torch.cat(features)).flatten(0, -2)


def _padding(inputs: dict[str, Tensor], b: int) -> int:
    return int((inputs["attention_mask"][b] == 0).sum())


def positions_of(model, inputs: dict[str, Tensor], b: int, new: int, follow: Follow) -> Tensor:
    """`[3, L]` temporal, vertical and horizontal positions of a padded prompt and of `new` tokens after it."""
    mask = inputs["attention_mask"]
    if hasattr(model.model, "get_rope_index"):
        wanted = ("input_ids", "attention_mask", "mm_token_type_ids", "second_per_grid_ts")
        grids = ("image_grid_thw", "video_grid_thw")
        given = {name: inputs[name] for name in (*wanted, *grids) if name in inputs}
        prompt = model.model.get_rope_index(**given)[0][:, b]
    else:
        prompt = (mask[b].cumsum(0) - 1).clamp(min=0).expand(3, -1)
    return torch.cat([prompt, new_positions(prompt, new, follow)], 1)


def new_positions(prompt: Tensor, new: int, follow: Follow) -> Tensor:
    """`[3, new]` positions after a prompt's `[3, L]`.

    `generate` counts on from the prompt's last token. A hand-written loop leaves the positions to the model, which
    counts on from the largest position of all (its `rope_deltas`): a video's last temporal patch may be further than
    the text after it where a patch advances time by more than its rows and columns, in Qwen2-VL and Qwen2.5-VL.
    """
    last = prompt[0, -1] if follow == "generate" else prompt.max()
    return (last + 1 + torch.arange(new)).expand(3, -1)


def rotary(config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """`[L, d]` cosines and sines of `[3, L]` positions; every frequency follows one of the three."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2) / width)
    section = rope.get("mrope_section", [width // 2, 0, 0])
    if rope.get("mrope_interleaved"):
        axes = [i % 3 if i < 3 * section[i % 3] else 0 for i in range(width // 2)]
    else:
        axes = [axis for axis, size in enumerate(section) for _ in range(size)]
    angles = (positions[axes].T * frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def attend(layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`[W, D]` with a layer's attention added, and its `[H, W, W]` attention."""
    query, key, value = project(layer, hidden, cos, sin)
    future = torch.ones(len(hidden), len(hidden), dtype=torch.bool).triu(1)
    weights = query @ key.transpose(1, 2) * layer.self_attn.head_dim**-0.5
    weights = weights.masked_fill(future, float("-inf")).softmax(-1)
    return hidden + layer.self_attn.o_proj((weights @ value).transpose(0, 1).flatten(1)), weights


def project(layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Post-rotary queries `[H, W, d]` and keys, and values, `[H, W, d]` repeated for the heads that share them."""
    attention = layer.self_attn
    x = norm(layer.input_layernorm, hidden)
    query, key, value = (
        projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = norm(attention.q_norm, query), norm(attention.k_norm, key)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    repeats = query.shape[0] // key.shape[0]
    return query, key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def norm(module, x: Tensor) -> Tensor:
    """RMS norm over the last dimension."""
    return module.weight * x * (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def feed_forward(mlp, x: Tensor) -> Tensor:
    """What a layer adds to `[W, D]` after its attention: by an MLP, or by the best experts of each token."""
    if not hasattr(mlp, "experts"):
        return mlp.down_proj(functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    chance, expert = (x @ mlp.gate.weight.T).softmax(-1).topk(mlp.gate.top_k)
    share = chance / chance.sum(-1, keepdim=True)
    added = torch.zeros_like(x)
    for e in range(mlp.gate.num_experts):
        token, rank = (expert == e).nonzero(as_tuple=True)
        gate, up = (x[token] @ mlp.experts.gate_up_proj[e].T).chunk(2, -1)
        added[token] += share[token, rank, None] * ((functional.silu(gate) * up) @ mlp.experts.down_proj[e].T)
    return added
