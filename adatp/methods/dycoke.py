"""DyCoke: tokens that change little over time are merged, and decoding attends to a share of the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.methods.method import BeforeDecoder, SparseDecoding, Video, require
from adatp.tensors.transfer import send


@dataclass(frozen=True, kw_only=True)
class DyCoke(BeforeDecoder):
    """Temporal token merging before the decoder, and sparse decoding.

    Every odd frame is compared with the one before it, then every frame i + 2, for i = 0, 4, ... below n - 4, with
    frame i. Of a compared frame's c tokens, newlines included, the int((1 - k) * c) least similar to the one at the
    same place stay. As in the authors' code they stand in the order of rising similarity, not in that of the frame.

    Their code loses the last of an odd number of frames and fails on fewer than five; here that frame stays whole, and
    the second comparison has nothing to compare.

    In a step of decoding, the newest token's attention in layer L - 1, averaged over heads, ranks the visual tokens
    but the last, W of them, and layers from L on attend to the int((1 - P) * W) highest and to that last one. By the
    paper a choice stands while that attention is like the one that made it, with a cosine of at least 0.9; by their
    code, a step whose attention is like the last step's attends to everything again.

    Attributes:
        k: share of a compared frame's tokens that are merged away, in [0, 1].
        layer: L, the first layer that decodes with fewer visual tokens, >= 1.
        p: P, the share of them that it leaves out, in [0, 1); 0 leaves decoding as it is.

    Raises:
        ValueError: a field outside its range.
    """

    name: ClassVar[str] = "dycoke"
    source: ClassVar[str] = "arXiv 2411.15024"
    knob: ClassVar[str] = "k"

    k: float = 0.7
    layer: int = 3
    p: float = 0.7

    def __post_init__(self) -> None:
        require(0 <= self.k <= 1, "k", self.k, "in [0, 1]")
        require(self.layer >= 1, "layer", self.layer, "at least 1: the layer before it says which tokens")
        require(0 <= self.p < 1, "p", self.p, "in [0, 1)")

    @property
    def decoding(self) -> SparseDecoding | None:
        return SparseDecoding(self.layer, 1 - self.p) if self.p > 0 else None

    def check(self, layers: int) -> None:
        fits = self.layer < layers or self.decoding is None
        require(fits, "layer", self.layer, f"a layer of the model, at most {layers - 1}")

    def count(self, frames: int, grid: tuple[int, int]) -> int:
        size = grid[0] * grid[1]
        compared = len(_compared(frames))
        return (frames - compared) * size + compared * self._kept(size)

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        tokens = video.tokens
        frames, size, _ = tokens.shape
        compared = _compared(frames)
        pairs = torch.tensor([list(compared), list(compared.values())], dtype=torch.int64)
        frame, earlier = send(pairs, tokens.device)

        order = torch.arange(frames * size, device=tokens.device).view(frames, size)
        rising = _cosine(tokens[frame].float(), tokens[earlier].float()).argsort(dim=1, stable=True)
        order = order.index_copy(0, frame, order[frame].gather(1, rising))
        sizes = [self._kept(size) if i in compared else size for i in range(frames)]
        index = torch.cat([own[:kept] for own, kept in zip(order, sizes, strict=True)])
        return index, tokens.flatten(0, 1)[index]

    def _kept(self, size: int) -> int:
        return int((1 - self.k) * size)


def _compared(frames: int) -> dict[int, int]:
    """The frames that lose tokens, each with the earlier one that it is compared with."""
    return {i: i - 1 for i in range(1, frames, 2)} | {i: i - 2 for i in range(2, frames - 2, 4)}


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of `[..., D]` float32; 0 where one is zero."""
    # the root of a product, not the product of roots: so equal tokens have a cosine of exactly 1
    norms = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return (a * b).sum(-1) / norms.clamp(min=torch.finfo(a.dtype).tiny)
