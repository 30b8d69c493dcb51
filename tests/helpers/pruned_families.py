"""What a pruned model of the newer families generates, held to the recomputation."""

import torch
from recompute_families import recompute
from torch import Tensor

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def padding_of(inputs: dict[str, Tensor], b: int) -> int:
    """Number of padding tokens of a prompt."""
    return int((inputs["attention_mask"][b] == 0).sum())


def kept_tokens(sample, inputs: dict[str, Tensor], b: int) -> list[Tensor]:
    """For every layer the prompt's tokens that enter it: indices into its padded row, without the padding."""
    padding, length = padding_of(inputs, b), inputs["input_ids"].shape[1]
    kept = []
    for layer in range(len(sample.kept)):
        enters = torch.ones(length, dtype=torch.bool)
        enters[:padding] = False
        enters[padding + sample._visual] = torch.cat([mask.flatten() for mask in sample.kept_masks(layer)])
        kept.append(enters.nonzero()[:, 0])
    return kept


def check_sample(model, inputs: dict[str, Tensor], b: int, sample, tokens: Tensor, logits: Tensor, follow="generate"):
    """Hold one sequence's `[t]` tokens and `[t, V]` logits to the recomputation that drops what the report says."""
    again = recompute(model, inputs, b, tokens[:-1], kept_tokens(sample, inputs, b), follow=follow)
    torch.testing.assert_close(logits, again[-len(tokens) :], **CLOSE)


def check_batch(model, inputs: dict[str, Tensor], report, tokens: Tensor, logits: Tensor, follow="generate"):
    """The same of `[B, t]` tokens and `[B, t, V]` logits, one sequence a prompt."""
    assert report.pruned
    for b, sample in enumerate(report.samples):
        check_sample(model, inputs, b, sample, tokens[b], logits[b], follow)
