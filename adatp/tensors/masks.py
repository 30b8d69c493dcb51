"""Attention masks of pruned layers, in the form each attention implementation takes."""

import torch
from torch import Tensor


def causal_mask(hidden: Tensor, attention: str) -> Tensor | None:
    """What the implementation makes a causal mask of, where nothing is padded.

    Args:
        hidden: `[1, W, D]` what enters the layer; for its width, dtype and device.
        attention: name of the attention implementation.

    Returns:
        `[1, 1, W, W]` to be added for eager; None for the others, which are causal by themselves.
    """
    if attention != "eager":
        return None
    width = hidden.shape[1]
    return additive(torch.ones(1, 1, width, width, dtype=torch.bool, device=hidden.device).tril(), hidden.dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as one to be added to logits: 0 where visible, the lowest finite number elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
