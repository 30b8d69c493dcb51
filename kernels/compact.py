"""Gather what survives a cut: hidden states and all that travels with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adatp_kernels.dispatch import Impl, resolve
from adatp_kernels.select import PADDING


def compact(keep: Tensor, counts: Sequence[int], tensors: Sequence[Tensor], *, impl: Impl = "auto") -> list[Tensor]:
    """The kept tokens of every tensor, in their original order.

    Samples keep different counts, so the result is as long as the largest and padded on the left, which leaves the
    last token of every sample in the last slot.

    Args:
        keep: `[B, L]` bool.
        counts: kept tokens of each sample, `keep[b].sum()`, known on the host.
        tensors: each `[B, L, ...]`, of a floating or a signed integer dtype.
        impl: see `adatp_kernels.dispatch`.

    Returns:
        For each tensor `[B, max(counts), ...]`. Padding slots hold 0 in floating tensors, `PADDING` in integer ones.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if keep.ndim != 2 or keep.shape[0] < 1 or len(counts) != keep.shape[0]:
        raise ValueError(
            f"keep must be [B, L], B >= 1, with a count per sample, got {tuple(keep.shape)} and {len(counts)} counts"
        )
    shape = keep.shape
    for tensor in tensors:
        if tensor.shape[:2] != shape:
            raise ValueError(f"every tensor must begin with {tuple(shape)}, got {tuple(tensor.shape)}")
    if resolve(impl, keep.device) == "triton":
        from adatp_kernels.compact_triton import compact_triton

        moved: list[Tensor] = compact_triton(keep, counts, tensors)
        return moved
    return compact_reference(keep, counts, tensors)


def compact_reference(keep: Tensor, counts: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    """`compact` in PyTorch: a prefix sum finds every survivor's slot, one gather a tensor moves them."""
    batch, length = keep.shape
    width = max(counts)
    rank = keep.cumsum(1)
    slot = rank - 1 + (width - rank[:, -1:])
    # what is dropped goes to one slot too many, which is cut off
    slot = torch.where(keep, slot, width)
    place = torch.arange(batch * length, device=keep.device).view(batch, length)
    source = torch.zeros(batch, width + 1, dtype=torch.int64, device=keep.device).scatter_(1, slot, place)
    source = source[:, :width]  # [B, W] index into the flattened [B * L]

    index = source.flatten()
    gathered = [t.flatten(0, 1).index_select(0, index).unflatten(0, (batch, width)) for t in tensors]
    if min(counts) == width:
        return gathered
    padding = torch.arange(width, device=keep.device) < width - rank[:, -1:]  # [B, W]
    for tensor in gathered:
        fill = 0.0 if tensor.is_floating_point() else PADDING
        tensor.masked_fill_(padding.view(batch, width, *[1] * (tensor.ndim - 2)), fill)
    return gathered
