"""The interface of a method: it decides which visual tokens enter which decoder layer.

A method is a frozen dataclass of its settings. It works either before the decoder, on a video's features, or between
the decoder's layers, where the prompt's attention scores the tokens. `c` is the number of tokens of a frame, `n` the
number of frames.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from adatp.checks.values import integer, number, require, switch
from adatp.errors import InputError
from adatp.flops import linear_ratio
from adatp.layout import Grid, PromptLayout, Videos, by_layer

_CHECKS: dict[Any, Callable[[str, Any], Any]] = {
    float: number,
    int: integer,
    int | None: lambda name, value: None if value is None else integer(name, value),
    bool: switch,
}  # by the annotation of a setting


class SparseDecoding(NamedTuple):
    """Sparse attention in decoding: layers from `layer` on attend to a share of the visual tokens in the cache.

    Attributes:
        layer: the first layer with sparse attention; the attention of the layer before it chooses the tokens.
        keep: share of the visual tokens.
    """

    layer: int
    keep: float


class Method(ABC):
    """A method to prune the tokens of a video, with its settings.

    Attributes:
        name: name of the method, for `adatp.apply` and the command line.
        source: where the method was published; empty if it was not.
        knob: the setting that is changed to reach a FLOPs budget; None if there is none.
        renumbers: whether the kept tokens get consecutive positions.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    knob: ClassVar[str | None] = None
    renumbers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the type of every setting by its annotation; a method goes on with the ranges of its own settings.

        Raises:
            InputTypeError: a setting has the wrong type.
            InputError: a whole number does not fit in 64 bits.
        """
        for field in fields(self):  # type: ignore[arg-type]
            check = _CHECKS.get(field.type)
            if check is not None:
                object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    @property
    def knob_range(self) -> tuple[float, float]:
        """The lowest and the highest value of the knob."""
        return 0.0, 1.0

    @property
    def wants_frames(self) -> bool:
        """Whether the method reads a feature of every frame."""
        return False

    @property
    def wants_question(self) -> bool:
        """Whether the method compares the frames with the question."""
        return False

    @property
    def decoding(self) -> SparseDecoding | None:
        """The method's sparse attention in decoding; None if decoding is unchanged."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return the settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def check(self, layers: int) -> None:  # noqa: B027  the settings of most methods fit every model
        """Raise an InputError if the settings do not fit a model with `layers` decoder layers."""

    @abstractmethod
    def first_pruned(self, layers: int) -> int:
        """Return the first layer whose input is not the whole prompt; N if there is no such layer."""

    @abstractmethod
    def counts(self, prompt: Videos, layers: int) -> list[int]:
        """Return the number of visual tokens at every layer's input, N entries, as the settings alone give it."""

    def check_flops(self, ratio: float) -> None:
        """Raise an InputError for a share of FLOPs that is invalid, or if the method has no knob."""
        number("flops", ratio)
        require(0 < ratio <= 1, "flops", ratio, "a share of the unpruned FLOPs, in (0, 1]")
        if self.knob is None:
            raise InputError(f"flops cannot be used with the method {self.name!r}, which has no setting to adjust")

    def at_flops(self, ratio: float, prompt: Videos, layers: int, other_tokens: int) -> Self:
        """Return the method with its `knob` set for a given cost, and every other setting unchanged.

        Args:
            ratio: the cost: FLOPs of the prefill's linear layers, divided by those of the unpruned prefill.
            prompt: the videos of the prompt.
            layers: number of decoder layers.
            other_tokens: number of the prompt's tokens that are not visual.

        Raises:
            InputError: no value of the knob reaches the ratio.
        """
        self.check_flops(ratio)

        def cost(value: float) -> float:
            return self.with_knob(value).cost(prompt, layers, other_tokens)

        low, high = self.knob_range
        least, most = sorted((cost(low), cost(high)))
        if not least <= ratio <= most:
            raise InputError(
                f"flops must be from {least:.4f} to {most:.4f} for the method {self.name!r} on a prompt of "
                f"{prompt.visual_tokens} visual and {other_tokens} other tokens in {layers} layers, got {ratio}"
            )
        rising = cost(high) >= cost(low)
        for _ in range(40):
            middle = (low + high) / 2
            if (cost(middle) < ratio) == rising:
                low = middle
            else:
                high = middle
        return self.with_knob(min((low, high), key=lambda value: abs(cost(value) - ratio)))

    def cost(self, prompt: Videos, layers: int, other_tokens: int) -> float:
        """Compute the share of the unpruned prefill's FLOPs (linear layers) that the settings alone give."""
        lengths = [count + other_tokens for count in self.counts(prompt, layers)]
        return linear_ratio(lengths, prompt.visual_tokens + other_tokens)

    def with_knob(self, value: float) -> Self:
        """Return the method with its knob at `value`, without a check: both ends of the range are allowed here."""
        assert self.knob is not None
        turned = object.__new__(type(self))
        turned.__dict__.update(self.__dict__)
        turned.__dict__[self.knob] = value
        return turned


