"""What the engine asks of vLLM's layers, for layers such as those of Qwen2, of Qwen3 and of SigLIP."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def project(layer: Any, positions: Tensor, hidden: Tensor, residual: Tensor) -> list[Tensor]:
    """Compute post-rotary queries and keys of the tokens that enter a decoder layer, which does not run.

    Args:
        layer: the layer.
        positions: `[tokens]` positions, or `[3, tokens]`.
        hidden, residual: `[tokens, D]`, the output of the layer before it.

    Returns:
        `[tokens, H * d]` queries and `[tokens, G * d]` keys.
    """
    normed, _ = layer.input_layernorm(hidden.clone(), residual.clone())  # vLLM's norm works in place
    attention = layer.self_attn
    projected, _ = attention.qkv_proj(normed)
    query, key, _ = projected.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
    if hasattr(attention, "q_norm"):
        query, key = _normed(attention.q_norm, query), _normed(attention.k_norm, key)
    return list(attention.rotary_emb(positions, query, key))


@contextmanager
def asking(attention: Any) -> Iterator[list[Tensor]]:
    """Record the queries and keys that an attention is given in the `with` block, `[..., heads * d]` each."""
    asked: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, given: asked.extend(given[:2]))
    try:
        yield asked
    finally:
        hook.remove()


def _normed(norm: Any, projected: Tensor) -> Tensor:
    """Norm each head of `[tokens, H * d]` by itself."""
    heads: Tensor = norm(projected.unflatten(-1, (-1, norm.weight.shape[0])).contiguous())
    return heads.flatten(-2)
