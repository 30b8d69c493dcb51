"""The simple methods that others are compared with: random, evenly spaced or averaged tokens, and no pruning."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.checks.values import require
from adatp.layout import Grid
from adatp.methods.method import BeforeDecoder, BetweenLayers, Video, share_of
from adatp.tensors.transfer import send


@dataclass(frozen=True, kw_only=True)
class _Share(BeforeDecoder):
    """Keeps a share of the tokens.

    Attributes:
        keep: the share, in (0, 1].
    """

    knob: ClassVar[str] = "keep"

    keep: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")

    def count(self, frames: int, grid: Grid) -> int:
        """Return M, the number of tokens that are kept: the share, rounded half up, at least 1."""
        return share_of(frames * grid.tokens, self.keep)


@dataclass(frozen=True, kw_only=True)
class Random(_Share):
    """Keeps M random tokens, in their order.

    Attributes:
        keep: share of the tokens that is kept, in (0, 1].
        seed: seed of the draw, from 0 to 2**63 - 1. The draw is the same on every device, and for all videos of the
            same size.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seed >= 0, "seed", self.seed, "a whole number from 0 to 2**63 - 1")

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        tokens = video.tokens.flatten(0, 1)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(tokens), generator=generator)[: self.count(len(video.tokens), video.grid)]
        index = send(drawn.sort().values, tokens.device)
        return index, tokens[index]


@dataclass(frozen=True, kw_only=True)
class Uniform(_Share):
    """Keeps M of all N tokens at even distances: the tokens at floor(i * N / M)."""

    name: ClassVar[str] = "uniform"

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        tokens = video.tokens.flatten(0, 1)
        count = self.count(len(video.tokens), video.grid)
        index = torch.arange(count, device=tokens.device) * len(tokens) // count
        return index, tokens[index]


@dataclass(frozen=True, kw_only=True)
class Pool(_Share):
    """Average-pools every frame to a smaller grid; if rows ended with a newline, the rows of the new grid do so too.

    The shares of the rows and of the columns that the new grid has differ by at most 3 to 2. Among these grids the
    number of patches is the nearest to keep * P; if two are equally near, the one whose shares are closer is taken,
    then the smaller one. A pooled token stands for the token in the middle of its window, a newline for the newline of
    the window's middle row.

    Attributes:
        keep: share of a frame's patches, in (0, 1].
    """

    name: ClassVar[str] = "pool"

    def count(self, frames: int, grid: Grid) -> int:
        down, across = self._shape(grid)
        return frames * down * (across + grid.newlines)

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        grid, (frames, size, _) = video.grid, video.tokens.shape
        device, patches = video.tokens.device, (grid.rows, grid.patch_columns)
        cells = video.tokens.unflatten(1, grid.shape)
        shape = self._shape(grid)
        pooled = torch.nn.functional.adaptive_avg_pool2d(cells[:, :, : patches[1]].movedim(-1, 1).float(), shape)
        row, column = (_middles(side, windows, device) for side, windows in zip(patches, shape, strict=True))
        newline = torch.arange(
            patches[1], grid.columns, device=device
        )  # the column of newlines; empty if there is none
        values = torch.cat([pooled.movedim(1, -1).to(cells), cells[:, row[:, None], newline]], 2)
        first = torch.arange(frames, device=device) * size
        index = first[:, None, None] + (row * grid.columns)[:, None] + torch.cat([column, newline])
        return index.flatten(), values.flatten(0, 2)

    def _shape(self, grid: Grid) -> tuple[int, int]:
        """Return the rows and columns of the smaller grid, without newlines."""
        rows, columns = grid.rows, grid.patch_columns
        shapes = [(r, q) for r in range(1, rows + 1) for q in range(1, columns + 1)]

        def distortion(shape: tuple[int, int]) -> float:
            shares = shape[0] * columns, shape[1] * rows  # both times rows * columns
            return max(shares) / min(shares)

        def rank(shape: tuple[int, int]) -> tuple[float, ...]:
            r, q = shape
            return abs(r * q - self.keep * rows * columns), distortion(shape), r * q, r

        return min((shape for shape in shapes if distortion(shape) <= 1.5), key=rank)


def _middles(side: int, windows: int, device: torch.device) -> Tensor:
    """Return `[windows]` int64: the middle of every window of an adaptive pooling of `side`, the earlier of two.

    All are different, because there are at most as many windows as places: each window begins and ends after the one
    before it.
    """
    window = torch.arange(windows, device=device)
    begin, end = window * side // windows, -(-(window + 1) * side // windows)
    return (begin + end - 1) // 2


@dataclass(frozen=True, kw_only=True)
class Unpruned(BetweenLayers):
    """Keeps every token."""

    name: ClassVar[str] = "none"

    def cuts(self, layers: int) -> dict[int, float]:
        return {}

    def tokens(self, ratio: float, visual_tokens: int) -> int:
        return visual_tokens
