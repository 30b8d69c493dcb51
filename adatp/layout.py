"""Positions of the videos in a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adatp.errors import Unsupported


class VideoGrid:
    """Base of the classes that describe a prompt: its videos, and the grid of their frames' tokens.

    Frames are square. If there is one column more than rows, it holds newline tokens.
    """

    videos: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def frames(self) -> int:
        """Number of frames of all videos, n."""
        return sum(self.videos)

    @property
    def tokens_per_frame(self) -> int:
        """Number of prunable tokens in a frame, c."""
        return self.grid[0] * self.grid[1]

    @property
    def visual_tokens(self) -> int:
        """Number of prunable tokens in the prompt, N_v."""
        return self.frames * self.tokens_per_frame


@dataclass(frozen=True)
class PromptLayout(VideoGrid):
    """Positions of the videos and of the text after them in one prompt.

    Attributes:
        length: number of tokens of the prompt, L.
        begins: index of the first token of each frame, over all videos; the c tokens of a frame are consecutive.
        rows: `[T]` int64 on the host: the text tokens after the last video. Their attention scores the visual tokens.
        videos: number of frames of each video.
        grid: rows and columns of a frame's tokens; their product is c.
    """

    length: int
    begins: tuple[int, ...]
    rows: Tensor
    videos: tuple[int, ...]
    grid: tuple[int, int]

    def check(self) -> None:
        """Raise Unsupported if there is no text that can score the video's tokens."""
        if self.rows.numel() == 0:
            raise Unsupported("a prompt has no text after its video, so nothing can score the video's tokens")

    @property
    def end(self) -> int:
        """Index of the first token after the last frame."""
        return self.begins[-1] + self.tokens_per_frame

    @property
    def visual(self) -> Tensor:
        """`[N_v]` int64 on the host: indices of the prunable tokens."""
        return (torch.tensor(self.begins)[:, None] + torch.arange(self.tokens_per_frame)).flatten()


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
