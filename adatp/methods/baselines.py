"""What any method has to beat: tokens at random, at even distances or averaged; and no pruning at all."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.methods.method import BeforeDecoder, BetweenLayers, Video, require, share_of
from adatp.tensors.transfer import send


@dataclass(frozen=True, kw_only=True)
class _Share(BeforeDecoder):
    """Leaves a share of the tokens.

    Attributes:
        keep: the share, in (0, 1].
    """

    knob: ClassVar[str] = "keep"

    keep: float = 0.25

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")

    def count(self, frames: int, grid: tuple[int, int]) -> int:
        """M, rounded half up, at least 1."""
        return share_of(frames * grid[0] * grid[1], self.keep)


@dataclass(frozen=True, kw_only=True)
class Random(_Share):
    """M of all tokens, in order.

    Attributes:
        keep: their share, in (0, 1].
        seed: of the draw, from 0 to 2**63 - 1; every device and every video of a size draws the same.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = isinstance(self.seed, int) and 0 <= self.seed < 2**63
        require(fits, "seed", self.seed, "an integer from 0 to 2**63 - 1")

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        tokens = video.tokens.flatten(0, 1)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(tokens), generator=generator)[: self.count(len(video.tokens), video.grid)]
        index = send(drawn.sort().values, tokens.device)
        return index, tokens[index]


@dataclass(frozen=True, kw_only=True)
class Uniform(_Share):
    """M of all N tokens at even distances: those at floor(i * N / M)."""

    name: ClassVar[str] = "uniform"

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        tokens = video.tokens.flatten(0, 1)
        count = self.count(len(video.tokens), video.grid)
        index = torch.arange(count, device=tokens.device) * len(tokens) // count
        return index, tokens[index]


@dataclass(frozen=True, kw_only=True)
class Pool(_Share):
    """Every frame average-pooled to a smaller grid, in which a newline again ends every row where it did before.

    Of the grids with sides of at most 3 to 2 it is the one with the number of patches nearest to keep * P; of two as
    near the squarer, then the smaller. A token stands for the one in the middle of its window, a newline for the one in
    the middle row.

    Attributes:
        keep: share of a frame's patches, in (0, 1].
    """

    name: ClassVar[str] = "pool"

    def count(self, frames: int, grid: tuple[int, int]) -> int:
        rows, columns = grid
        down, across = self._shape(rows)
        return frames * down * (across + columns - rows)

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        (rows, columns), (frames, size, _) = video.grid, video.tokens.shape
        device = video.tokens.device
        cells = video.tokens.unflatten(1, video.grid)
        shape = self._shape(rows)
        pooled = torch.nn.functional.adaptive_avg_pool2d(cells[:, :, :rows].movedim(-1, 1).float(), shape)
        row, column = (_middles(rows, side, device) for side in shape)
        newline = torch.arange(rows, columns, device=device)  # the newlines' column; empty where there is none
        values = torch.cat([pooled.movedim(1, -1).to(cells), cells[:, row[:, None], newline]], 2)
        first = torch.arange(frames, device=device) * size
        index = first[:, None, None] + (row * columns)[:, None] + torch.cat([column, newline])
        return index.flatten(), values.flatten(0, 2)

    def _shape(self, rows: int) -> tuple[int, int]:
        """Rows and columns of the smaller grid."""
        sides = range(1, rows + 1)
        shapes = [(r, q) for r in sides for q in sides if 2 * max(r, q) <= 3 * min(r, q)]

        def rank(shape: tuple[int, int]) -> tuple[float, ...]:
            r, q = shape
            return abs(r * q - self.keep * rows * rows), max(shape) / min(shape), r * q, r

        return min(shapes, key=rank)


def _middles(side: int, windows: int, device: torch.device) -> Tensor:
    """`[windows]` int64 of `side`: the middle of every window of an adaptive pooling, the earlier of two.

    All different: with no more windows than places, each window begins and ends behind the one before it.
    """
    window = torch.arange(windows, device=device)
    begin, end = window * side // windows, -(-(window + 1) * side // windows)
    return (begin + end - 1) // 2


@dataclass(frozen=True, kw_only=True)
class Unpruned(BetweenLayers):
    """Leaves every token."""

    name: ClassVar[str] = "none"

    def cuts(self, layers: int) -> dict[int, float]:
        return {}

    def tokens(self, ratio: float, visual_tokens: int) -> int:
        return visual_tokens
