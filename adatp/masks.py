"""Attention masks of pruned layers, in the form each attention implementation takes.

A prefill's are made here rather than by transformers, which would read a padded batch's mask from the device at every
cut.
"""

import torch
from torch import Tensor


def prefill_mask(kept: Tensor | None, hidden: Tensor, attention: str) -> Tensor | None:
    """Causal, without left padding.

    Args:
        kept: `[B, W]` bool, False in padding; None where no sample is padded.
        hidden: `[B, W, D]` what enters the layer; for its width, dtype and device.
        attention: name of the attention implementation.

    Returns:
        What the implementation makes a causal mask of: for flash attention `kept`; for sdpa None or `[B, 1, W, W]`
        bool, True where visible; for eager `[B or 1, 1, W, W]` to be added. Padding sees itself, so no row is empty.
    """
    if "flash" in attention or (kept is None and attention == "sdpa"):
        return kept
    width = hidden.shape[1]
    visible = torch.ones(1, 1, width, width, dtype=torch.bool, device=hidden.device).tril()
    if kept is not None:
        itself = torch.eye(width, dtype=torch.bool, device=hidden.device)
        visible = visible & (kept[:, None, None, :] | itself)
    if attention == "sdpa":
        return visible
    return additive(visible, hidden.dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as one to be added to logits: 0 where visible, the lowest finite number elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
