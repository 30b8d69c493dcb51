"""FLOPs of the language model's prefill, counted by PyTorch on the real configuration without weights."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adatp import budget
from adatp.config import AdaTPConfig


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


@dataclass(frozen=True)
class ModelShape:
    """A published model, as far as its prefill's cost goes.

    Attributes:
        text_config: arguments of its `Qwen2Config`.
        frames, tokens_per_frame: n and c in the paper's setting (section 4.1).
        text_tokens: prompt tokens beside the visual ones that reproduce the paper's figures.
    """

    text_config: dict[str, int]
    frames: int
    tokens_per_frame: int
    text_tokens: int


_QWEN2_0_5B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
_QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
MODEL_SHAPES = {
    "onevision-0.5b": ModelShape(_QWEN2_0_5B, frames=32, tokens_per_frame=196, text_tokens=113),
    "onevision-7b": ModelShape(_QWEN2_7B, frames=32, tokens_per_frame=196, text_tokens=130),
    "llava-video-7b": ModelShape(_QWEN2_7B, frames=20, tokens_per_frame=182, text_tokens=106),
}


def prefill_flops(text_config: Any, lengths: Sequence[int], full_length: int) -> Flops:
    """FLOPs of a prefill whose layers see `lengths` tokens, and of one whose layers all see `full_length`.

    Args:
        text_config: the language model's Hugging Face configuration.
        lengths: tokens at the input of every decoder layer.
        full_length: tokens of the whole prompt.
    """
    return PrefillCounter(text_config)(lengths, full_length)


def schedule_lengths(config: AdaTPConfig, layers: int, visual_tokens: int, text_tokens: int) -> list[int]:
    """Tokens at every layer's input under the schedule alone: an upper bound, since only a video can deduplicate."""
    cuts = budget.schedule(config, layers)
    lengths, visual = [], visual_tokens
    for layer in range(layers):
        if layer in cuts:
            visual = int(budget.round_half_up(torch.tensor(cuts[layer] * visual_tokens, dtype=torch.float64)))
        lengths.append(visual + text_tokens)
    return lengths


def shape_flops(shape: ModelShape, config: AdaTPConfig, text_tokens: int) -> tuple[Flops, list[int]]:
    """FLOPs of a published model under the schedule alone, and the tokens at every layer's input."""
    from transformers import Qwen2Config

    text_config = Qwen2Config(**shape.text_config)
    visual = shape.frames * shape.tokens_per_frame
    lengths = schedule_lengths(config, text_config.num_hidden_layers, visual, text_tokens)
    return prefill_flops(text_config, lengths, visual + text_tokens), lengths


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
