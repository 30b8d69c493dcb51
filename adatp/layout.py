"""Where a prompt's videos are."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adatp.errors import Unsupported


class VideoGrid:
    """The videos of a prompt and the grid of their frames' tokens, as what describes a prompt has them.

    Frames are square: a column more than there are rows holds newlines.
    """

    videos: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def frames(self) -> int:
        """Frames of all videos, n."""
        return sum(self.videos)

    @property
    def tokens_per_frame(self) -> int:
        """Prunable tokens of a frame, c."""
        return self.grid[0] * self.grid[1]

    @property
    def visual_tokens(self) -> int:
        """N_v, the prunable tokens."""
        return self.frames * self.tokens_per_frame


@dataclass(frozen=True)
class PromptLayout(VideoGrid):
    """Where the videos and the text after them stand in a prompt.

    Attributes:
        length: tokens of the prompt, L.
        begins: the first token of each frame, counted through all videos; the c tokens of a frame stand in a row.
        rows: `[T]` int64 on the host: the text tokens after the last video, whose attention scores the visual ones.
        videos: frames of each video.
        grid: rows and columns of a frame's tokens; their product is c.
    """

    length: int
    begins: tuple[int, ...]
    rows: Tensor
    videos: tuple[int, ...]
    grid: tuple[int, int]

    def check(self) -> None:
        """Raise a ValueError where nothing scores the video's tokens."""
        if self.rows.numel() == 0:
            raise Unsupported("a prompt has no text after its video, so nothing can score the video's tokens")

    @property
    def end(self) -> int:
        """The first token after the last frame."""
        return self.begins[-1] + self.tokens_per_frame

    @property
    def visual(self) -> Tensor:
        """`[N_v]` int64 on the host: the prunable tokens."""
        return (torch.tensor(self.begins)[:, None] + torch.arange(self.tokens_per_frame)).flatten()


def by_layer(layers: int, whole: int, after: Mapping[int, int]) -> list[int]:
    """Tokens at the input of each of `layers`: the `whole`, and from a layer with a cut in front of it what is left."""
    counts, current = [], whole
    for layer in range(layers):
        current = after.get(layer, current)
        counts.append(current)
    return counts
