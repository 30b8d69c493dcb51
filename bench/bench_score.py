"""Benchmark of `score`: the kernel, the reference, and full attention with a slice."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adatp_kernels.score import rows_at_once, score_reference
from bench.costs import score_cost
from bench.harness import Measure, compiled, grid, no_compile, no_triton, too_much
from bench.inputs import BASE, DEVICE, Case, run_score, score_inputs

# torch.compile unrolls the reference's loop over rows; it takes seconds for every turn.
MAX_TURNS = 32 if DEVICE.type == "cuda" else 12


def triton(x: SimpleNamespace) -> Tensor:
    return run_score(x, "triton")


def reference(x: SimpleNamespace) -> Tensor:
    return run_score(x, "reference")


def compiled_reference(x: SimpleNamespace) -> Tensor:
    scores: Tensor = compiled(score_reference, x.case)(x.query, x.key, x.rows, x.columns, scale=x.scale)
    return scores


def eager_attention(x: SimpleNamespace) -> Tensor:
    """Compute attention as `output_attentions=True` does (transformers' eager attention), then average and slice."""
    repeats = x.all_queries.shape[1] // x.key.shape[1]
    length = x.key.shape[2]
    mask = torch.full((length, length), float("-inf"), dtype=x.key.dtype, device=x.key.device).triu(1)
    logits = x.all_queries @ x.key.repeat_interleave(repeats, 1).transpose(2, 3) * x.scale + mask
    attention = logits.softmax(-1, dtype=torch.float32).to(x.key.dtype)  # [B, H, L, L]
    scores: Tensor = attention[:, :, x.rows[0], x.columns[0] : x.columns[1]].float().mean((1, 2))
    return scores


PROVIDERS = {
    "triton": triton,
    "reference": reference,
    "compiled": compiled_reference,
    "eager attention": eager_attention,
}


def reason(case: Case, provider: str) -> str:
    """Return why this machine does not run the provider; empty if it does."""
    inputs = 8 * (case.heads + case.key_heads) * case.length * case.dim  # and once more, in fp32
    if provider == "eager attention":
        area = case.heads * case.length**2
        # at most 8 bytes for each of H x L x L: two fp32, or one and two bf16
        return too_much(inputs + 8 * area, 2 * area * case.dim)
    flops = 2 * case.heads * case.text * case.length * case.dim
    why = too_much(inputs, flops)
    if provider == "triton":
        return no_triton() or why
    if provider == "compiled":
        turns = -(-case.text // rows_at_once(case.heads * case.length))
        return why or (f"its loop unrolls {turns} times" if turns > MAX_TURNS else no_compile())
    return why


def check(actual: Tensor, expected: Tensor) -> None:
    """Check that the scores agree within the rounding of the inputs' dtype, relative to the mean score."""
    tolerance = 1e-4 if actual.device.type == "cpu" else 2e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.mean()))


CASES = [
    *(Case(model) for model in ("onevision-0.5b", "onevision-7b", "llava-video-7b")),
    *(Case(BASE, frames=frames) for frames in (8, 128, 1024)),
    *(Case(BASE, text=text) for text in (16, 1024)),
]


@pytest.mark.parametrize(
    ("group", "case", "provider", "cache"), grid({f"score: {c}, {c.text} rows": c for c in CASES}, PROVIDERS)
)
def test_score(measure: Measure, group: str, case: Case, provider: str, cache: str) -> None:
    why = reason(case, provider)
    x = SimpleNamespace() if why else score_inputs(case)
    measure(
        lambda: PROVIDERS[provider](x),
        provider,
        cache,
        baseline=provider == "reference",
        reason=why,
        check=lambda result: check(result, reference(x)),
        cost=None if why else score_cost(x.query, x.key, x.columns),
    )
