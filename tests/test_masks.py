import pytest
import torch
from transformers import Qwen2Config
from transformers.masking_utils import create_causal_mask

from adatp.masks import prefill_mask

KEPT = torch.tensor([[True, True, True, True], [False, False, True, True]])


def theirs(kept, hidden, attention):
    config = Qwen2Config(num_hidden_layers=1)
    config._attn_implementation = attention
    return create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=kept, past_key_values=None)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [None, KEPT], ids=["unpadded", "padded"])
def test_real_tokens_see_what_transformers_lets_them_see(attention, dtype, kept):
    hidden = torch.zeros(2, 4, 8, dtype=dtype)
    ours, expected = prefill_mask(kept, hidden, attention), theirs(kept, hidden, attention)
    if expected is None or expected.ndim == 2:
        assert ours is expected or torch.equal(ours, expected)
        return
    assert ours.dtype == expected.dtype
    ours, expected = ours.expand(2, -1, -1, -1), expected.expand(2, -1, -1, -1)
    for b in range(2):
        real = KEPT[b] if kept is not None else torch.ones(4, dtype=torch.bool)
        assert torch.equal(ours[b, 0, real], expected[b, 0, real])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_row_is_empty(attention):
    mask = prefill_mask(KEPT, torch.zeros(2, 4, 8), attention)
    visible = mask if mask.dtype == torch.bool else mask == 0
    assert visible.any(-1).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_the_device_is_not_read(attention):
    """Tensors on the meta device have nothing to read."""
    mask = prefill_mask(KEPT.to("meta"), torch.zeros(2, 4, 8, device="meta"), attention)
    assert mask.device.type == "meta"
