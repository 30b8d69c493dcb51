"""The prompts that the FLOPs of published models are counted for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from adatp.errors import Unsupported
from adatp.evaluation.paper.shapes import MODEL_SHAPES, shape_config
from adatp.flops import Flops, prefill_flops
from adatp.layout import Videos, VideoSize
from adatp.methods.method import BeforeDecoder, Method
from adatp.models.published import published_text_config, published_video

FRAMES = 32  # of a video, where neither the user nor the paper says
TEXT_TOKENS = 128  # likewise


@dataclass(frozen=True)
class Prompt(Videos):
    """A prompt with one video for a published model.

    Attributes:
        model: name of the model.
        text_config: Hugging Face configuration of its language model.
        videos: size of the one video.
        text_tokens: number of tokens that are not visual.
        offers_attention: see `adatp.models.family.Family`.
    """

    model: str
    text_config: Any
    videos: tuple[VideoSize, ...]
    text_tokens: int
    offers_attention: bool

    @property
    def layers(self) -> int:
        """Decoder layers, N."""
        return int(self.text_config.num_hidden_layers)

    def describe(self) -> str:
        """Describe what is counted, for people."""
        (video,) = self.videos
        joined = (
            f", each a temporal patch of {video.temporal_patch} of the video's own" if video.temporal_patch > 1 else ""
        )
        return f"{video.frames} frames{joined}, of {video.grid} tokens; {self.text_tokens} text tokens"


def prompt_of(
    model: str, *, frames: int | None = None, grid: Sequence[int] | None = None, text_tokens: int | None = None
) -> Prompt:
    """Return the prompt to count for a published model.

    Args:
        model: one of the paper's models, or of `adatp.models.published.TEXT_CONFIGS`.
        frames: number of the video's own frames; None takes the paper's number, or `FRAMES`.
        grid: rows and columns of the tokens of a frame, newlines included; None takes the paper's, or those of a frame
            of 448 x 448 pixels.
        text_tokens: number of other tokens; None takes what reproduces the paper's figures, or `TEXT_TOKENS`.

    Raises:
        InputError: there is no such model.
    """
    if model in MODEL_SHAPES:
        shape = MODEL_SHAPES[model]
        config, (video,), told = shape_config(shape), shape.videos, shape.text_tokens
        video = video if frames is None else replace(video, frames=frames)
    else:
        config, told = published_text_config(model), TEXT_TOKENS
        video = published_video(model, FRAMES if frames is None else frames)
    if grid is not None:
        rows, columns = grid
        video = replace(video, grid=replace(video.grid, rows=rows, columns=columns))
    text_tokens = told if text_tokens is None else text_tokens
    return Prompt(model, config, (video,), text_tokens, offers_attention=model in MODEL_SHAPES)


def count_flops(prompt: Prompt, method: Method) -> tuple[Flops, list[int]]:
    """Compute the FLOPs of a prompt under a method's settings, and the tokens at every layer's input.

    For AdaTP this is an upper bound, because deduplication depends on the video.

    Raises:
        InputError: the settings do not fit the model.
        Unsupported: the model cannot run with the method.
    """
    if isinstance(method, BeforeDecoder) and method.wants_tower and not prompt.offers_attention:
        raise Unsupported(
            f"method {method.name!r} reads the attention of the vision tower, which {prompt.model} does not offer; use "
            "another method"
        )
    method.check(prompt.layers)
    lengths = [count + prompt.text_tokens for count in method.counts(prompt, prompt.layers)]
    return prefill_flops(prompt.text_config, lengths, prompt.visual_tokens + prompt.text_tokens), lengths
