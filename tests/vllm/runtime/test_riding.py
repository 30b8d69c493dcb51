"""Features of frames that ride with the embeddings of a video."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from adatp.vllm.runtime.riding import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(deadline=None)
@given(frames=st.integers(1, 5), tokens=st.integers(1, 9), width=st.integers(1, 40))
def test_every_bit_arrives(dtype, frames, tokens, width):
    torch.manual_seed(0)
    embeddings = torch.randn(frames, tokens, 6).to(dtype)
    features = torch.randint(-(2**31), 2**31, (frames, width), dtype=torch.int64).int().view(torch.float32)
    riding = pack(embeddings, features)
    assert torch.equal(riding[..., :6], embeddings)
    assert torch.equal(unpack(riding[..., 6:], width).view(torch.int32), features.view(torch.int32))
