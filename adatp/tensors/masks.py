"""Attention masks of pruned layers, in the form that each attention implementation takes."""

import torch
from torch import Tensor


def causal_mask(hidden: Tensor, attention: str) -> Tensor | None:
    """Return the causal mask of a prompt without padding, as the attention implementation takes it.

    Args:
        hidden: `[1, W, D]` input of the layer; gives the width, the dtype and the device.
        attention: name of the attention implementation.

    Returns:
        `[1, 1, W, W]` additive mask for eager attention; None for the others, which are causal without a mask.
    """
    if attention != "eager":
        return None
    width = hidden.shape[1]
    return additive(torch.ones(1, 1, width, width, dtype=torch.bool, device=hidden.device).tril(), hidden.dtype)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a bool mask to an additive one: 0 where `visible` is True, the lowest finite number elsewhere."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
