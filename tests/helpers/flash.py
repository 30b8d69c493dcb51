"""FlashAttention 2 as transformers calls it, in PyTorch: for the masks and positions it is given, not for its speed."""

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def flash_attention(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
    """Causal from the bottom right; `attention_mask` is `[B, K]` padding or None, never 4-D.

    Gaps in `position_ids` would be read as borders of packed sequences, so they are refused.
    """
    batch, heads, new, _ = query.shape
    length = key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(batch, length, dtype=torch.bool)
    assert attention_mask.shape == (batch, length), "flash attention takes one mask entry a key"
    if position_ids is not None and new > 1:
        assert position_ids.shape[-1] == new, "position_ids of other tokens"
        assert (position_ids.diff(dim=-1) <= 1).all(), "gaps in position_ids mean packed sequences"
    repeats = heads // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    visible = torch.ones(new, length, dtype=torch.bool).tril(length - new) & attention_mask.bool()[:, None, None]
    weights = (query @ key.transpose(2, 3) * scaling).masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights.nan_to_num(0.0) @ value).transpose(1, 2), None


def use_flash(model):
    """Make the language model of `model` run on the emulation, under FlashAttention's name."""
    ALL_ATTENTION_FUNCTIONS._global_mapping["flash_attention_2"] = flash_attention
    model.model.language_model.config._attn_implementation = "flash_attention_2"
