"""FLOPs of the language model's prefill. PyTorch counts them for the real configuration, without weights."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adatp.checks.values import require
from adatp.errors import UnsupportedType

_PROJECTIONS = {f"self_attn.{name}_proj.weight" for name in "qkvo"}


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
        text_config: the language model's Hugging Face configuration; its layers are of Llama's kind, all alike or not.
        lengths: number of tokens at the input of every decoder layer.
        full_length: number of tokens of the whole prompt.

    Raises:
        InputError: `lengths` is not as long as the decoder.
        UnsupportedType: it is not the configuration of such a decoder.
    """
    return PrefillCounter(text_config)(lengths, full_length)


def linear_ratio(lengths: Sequence[int], full_length: int) -> float:
    """Compute `Flops.ratio` without counting: the FLOPs of linear layers are proportional to their tokens."""
    return sum(lengths) / (len(lengths) * full_length)


class PrefillCounter:
    """`prefill_flops` for many prefills of one model; equal layers are counted only once for each length.

    Layers run on the meta device, where nothing is computed or stored. In a mixture of experts, each token costs the
    router and the experts that it is sent to.
    """

    def __init__(self, text_config: Any) -> None:
        alike: dict[Any, Any] = {}  # the first of the layers whose weights have the same names and shapes
        self._layers = [alike.setdefault(_weights(layer), layer) for layer in _decoder_layers(text_config)]
        self._count = lru_cache(maxsize=None)(_measure)

    def __call__(self, lengths: Sequence[int], full_length: int) -> Flops:
        """Count the FLOPs of one prefill, see `prefill_flops`."""
        layers = self._layers
        require(len(lengths) == len(layers), "lengths", lengths, f"{len(layers)} numbers, one for each decoder layer")
        pruned = [self._count(layer, length) for layer, length in zip(layers, lengths, strict=True)]
        full = [self._count(layer, full_length) for layer in layers]
        return Flops(
            linear=sum(linear for linear, _ in pruned),
            linear_full=sum(linear for linear, _ in full),
            attention=sum(attention for _, attention in pruned),
            attention_full=sum(attention for _, attention in full),
        )


def _decoder_layers(text_config: Any) -> list[Any]:
    """Build a decoder's layers on the meta device, with matrix products that the counter sees."""
    from transformers import MODEL_MAPPING

    config, kind = copy.deepcopy(text_config), type(text_config)
    if kind not in MODEL_MAPPING:
        raise UnsupportedType(f"text_config must be the configuration of a language model, got a {kind.__name__}")
    config._attn_implementation = "eager"
    config._experts_implementation = "batched_mm"  # of each token with its own experts, whichever these are
    with torch.device("meta"):
        layers = list(getattr(MODEL_MAPPING[kind](config), "layers", ()))
    if not layers or not all(_PROJECTIONS.issubset(dict(_weights(layer))) for layer in layers):
        raise UnsupportedType(
            f"cannot count the FLOPs of a {kind.__name__}: every layer of the decoder must have an attention like "
            f"Llama's, with the weights {', '.join(sorted(_PROJECTIONS))}"
        )
    return layers


def _weights(layer: Any) -> tuple[tuple[str, torch.Size], ...]:
    """Return the names and shapes of a layer's weights, on which its cost depends."""
    return tuple((name, weight.shape) for name, weight in layer.named_parameters())


def _measure(layer: Any, length: int) -> tuple[int, int]:
    """Count the (linear, attention) FLOPs of one layer for `length` tokens."""
    weight = layer.self_attn.q_proj.weight
    hidden = weight.new_empty(1, length, weight.shape[1])
    table = weight.new_empty(1, length, layer.self_attn.head_dim)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(hidden, position_embeddings=(table, table), attention_mask=None)
    except Exception as error:  # whatever a layer of another kind raises
        name = type(layer).__name__
        raise UnsupportedType(f"cannot count the FLOPs of a {name}: it does not run like Llama's, {error}") from error
    counts = counter.get_flop_counts()
    attention = counts[f"{type(layer).__name__}.self_attn"][torch.ops.aten.bmm]  # a mixture of experts has others
    return sum(counts["Global"].values()) - attention, attention
