"""FLOPs of the language model's prefill, counted by PyTorch on the real configuration without weights."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Flops:
    """FLOPs of all decoder layers in one prefill; a multiply-add counts as two.

    Attributes:
        linear: of the linear layers, pruned. The paper's convention: its FLOPs columns follow from these alone.
        linear_full: the same, not pruned.
        attention: of the attention's two matrix products, pruned; every query against every key, as profilers count.
        attention_full: the same, not pruned.
    """

    linear: int
    linear_full: int
    attention: int
    attention_full: int

    @property
    def ratio(self) -> float:
        """Linear layers only, pruned over not pruned."""
        return self.linear / self.linear_full

    @property
    def ratio_with_attention(self) -> float:
        """Linear layers and attention, pruned over not pruned."""
        return (self.linear + self.attention) / (self.linear_full + self.attention_full)

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.linear + other.linear,
            self.linear_full + other.linear_full,
            self.attention + other.attention,
            self.attention_full + other.attention_full,
        )

    def to_dict(self) -> dict[str, float]:
        return {"ratio": self.ratio, "ratio_with_attention": self.ratio_with_attention, **asdict(self)}


def prefill_flops(text_config: Any, lengths: Sequence[int], full_length: int) -> Flops:
    """FLOPs of a prefill whose layers see `lengths` tokens, and of one whose layers all see `full_length`.

    Args:
        text_config: the language model's Hugging Face configuration.
        lengths: tokens at the input of every decoder layer.
        full_length: tokens of the whole prompt.
    """
    return PrefillCounter(text_config)(lengths, full_length)


def linear_ratio(lengths: Sequence[int], full_length: int) -> float:
    """`Flops.ratio` without counting: the FLOPs of linear layers are in proportion to their tokens."""
    return sum(lengths) / (len(lengths) * full_length)


class PrefillCounter:
    """`prefill_flops` for many prefills of one model: a layer is counted once at each length.

    On the meta device, where nothing is computed or stored.
    """

    def __init__(self, text_config: Any) -> None:
        from transformers import Qwen2Model

        config = copy.deepcopy(text_config)
        config.num_hidden_layers = 1
        config.layer_types = config.layer_types[:1]
        config.vocab_size = 1
        config.pad_token_id = None
        config._attn_implementation = "eager"  # plain matrix products, which the counter sees
        with torch.device("meta"):
            self._model = Qwen2Model(config)
        self._count = lru_cache(maxsize=None)(self._measure)

    def __call__(self, lengths: Sequence[int], full_length: int) -> Flops:
        """See `prefill_flops`."""
        pruned = [self._count(length) for length in lengths]
        full = self._count(full_length)
        return Flops(
            linear=sum(linear for linear, _ in pruned),
            linear_full=full[0] * len(lengths),
            attention=sum(attention for _, attention in pruned),
            attention_full=full[1] * len(lengths),
        )

    def _measure(self, length: int) -> tuple[int, int]:
        """(linear, attention) FLOPs of one layer over `length` tokens."""
        layer, config = self._model.layers[0], self._model.config
        hidden = torch.empty(1, length, config.hidden_size, device="meta", dtype=self._model.dtype)
        table = torch.empty(1, length, layer.self_attn.head_dim, device="meta", dtype=self._model.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(hidden, position_embeddings=(table, table), attention_mask=None)
        counts = counter.get_flop_counts()["Global"]
        attention = sum(flops for op, flops in counts.items() if op is torch.ops.aten.bmm)
        return sum(counts.values()) - attention, attention
