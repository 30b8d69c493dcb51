"""What the engine asks of a decoder layer, for layers of Llama's kind, such as those of Qwen2 and Qwen3."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import rotate_half


class DecoderLayers:
    """Reads the layers of a decoder.

    Attributes:
        decoder: the language model, with `layers` and a Hugging Face `config`.
    """

    decoder: Any

    def query_projection(self, layer: Any) -> nn.Module:
        """Return the module of a decoder layer that computes its queries, `[B, W, H * d]`, heads side by side."""
        projection: nn.Module = layer.self_attn.q_proj
        return projection

    def mlp(self, layer: Any) -> nn.Module:
        """Return the module of a decoder layer that acts on each token of `[B, W, D]` independently."""
        mlp: nn.Module = layer.mlp
        return mlp

    def scale(self, layer: Any) -> float:
        """Return the factor of the attention logits of a decoder layer."""
        return float(layer.self_attn.scaling)

    def queries(self, layer: Any, projected: Tensor, cos: Tensor, sin: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """Select post-rotary queries from the output of a layer's query projection.

        Args:
            layer: one of `decoder.layers`.
            projected: `[B, W, H * d]` output of its query projection.
            cos, sin: `[B, T, d]` rotary tables; these and `rows` may be on other devices.
            rows: `[T]` int64, the tokens whose queries are needed; None for all, T = W.

        Returns:
            `[B, H, T, d]`.
        """
        device = projected.device
        chosen = projected if rows is None else projected.index_select(1, rows.to(device))
        return _rotated(layer.self_attn, "q_norm", chosen, cos.to(device), sin.to(device))

    def project(self, layer: Any, hidden: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Compute post-rotary queries of some of the tokens that enter a decoder layer, and keys of all tokens.

        Args:
            layer: one of `decoder.layers`.
            hidden: `[1, W, D]` input of the layer.
            rows: `[T]` int64, the tokens whose queries are needed.
            cos, sin: `[1, W, d]` rotary tables.

        Returns:
            `[1, H, T, d]` queries and `[1, G, W, d]` keys.
        """
        normed = layer.input_layernorm(hidden)
        query, query_cos, query_sin = (part.index_select(1, rows) for part in (normed, cos, sin))
        return (
            self.queries(layer, self.query_projection(layer)(query), query_cos, query_sin),
            _rotated(layer.self_attn, "k_norm", layer.self_attn.k_proj(normed), cos, sin),
        )

    @property
    def is_like_llama(self) -> bool:
        """Whether the decoder layers have what these methods read."""
        attention = getattr(self.decoder.layers[0], "self_attn", None)
        return all(hasattr(attention, part) for part in ("q_proj", "k_proj", "scaling"))

    @property
    def has_sliding_windows(self) -> bool:
        """Whether some decoder layers do not attend to all tokens."""
        return "sliding_attention" in (getattr(self.decoder.config, "layer_types", None) or ())


def _rotated(attention: Any, norm: str, projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, T, H * d]` projected tokens to `[B, H, T, d]`, normed by the attention's `norm` if it has one."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, norm):
        heads = getattr(attention, norm)(heads)
    heads = heads.transpose(1, 2)
    return torch.addcmul(heads * cos[:, None], rotate_half(heads), sin[:, None])
