"""Benchmark of `select`: the kernel, the reference, and a loop of torch.topk over the segments."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adatp_kernels.select import FIXED
from bench.costs import select_cost
from bench.harness import Measure, compiled, grid, no_compile, no_triton
from bench.inputs import Case, run_select, select_inputs


def triton(x: SimpleNamespace) -> Tensor:
    return run_select(x, "triton")


def reference(x: SimpleNamespace) -> Tensor:
    return run_select(x, "reference")


def compiled_reference(x: SimpleNamespace) -> Tensor:
    keep: Tensor = compiled(run_select, x.case)(x, "reference")
    return keep


def topk_loop(x: SimpleNamespace) -> Tensor:
    """Run a topk for each segment, best first. A scatter finds the first token of each position."""
    keep: Tensor = x.position == FIXED
    segment = x.segment[0].repeat_interleave(x.positions)
    for s, quota in enumerate(x.quota[0].tolist()):
        inside = (segment == s).nonzero().squeeze(1)
        best = inside[x.score[0, inside].topk(min(quota, len(inside))).indices]
        rank = torch.arange(len(best), device=best.device)
        spot = x.position[0, best]
        first = rank.new_full((x.positions,), len(best)).scatter_reduce_(0, spot, rank, "amin")
        keep[0, best[first[spot] == rank]] = True
    return keep


PROVIDERS = {
    "triton": triton,
    "reference": reference,
    "compiled": compiled_reference,
    "topk loop": topk_loop,
}


def reason(case: Case, provider: str) -> str:
    """Return why this machine does not run the provider; empty if it does."""
    if provider == "triton":
        return no_triton()
    if provider == "compiled":
        return no_compile()
    if provider == "topk loop" and case.scores == "equal":
        return "torch.topk takes any of equals"
    return ""


# OneVision's two sizes have the same frame grid; here they differ only by 17 text tokens.
CASES = {
    **{f"select: {c}": c for c in (Case("onevision-7b"), Case("onevision-0.5b"), Case("llava-video-7b"))},
    **{f"select: {c}": c for c in (Case("onevision-7b", frames=frames) for frames in (8, 128, 1024))},
    "select: OneVision-7B, 32 frames, one segment": Case("onevision-7b", one_segment=True),
    "select: OneVision-7B, 1024 frames, one segment": Case("onevision-7b", frames=1024, one_segment=True),
    "select: OneVision-7B, 32 frames, uniform scores": Case("onevision-7b", scores="uniform"),
    "select: OneVision-7B, 32 frames, equal scores": Case("onevision-7b", scores="equal"),
}


@pytest.mark.parametrize(("group", "case", "provider", "cache"), grid(CASES, PROVIDERS))
def test_select(measure: Measure, group: str, case: Case, provider: str, cache: str) -> None:
    x = select_inputs(case)

    def check(result: Tensor) -> None:
        assert torch.equal(result, reference(x))

    measure(
        lambda: PROVIDERS[provider](x),
        provider,
        cache,
        baseline=provider == "reference",
        reason=reason(case, provider),
        check=check,
        cost=select_cost(x.score, x.position),
    )
