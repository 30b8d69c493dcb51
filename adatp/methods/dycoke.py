"""DyCoke: merge the tokens that change little over time, and attend to a share of the others in decoding."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.checks.values import require
from adatp.layout import Grid
from adatp.methods.method import BeforeDecoder, SparseDecoding, Video
from adatp.tensors.transfer import send


@dataclass(frozen=True, kw_only=True)
class DyCoke(BeforeDecoder):
    """Temporal token merging before the decoder, and sparse decoding.

    First, every odd frame is compared with the frame before it. Then, for i = 0, 4, ... below n - 4, frame i + 2 is
    compared with frame i. A compared frame has c tokens, including newlines. It keeps the int((1 - k) * c) tokens that
    are least similar to the token at the same place of the other frame. As in the authors' code, the kept tokens are
    in the order of rising similarity, not in the order of the frame.

    The authors' code loses the last frame if the number of frames is odd, and fails on fewer than five frames. Here the
    last frame keeps all its tokens, and with few frames the second comparison is left out.

    In a decode step, the attention of the newest token in layer L - 1, averaged over heads, ranks all visual tokens
    except the last one. Let W be their number. Layers from L on attend to the int((1 - P) * W) highest tokens and to
    the last one. In the paper, a choice is kept while the attention stays similar to the attention that made it, with a
    cosine of at least 0.9. In the authors' code, and here, a step attends to all tokens if its attention is that
    similar to the attention of the step before.

    Attributes:
        k: share of a compared frame's tokens that are merged away, in [0, 1].
        layer: L, the first layer that attends to fewer visual tokens in decoding, >= 1.
        p: P, the share of the visual tokens that decoding leaves out, in [0, 1); with 0 decoding is unchanged.

    Raises:
        InputError: a setting is outside its range.
    """

    name: ClassVar[str] = "dycoke"
    source: ClassVar[str] = "arXiv 2411.15024"
    knob: ClassVar[str] = "k"

    k: float = 0.7
    layer: int = 3
    p: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.k <= 1, "k", self.k, "in [0, 1]")
        require(self.layer >= 1, "layer", self.layer, "at least 1: the layer before it chooses the tokens")
        require(0 <= self.p < 1, "p", self.p, "in [0, 1)")

    @property
    def decoding(self) -> SparseDecoding | None:
        return SparseDecoding(self.layer, 1 - self.p) if self.p > 0 else None

    def check(self, layers: int) -> None:
        fits = self.layer < layers or self.decoding is None
        require(fits, "layer", self.layer, f"a layer of the model, at most {layers - 1}")

    def count(self, frames: int, grid: Grid) -> int:
        size = grid.tokens
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
    """Return the frames that lose tokens, each with the earlier frame that it is compared with."""
    return {i: i - 1 for i in range(1, frames, 2)} | {i: i - 2 for i in range(2, frames - 2, 4)}


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine similarity of `[..., D]` float32 tensors; it is 0 if one of the two vectors is zero."""
    # the root of a product, not the product of roots: then equal tokens have a cosine of exactly 1
    norms = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return (a * b).sum(-1) / norms.clamp(min=torch.finfo(a.dtype).tiny)
