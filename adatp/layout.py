"""Sizes of the videos in a prompt, and their positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from adatp.errors import InputError, Unsupported

NO_TEXT = "a prompt has no text after its video, so nothing can score the video's tokens"


@dataclass(frozen=True)
class Grid:
    """The tokens of a frame, in raster order.

    Attributes:
        rows: number of rows.
        columns: number of columns.
        newlines: whether the last column holds newline tokens, one at the end of every row.
    """

    rows: int
    columns: int
    newlines: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    @property
    def tokens(self) -> int:
        """Number of tokens in a frame, c."""
        return self.rows * self.columns

    @property
    def patch_columns(self) -> int:
        """Number of columns without newline tokens."""
        return self.columns - self.newlines

    @property
    def patches(self) -> int:
        """Number of tokens that are not newlines, P."""
        return self.rows * self.patch_columns

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"


@dataclass(frozen=True)
class VideoSize:
    """The size of one video in a prompt.

    Attributes:
        frames: number of frames that the decoder sees, n.
        grid: the tokens of each frame.
        temporal_patch: number of the video's own frames that the vision tower joins to one frame.
    """

    frames: int
    grid: Grid
    temporal_patch: int = 1

    @property
    def tokens(self) -> int:
        """Number of prunable tokens of the video."""
        return self.frames * self.grid.tokens

    def own_frames(self, total: int) -> list[slice]:
        """Return for each frame the video's own frames that it stands for. The last one may stand for fewer.

        Processors fill an incomplete temporal patch with copies of the last frame.

        Args:
            total: number of the video's own frames.

        Raises:
            InputError: so many frames do not make `frames` temporal patches.
        """
        begins = range(0, total, self.temporal_patch)
        if len(begins) != self.frames:
            raise InputError(
                f"{total} frames of a video make {len(begins)} frames of {self.temporal_patch} each, but the prompt "
                f"has {self.frames}: the processor must take all frames as they are"
            )
        return [slice(begin, min(begin + self.temporal_patch, total)) for begin in begins]


class Videos:
    """Base of the classes that describe a prompt: the sizes of its videos, in order."""

    videos: tuple[VideoSize, ...]

    @property
    def frames(self) -> int:
        """Number of frames of all videos, n."""
        return sum(video.frames for video in self.videos)

    @property
    def visual_tokens(self) -> int:
        """Number of prunable tokens in the prompt, N_v."""
        return sum(video.tokens for video in self.videos)

    @property
    def frame_tokens(self) -> list[int]:
        """Number of prunable tokens of each frame."""
        return [video.grid.tokens for video in self.videos for _ in range(video.frames)]

    @property
    def grid(self) -> Grid:
        """The grid of all frames.

        Raises:
            InputError: the videos have different grids, or there is no video.
        """
        grids = {video.grid: None for video in self.videos}
        if len(grids) != 1:
            raise InputError(f"the videos must have one grid, got {', '.join(map(str, grids)) or 'no video'}")
        return next(iter(grids))

    @property
    def tokens_per_frame(self) -> int:
        """Number of prunable tokens in every frame, c; see `grid` for videos with different grids."""
        return self.grid.tokens


@dataclass(frozen=True)
class PromptLayout(Videos):
    """Positions of the videos and of the text after them in one prompt.

    Attributes:
        length: number of tokens of the prompt, L.
        begins: index of the first token of each frame, over all videos; the tokens of a frame are consecutive.
        rows: `[T]` int64 on the host: the text tokens after the last video. Their attention scores the visual tokens.
        videos: sizes of the videos.
    """

    length: int
    begins: tuple[int, ...]
    rows: Tensor
    videos: tuple[VideoSize, ...]

    def check(self) -> None:
        """Raise Unsupported if there is no text that can score the video's tokens."""
        if self.rows.numel() == 0:
            raise Unsupported(NO_TEXT)

    @property
    def end(self) -> int:
        """Index of the first token after the last frame."""
        return self.begins[-1] + self.videos[-1].grid.tokens

    @property
    def visual(self) -> Tensor:
        """`[N_v]` int64 on the host: indices of the prunable tokens."""
        return torch.cat([visual.flatten() for visual in self.visual_of_videos()])

    def visual_of_videos(self) -> list[Tensor]:
        """Return for each video `[n, c]` int64 on the host: indices of the tokens of each of its frames."""
        first = torch.tensor(self.begins)[:, None]
        own = first.split([video.frames for video in self.videos])
        return [begin + torch.arange(video.grid.tokens) for begin, video in zip(own, self.videos, strict=True)]

    @property
    def unit(self) -> int:
        """The largest number of tokens that divides every frame; that of a frame if all grids are equal."""
        return math.gcd(*(video.grid.tokens for video in self.videos))

    @property
    def tokens_before(self) -> list[int]:
        """Number of prunable tokens before each frame."""
        return [0, *accumulate(self.frame_tokens)][:-1]


def by_layer(layers: int, whole: int, after: Mapping[int, int]) -> list[int]:
    """Return the number of tokens at the input of each of `layers` decoder layers.

    Args:
        layers: number of decoder layers.
        whole: number of tokens before the first cut.
        after: number of tokens after each cut, by the layer that follows the cut.
    """
    counts, current = [], whole
    for layer in range(layers):
        current = after.get(layer, current)
        counts.append(current)
    return counts


def runs(chosen: Tensor) -> list[tuple[int, int]]:
    """Return begin and end of every run of True in a `[L]` bool tensor."""
    edges = torch.nn.functional.pad(chosen.int(), (1, 1)).diff()
    begins, ends = ((edges == step).nonzero().flatten().tolist() for step in (1, -1))
    return list(zip(begins, ends, strict=True))
