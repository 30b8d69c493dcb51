"""What the engine asks of a method: which visual tokens enter which decoder layer.

A method is a frozen dataclass of its settings. It works either before the decoder, on a video's features, or between
the decoder's layers, where the prompt's attention scores the tokens. `c` is the tokens of a frame, `n` the frames.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from adatp.errors import InputError
from adatp.flops import linear_ratio
from adatp.layout import PromptLayout, VideoGrid, by_layer


class SparseDecoding(NamedTuple):
    """What a method does in decoding: from `layer` on, attend to a share of the visual tokens in the cache.

    Attributes:
        layer: first layer that does; the attention of the one before it says which tokens.
        keep: share of the visual tokens.
    """

    layer: int
    keep: float


class Method(ABC):
    """A way to thin out the tokens of a video, and its settings.

    Attributes:
        name: by which it is asked for.
        source: where it was published; empty for a plain one.
        knob: the setting that a FLOPs budget turns; None if there is none.
        renumbers: whether the tokens left take consecutive positions.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    knob: ClassVar[str | None] = None
    renumbers: ClassVar[bool] = False

    @property
    def knob_range(self) -> tuple[float, float]:
        """The lowest and the highest value of the knob."""
        return 0.0, 1.0

    @property
    def wants_frames(self) -> bool:
        """Whether it reads a feature of every frame."""
        return False

    @property
    def wants_question(self) -> bool:
        """Whether it compares the frames with the question."""
        return False

    @property
    def decoding(self) -> SparseDecoding | None:
        """What it does in decoding; None for nothing."""
        return None

    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def check(self, layers: int) -> None:  # noqa: B027  most fit every model
        """Raise a ValueError where the settings do not fit a model with that many decoder layers."""

    @abstractmethod
    def first_pruned(self, layers: int) -> int:
        """The first layer that less than the whole prompt enters; N if there is none."""

    @abstractmethod
    def counts(self, video: VideoGrid, layers: int) -> list[int]:
        """Visual tokens at every layer's input, as far as the settings alone decide: N entries."""

    def check_flops(self, ratio: float) -> None:
        """Raise a ValueError for a share of FLOPs that no prompt can be asked to cost."""
        require(0 < ratio <= 1, "flops", ratio, "a share of the unpruned FLOPs, in (0, 1]")
        if self.knob is None:
            raise InputError(f"flops cannot be asked of the method {self.name!r}, which has no setting to turn")

    def at_flops(self, ratio: float, video: VideoGrid, layers: int, other_tokens: int) -> Self:
        """The method at a given cost: its `knob` turned, every other setting as it is.

        Args:
            ratio: FLOPs of the prefill's linear layers over those of the unpruned one.
            video: the videos of the prompt.
            layers: decoder layers.
            other_tokens: tokens of the prompt beside the visual ones.

        Raises:
            InputError: no value of the knob reaches the ratio.
        """
        self.check_flops(ratio)

        def cost(value: float) -> float:
            return self.with_knob(value).cost(video, layers, other_tokens)

        low, high = self.knob_range
        least, most = sorted((cost(low), cost(high)))
        if not least <= ratio <= most:
            raise InputError(
                f"flops must be from {least:.4f} to {most:.4f} for the method {self.name!r} on a prompt of "
                f"{video.visual_tokens} visual and {other_tokens} other tokens in {layers} layers, got {ratio}"
            )
        rising = cost(high) >= cost(low)
        for _ in range(40):
            middle = (low + high) / 2
            if (cost(middle) < ratio) == rising:
                low = middle
            else:
                high = middle
        return self.with_knob(min((low, high), key=lambda value: abs(cost(value) - ratio)))

    def cost(self, video: VideoGrid, layers: int, other_tokens: int) -> float:
        """FLOPs of the prefill's linear layers over the unpruned one's, as far as the settings alone decide."""
        lengths = [count + other_tokens for count in self.counts(video, layers)]
        return linear_ratio(lengths, video.visual_tokens + other_tokens)

    def with_knob(self, value: float) -> Self:
        """With the knob at that value, an end of its range included, which the constructor may refuse."""
        assert self.knob is not None
        turned = object.__new__(type(self))
        turned.__dict__.update(self.__dict__)
        turned.__dict__[self.knob] = value
        return turned


