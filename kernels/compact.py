"""Gather the tokens that a cut keeps: their hidden states, and all tensors that belong to them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adatp_kernels.dispatch import Impl, resolve
from adatp_kernels.select import PADDING


def compact(keep: Tensor, counts: Sequence[int], tensors: Sequence[Tensor], *, impl: Impl = "auto") -> list[Tensor]:
    """Return the kept tokens of every tensor, in their original order.

    Samples may keep different numbers of tokens. So the result is as long as the largest number, and shorter samples
    are padded on the left. The last token of every sample is then in the last slot.

    Args:
        keep: `[B, L]` bool.
        counts: number of kept tokens of each sample, `keep[b].sum()`, known on the host.
        tensors: the tensors, each `[B, L, ...]` of a floating or a signed integer dtype.
        impl: see `adatp_kernels.dispatch`.

    Returns:
        For each tensor `[B, max(counts), ...]`. Padding slots hold 0 in floating tensors, `PADDING` in integer ones.

    Raises:
        ValueError: the shapes do not fit together.
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
    """Run `compact` in PyTorch: a prefix sum finds the slot of every kept token, and one gather a tensor moves them."""
    batch, length = keep.shape
    width = max(counts)
    rank = keep.cumsum(1)
    slot = rank - 1 + (width - rank[:, -1:])
    # dropped tokens go to an extra last slot, which is cut off
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