@dataclass(frozen=True)
class Video:
    """A video as it would enter the decoder.

    Attributes:
        tokens: `[n, c, D]` projected and pooled features, with newlines in their places.
        grid: the tokens of a frame.
        saliency: `[n, P]` float32 attention that each of the grid's P patches receives in the last layer that the
            vision tower runs: the mean over heads and queries, pooled as the features are. None unless the method
            wants it.
        keys: `[n, P, d]` float32 keys of that layer: the mean over heads, pooled as the features are. None if
            `saliency` is.
    """

    tokens: Tensor
    grid: Grid
    saliency: Tensor | None = None
    keys: Tensor | None = None


class BeforeDecoder(Method):
    """A method that gives the decoder fewer tokens, at consecutive positions.

    Attributes:
        wants_tower: whether `compress` reads the tower's saliency and keys.
    """

    wants_tower: ClassVar[bool] = False
    renumbers: ClassVar[bool] = True

    def first_pruned(self, layers: int) -> int:
        return 0

    @abstractmethod
    def count(self, frames: int, grid: Grid) -> int:
        """Return W, the number of tokens that are kept of a video with `frames` frames."""

    @abstractmethod
    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        """Prune a video. Reads nothing from the device.

        Returns:
            `[W]` int64 and `[W, D]`, in the order in which the decoder sees the tokens. The first gives for each kept
            token the index, among the n * c tokens, of the token that it is or stands for; all are different. The
            second gives its features.
        """

    def counts(self, prompt: Videos, layers: int) -> list[int]:
        return [sum(self.count(video.frames, video.grid) for video in prompt.videos)] * layers


class Grouping(NamedTuple):
    """The segments of a prompt's videos and their quotas; S slots, as many as frames.

    Attributes:
        segment_of_frame: `[n]` int64.
        significant: `[S]` bool.
        quota: `[K, S]` int64 number of tokens that every segment may keep at each of the K cuts.
    """

    segment_of_frame: Tensor
    significant: Tensor
    quota: Tensor


class BetweenLayers(Method):
    """A method with cuts before some decoder layers; a cut drops the tokens with the lowest scores.

    Attributes:
        scores_itself: whether the layer after a cut computes its scores, from all tokens before the cut; if not, the
            layer before the cut does.
    """

    scores_itself: ClassVar[bool] = False

    @property
    def deduplicates(self) -> bool:
        """Whether the first cut keeps at most one token per spatial position and segment."""
        return False

    @abstractmethod
    def cuts(self, layers: int) -> dict[int, float]:
        """Return, for each layer with a cut before it, in order, the share of the visual tokens that may enter it."""

    @abstractmethod
    def tokens(self, ratio: float, visual_tokens: int) -> int:
        """Return the number of tokens that a share of the visual tokens is."""

    def rows(self, layout: PromptLayout) -> Tensor:
        """Return `[T]` int64: the tokens of the prompt whose attention scores the visual tokens."""
        return layout.rows

    def group(
        self, ratios: Sequence[float], layout: PromptLayout, frames: Tensor | None, similarity: Tensor | None
    ) -> Grouping:
        """Compute the segments and their quotas; there is one segment unless a method overrides this.

        Args:
            ratios: shares of the visual tokens, one per cut.
            layout: the layout of the prompt.
            frames: `[n, F]` one feature per frame; None unless the method wants it.
            similarity: `[n]` text relevance of every frame; None if there is none.
        """
        n = layout.frames
        quota = torch.zeros(len(ratios), n, dtype=torch.int64)
        quota[:, 0] = torch.tensor([self.tokens(ratio, layout.visual_tokens) for ratio in ratios])
        return Grouping(torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), quota)

    def first_pruned(self, layers: int) -> int:
        return min(self.cuts(layers), default=layers)

    def counts(self, prompt: Videos, layers: int) -> list[int]:
        whole = prompt.visual_tokens
        return by_layer(layers, whole, {layer: self.tokens(ratio, whole) for layer, ratio in self.cuts(layers).items()})


def share_of(total: int, share: float) -> int:
    """Compute a share of `total` as a whole number: rounded half up, at least 1."""
    return max(1, math.floor(share * total + 0.5))
