"""FLOPs of the language model's prefill. PyTorch counts them for the real configuration, without weights."""

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
        linear: FLOPs of the linear layers in the pruned prefill. The FLOPs columns of the paper count only these.
        linear_full: FLOPs of the linear layers in the unpruned prefill.
        attention: FLOPs of the attention's two matrix products in the pruned prefill, with every query against every
            key, as profilers count.
        attention_full: FLOPs of the attention's two matrix products in the unpruned prefill.
    """

    linear: int
    linear_full: int
    attention: int
    attention_full: int

    @property
    def ratio(self) -> float:
        """FLOPs of the linear layers, pruned divided by unpruned."""
        return self.linear / self.linear_full

    @property
    def ratio_with_attention(self) -> float:
        """FLOPs of the linear layers and the attention, pruned divided by unpruned."""
        return (self.linear + self.attention) / (self.linear_full + self.attention_full)

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.linear + other.linear,
            self.linear_full + other.linear_full,
            self.attention + other.attention,
            self.attention_full + other.attention_full,
        )

    def to_dict(self) -> dict[str, float]:
        """Return the two ratios and the four counts by name."""
        return {"ratio": self.ratio, "ratio_with_attention": self.ratio_with_attention, **asdict(self)}


def prefill_flops(text_config: Any, lengths: Sequence[int], full_length: int) -> Flops:
    """Count the FLOPs of a prefill whose layers see `lengths` tokens, and of one whose layers see `full_length`.

    Args:
        text_config: the language model's Hugging Face configuration.
        lengths: number of tokens at the input of every decoder layer.
        full_length: number of tokens of the whole prompt.
    """
    return PrefillCounter(text_config)(lengths, full_length)


def linear_ratio(lengths: Sequence[int], full_length: int) -> float:
    """Compute `Flops.ratio` without counting: the FLOPs of linear layers are proportional to their tokens."""
    return sum(lengths) / (len(lengths) * full_length)


class PrefillCounter:
    """`prefill_flops` for many prefills of one model; a layer is counted only once for each length.

    Layers run on the meta device, where nothing is computed or stored.
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
        """Count the FLOPs of one prefill, see `prefill_flops`."""
        pruned = [self._count(length) for length in lengths]
        full = self._count(full_length)
        return Flops(
            linear=sum(linear for linear, _ in pruned),
            linear_full=full[0] * len(lengths),
            attention=sum(attention for _, attention in pruned),
            attention_full=full[1] * len(lengths),
        )

    def _measure(self, length: int) -> tuple[int, int]:
        """Count the (linear, attention) FLOPs of one layer for `length` tokens."""
        layer, config = self._model.layers[0], self._model.config
        hidden = torch.empty(1, length, config.hidden_size, device="meta", dtype=self._model.dtype)
        table = torch.empty(1, length, layer.self_attn.head_dim, device="meta", dtype=self._model.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(hidden, position_embeddings=(table, table), attention_mask=None)
        counts = counter.get_flop_counts()["Global"]
        attention = sum(flops for op, flops in counts.items() if op is torch.ops.aten.bmm)
        return sum(counts.values()) - attention, attention