@dataclass(frozen=True)
class Video:
    """A video as it would enter the decoder.

    Attributes:
        tokens: `[n, c, D]` projected and pooled features, newlines in their places.
        grid: rows and columns of a frame; where there is a column more than there are rows, it holds newlines.
        saliency: `[n, P]` float32 attention that each of the `P = rows * rows` patches receives in the last layer that
            the vision tower runs, the mean over heads and queries, pooled as the features are; None unless the method
            wants it.
        keys: `[n, P, d]` that layer's keys, the mean over heads, pooled likewise; None with `saliency`.
    """

    tokens: Tensor
    grid: tuple[int, int]
    saliency: Tensor | None = None
    keys: Tensor | None = None


class BeforeDecoder(Method):
    """A method that hands the decoder fewer tokens, at consecutive positions.

    Attributes:
        wants_tower: whether `compress` reads the tower's saliency and keys.
    """

    wants_tower: ClassVar[bool] = False
    renumbers: ClassVar[bool] = True

    def first_pruned(self, layers: int) -> int:
        return 0

    @abstractmethod
    def count(self, frames: int, grid: tuple[int, int]) -> int:
        """Tokens that are left of a video of `frames` frames, W."""

    @abstractmethod
    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        """What is left of a video, in the order in which the decoder sees it. Reads nothing from the device.

        Returns:
            `[W]` int64, for each token left the one of the n * c it is or stands for, all different, and `[W, D]`
            what it is.
        """

    def counts(self, video: VideoGrid, layers: int) -> list[int]:
        return [sum(self.count(frames, video.grid) for frames in video.videos)] * layers


class Grouping(NamedTuple):
    """The segments of a prompt's videos and what each may keep; S slots, as many as frames.

    Attributes:
        segment_of_frame: `[n]` int64.
        significant: `[S]` bool.
        quota: `[K, S]` int64 tokens of every segment at each of the K cuts.
    """

    segment_of_frame: Tensor
    significant: Tensor
    quota: Tensor


class BetweenLayers(Method):
    """A method that drops tokens in front of some decoder layers, those with the lowest scores.

    Attributes:
        scores_itself: whether a cut's scores are of the layer behind it, on all that enters it, rather than of the
            layer before it.
    """

    scores_itself: ClassVar[bool] = False

    @property
    def deduplicates(self) -> bool:
        """Whether the first cut leaves one token per spatial position and segment."""
        return False

    @abstractmethod
    def cuts(self, layers: int) -> dict[int, float]:
        """The share of the visual tokens that may enter each layer with a cut in front of it, by layer, in order."""

    @abstractmethod
    def tokens(self, ratio: float, visual_tokens: int) -> int:
        """A share of the visual tokens as a number."""

    def rows(self, layout: PromptLayout) -> Tensor:
        """`[T]` int64: the tokens of the prompt whose attention scores the visual ones."""
        return layout.rows

    def group(
        self, ratios: Sequence[float], layout: PromptLayout, frames: Tensor | None, similarity: Tensor | None
    ) -> Grouping:
        """The segments, and what each may keep; one segment unless a method says otherwise.

        Args:
            ratios: of the cuts.
            layout: the prompt.
            frames: `[n, F]` a feature per frame; None unless the method wants it.
            similarity: `[n]` text relevance of every frame; None where there is none.
        """
        n = layout.frames
        quota = torch.zeros(len(ratios), n, dtype=torch.int64)
        quota[:, 0] = torch.tensor([self.tokens(ratio, layout.visual_tokens) for ratio in ratios])
        return Grouping(torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool), quota)

    def first_pruned(self, layers: int) -> int:
        return min(self.cuts(layers), default=layers)

    def counts(self, video: VideoGrid, layers: int) -> list[int]:
        whole = video.visual_tokens
        return by_layer(layers, whole, {layer: self.tokens(ratio, whole) for layer, ratio in self.cuts(layers).items()})


def require(holds: bool, name: str, value: Any, wanted: str) -> None:
    """Raise a ValueError that names the setting, unless it holds."""
    if not holds:
        raise InputError(f"{name} must be {wanted}, got {value!r}")


def share_of(total: int, share: float) -> int:
    """A share of a number as a number: rounded half up, at least 1."""
    return max(1, math.floor(share * total + 0.5))
