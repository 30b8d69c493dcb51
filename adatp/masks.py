"""Attention masks of pruned layers in a prefill, in the form each attention implementation takes.

Made here rather than by transformers, which would read a padded batch's mask from the device at every cut.
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
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(~visible, lowest)
