"""VisionZip: keep the patches of a frame with the most attention in the vision tower, and merge the others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.checks.values import require
from adatp.layout import Grid
from adatp.methods.method import BeforeDecoder, Video, share_of
from adatp_kernels.precision import without_autocast


@dataclass(frozen=True, kw_only=True)
class VisionZip(BeforeDecoder):
    """Keeps T patches of a frame: first D dominant ones, then T - D contextual ones, both in raster order.

    Dominant patches are those with the highest saliency, ties to the earlier. Among the R other patches, those at
    0, s, 2s, ... with s = R // (T - D) are contextual. Every other patch joins the contextual patch with the most
    similar keys, ties to the earlier. A contextual patch becomes the sum of itself and the mean of the patches that
    join it.

    The authors' code is for CLIP. There the saliency is the attention of [CLS], and [CLS] itself is kept too. SigLIP
    has no [CLS], so here the saliency is the mean over all queries. Their code merges before the projector, this one
    after the projector and the pooling.

    If frames have newlines, one follows as many kept patches as a row had, and one follows the last kept patch.

    Attributes:
        keep: share of a frame's patches that are kept, in (0, 1]; T is rounded half up, at least 1.
        dominant: share of the kept patches that are dominant, in (0, 1]; D is rounded down.

    Raises:
        InputError: a setting is outside its range.
    """

    name: ClassVar[str] = "visionzip"
    source: ClassVar[str] = "arXiv 2412.04467"
    knob: ClassVar[str] = "keep"
    wants_tower: ClassVar[bool] = True

    keep: float = 0.25
    dominant: float = 27 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, "keep", self.keep, "in (0, 1]")
        require(0 < self.dominant <= 1, "dominant", self.dominant, "in (0, 1]")

    def count(self, frames: int, grid: Grid) -> int:
        left = self._left(grid.patches)
        return frames * (left + _runs(left, grid.patch_columns) * grid.newlines)

    def compress(self, video: Video) -> tuple[Tensor, Tensor]:
        assert video.saliency is not None
        assert video.keys is not None
        grid, (frames, size, _) = video.grid, video.tokens.shape
        tokens, device, across = video.tokens.flatten(0, 1), video.tokens.device, grid.patch_columns
        left = self._left(grid.patches)
        dominant = int(left * self.dominant)  # 27 / 32 is exact in binary, and so is the product

        first = torch.arange(frames, device=device)[:, None] * size
        patch = torch.arange(grid.patches, device=device)
        patches = first + patch // across * grid.columns + patch % across  # [n, P] indices among the video's tokens
        ranked = video.saliency.neg().argsort(dim=1, stable=True)
        chosen = patches.gather(1, ranked[:, :dominant].sort(dim=1).values)
        others = ranked[:, dominant:].sort(dim=1).values
        rest = patches.gather(1, others)

        index, values = [chosen], [tokens[chosen]]
        if dominant < left:
            keys = video.keys.take_along_dim(others[..., None], 1)
            with without_autocast(device):
                targets, merged = _merge(tokens[rest], keys, left - dominant)
            index.append(rest[:, targets])
            values.append(merged)
        if grid.newlines:
            newlines = first + torch.arange(_runs(left, across), device=device) * grid.columns + across
            index.append(newlines)
            values.append(tokens[newlines])
        order = _order(left, across, grid.newlines, device)
        return torch.cat(index, 1)[:, order].flatten(), torch.cat(values, 1)[:, order].flatten(0, 1)

    def _left(self, patches: int) -> int:
        return share_of(patches, self.keep)


def _merge(features: Tensor, keys: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Merge the patches of every frame that are not dominant into contextual patches.

    Args:
        features: `[n, R, D]` features of the patches that are not dominant.
        keys: `[n, R, d]` keys of these patches.
        number: number of contextual patches, from 1 to R.

    Returns:
        `[number]` int64 indices of the contextual patches among the R, and their `[n, number, D]` features.
    """
    patch = torch.arange(features.shape[1], device=features.device)
    step = features.shape[1] // number
    targets = patch[: number * step : step]
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    nearest = (unit @ unit[:, targets].transpose(1, 2)).argmax(2)
    apart = (patch[:, None] != targets).all(1)
    joins = ((nearest[..., None] == patch[:number]) & apart[:, None]).float()  # [n, R, number]
    # a product, not a scatter: on a GPU a scatter adds in no fixed order
    mean = joins.transpose(1, 2) @ features.float() / joins.sum(1).clamp(min=1)[..., None]
    return targets, (features[:, targets].float() + mean).to(features.dtype)


def _runs(left: int, across: int) -> int:
    """Return the number of runs of `across` patches, the last of which may be shorter; each ends with a newline."""
    return -(-left // across)


def _order(left: int, across: int, newlines: bool, device: torch.device) -> Tensor:
    """Return int64 indices that put `left` patches, followed by their newlines, into the order of a frame."""
    if not newlines:
        return torch.arange(left, device=device)
    token = torch.arange(left + _runs(left, across), device=device)
    run = token // (across + 1)
    is_newline = (token % (across + 1) == across) | (token == token[-1])
    return torch.where(is_newline, left + run, token - run)
