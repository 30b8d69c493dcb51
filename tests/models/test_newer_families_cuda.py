"""The newer families on a GPU: the kernels keep what the reference keeps on the CPU."""

import pytest
import torch
from decoding import by_generate
from small_models import KINDS, make_model
from small_prompts import Video, make_inputs, make_tokenizer, user_turn

import adatp

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]


@torch.no_grad()
@pytest.mark.parametrize(
    "method", [adatp.AdaTP(global_debias=False), adatp.FastV(), adatp.Uniform()], ids=lambda method: method.name
)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_keep_what_the_reference_keeps(kind, method):
    tokenizer = make_tokenizer(kind)
    wide = Video(5) if kind.startswith("internvl") else Video(5, 8, 12)
    prompts = [user_turn(Video(7), "What is it?"), user_turn(wide, "Why?")]
    found = []
    for device in ("cpu", "cuda"):
        model = make_model(kind).to(device)
        inputs = {name: value.to(device) for name, value in make_inputs(kind, model, tokenizer, prompts).items()}
        with adatp.apply(model, tokenizer, method, relevance=None) as pruned:
            tokens, logits = by_generate(model, inputs, 8)
        kept = [mask for sample in pruned.report.samples for layer in range(16) for mask in sample.kept_masks(layer)]
        found.append((kept, tokens.cpu(), logits.cpu()))
    (expected, tokens, logits), (ours, our_tokens, our_logits) = found
    assert not all(bool(mask.all()) for mask in expected)
    assert all(torch.equal(mask, other) for mask, other in zip(expected, ours, strict=True))
    assert torch.equal(tokens, our_tokens)
    torch.testing.assert_close(our_logits, logits, atol=1e-3, rtol=1e-3)
