import pytest
import torch
from transformers import Qwen2Config
from transformers.masking_utils import create_causal_mask

from adatp.tensors.masks import causal_mask


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_see_what_transformers_lets_them_see(attention, dtype):
    hidden = torch.zeros(1, 4, 8, dtype=dtype)
    config = Qwen2Config(num_hidden_layers=1)
    config._attn_implementation = attention
    expected = create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    ours = causal_mask(hidden, attention)
    if expected is None:
        assert ours is None
    else:
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
def test_the_device_is_not_read(attention):
    """Tensors on the meta device have nothing to read."""
    mask = causal_mask(torch.zeros(1, 4, 8, device="meta"), attention)
    assert mask is None or mask.device.type == "meta"
