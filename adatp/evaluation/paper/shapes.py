"""The shapes of the published models in the paper, from which the cost of their prefill follows."""

from dataclasses import dataclass
from typing import Any

from adatp.flops import Flops, prefill_flops
from adatp.layout import Grid, Videos, VideoSize
from adatp.methods.method import Method


@dataclass(frozen=True)
class ModelShape(Videos):
    """A published model in the paper's setting (section 4.1).

    Attributes:
        text_config: arguments of its `Qwen2Config`.
        videos: size of its one video.
        text_tokens: number of non-visual prompt tokens that reproduces the paper's figures.
    """

    text_config: dict[str, int]
    videos: tuple[VideoSize, ...]
    text_tokens: int

    @property
    def layers(self) -> int:
        """Decoder layers, N."""
        return self.text_config["num_hidden_layers"]


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
    "onevision-0.5b": ModelShape(_QWEN2_0_5B, (VideoSize(32, Grid(14, 14)),), text_tokens=113),
    "onevision-7b": ModelShape(_QWEN2_7B, (VideoSize(32, Grid(14, 14)),), text_tokens=130),
    "llava-video-7b": ModelShape(_QWEN2_7B, (VideoSize(20, Grid(13, 14, newlines=True)),), text_tokens=106),
}


def shape_config(shape: ModelShape) -> Any:
    """Build the Hugging Face configuration of a published model's language model."""
    from transformers import Qwen2Config

    return Qwen2Config(**shape.text_config)


def shape_flops(shape: ModelShape, method: Method, text_tokens: int) -> tuple[Flops, list[int]]:
    """Compute the FLOPs of a published model under a method's settings, and the tokens at every layer's input.

    For AdaTP this is an upper bound, because deduplication depends on the video.
    """
    lengths = [count + text_tokens for count in method.counts(shape, shape.layers)]
    return prefill_flops(shape_config(shape), lengths, shape.visual_tokens + text_tokens), lengths
