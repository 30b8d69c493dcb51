"""VisionZip: the patches of a frame that the vision tower looks at most, and the others merged into a few."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.methods.method import BeforeDecoder, Video, require, share_of


@dataclass(frozen=True, kw_only=True)
class VisionZip(BeforeDecoder):
    """A frame's T patches: D dominant ones, then T - D contextual ones, both in raster order.

    Dominant are those with the highest saliency, ties to the earlier. Of the R others, those at 0, s, 2s, ... with
    s = R // (T - D) are contextual: each is the sum of itself and the mean of what joins it. Every other patch joins
    the contextual one with the most similar keys, ties to the earlier.

    The authors' code is for CLIP. There the saliency is the attention of [CLS], which stays as well; SigLIP has none,
    so here it is the mean over all queries. Their code also merges before the projector, this after it and the pooling.

    Where frames have newlines, one follows every `rows` patches that are left and the last of them.

    Attributes:
        keep: share of a frame's patches that are left, in (0, 1]; T is rounded half up, at least 1.
        dominant: share of those that are dominant, in (0, 1]; D is rounded down.

    Raises:
        ValueError: a field outside its range.
    """

    name: ClassVar[str] = "visionzip"
    source: ClassVar[str] = "arXiv 2412.04467"
    knob: ClassVar[str] = "keep"
    wants_tower: ClassVar[bool] = True

    keep: float = 0.25
    dominant: float = 27 / 32

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")
        require(0 < self.dominant <= 1, "dominant", self.dominant, "in (0, 1]")

    def count(self, frames: int, grid: tuple[int, int]) -> int:
        rows, columns = grid
        left = self._left(rows * rows)
        return frames * (left + _runs(left, rows) * (columns > rows))

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        assert video.saliency is not None
        assert video.keys is not None
        (rows, columns), (frames, size, _) = video.grid, video.tokens.shape
        tokens, device = video.tokens.flatten(0, 1), video.tokens.device
        left = self._left(rows * rows)
        dominant = int(left * self.dominant)  # 27 / 32 is exact in binary, so its product is

        first = torch.arange(frames, device=device)[:, None] * size
        patch = torch.arange(rows * rows, device=device)
        patches = first + patch // rows * columns + patch % rows  # [n, P] of the video's tokens
        ranked = video.saliency.neg().argsort(dim=1, stable=True)
        chosen = patches.gather(1, ranked[:, :dominant].sort(dim=1).values)
        others = ranked[:, dominant:].sort(dim=1).values
        rest = patches.gather(1, others)

        index, values = [chosen], [tokens[chosen]]
        if dominant < left:
            keys = video.keys.take_along_dim(others[..., None], 1)
            targets, merged = _merge(tokens[rest], keys, left - dominant)
            index.append(rest[:, targets])
            values.append(merged)
        if columns > rows:
            newlines = first + torch.arange(_runs(left, rows), device=device) * columns + rows
            index.append(newlines)
            values.append(tokens[newlines])
        order = _order(left, rows, columns > rows, device)
        return torch.cat(index, 1)[:, order].flatten(), torch.cat(values, 1)[:, order].flatten(0, 1)

    def _left(self, patches: int) -> int:
        return share_of(patches, self.keep)


def _merge(features: Tensor, keys: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The contextual patches of every frame.

    Args:
        features: `[n, R, D]` of the patches that are not dominant.
        keys: `[n, R, d]` theirs.
        number: of contextual patches, from 1 to R.

    Returns:
        `[number]` int64 which of the R they are, and `[n, number, D]` what they are.
    """
    patch = torch.arange(features.shape[1], device=features.device)
    step = features.shape[1] // number
    targets = patch[: number * step : step]
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    nearest = (unit @ unit[:, targets].transpose(1, 2)).argmax(2)
    apart = (patch[:, None] != targets).all(1)
    joins = ((nearest[..., None] == patch[:number]) & apart[:, None]).float()  # [n, R, number]
    # a product, not a scatter: on a GPU that would add in an order of its own
    mean = joins.transpose(1, 2) @ features.float() / joins.sum(1).clamp(min=1)[..., None]
    return targets, (features[:, targets].float() + mean).to(features.dtype)


def _runs(left: int, rows: int) -> int:
    """Runs of `rows` patches, the last of which may be shorter: as many as there are newlines."""
    return -(-left // rows)


def _order(left: int, rows: int, newlines: bool, device: torch.device) -> Tensor:
    """Int64 places of a frame's tokens in `left` patches followed by their newlines, as they are to stand."""
    if not newlines:
        return torch.arange(left, device=device)
    token = torch.arange(left + _runs(left, rows), device=device)
    run = token // (rows + 1)
    is_newline = (token % (rows + 1) == rows) | (token == token[-1])
    return torch.where(is_newline, left + run, token - run)
