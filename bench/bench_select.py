"""Which tokens stay: the kernel, the reference, and a loop of torch.topk over the segments."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adatp_kernels.select import FIXED, segment_begins, select, select_reference
from bench.costs import select_cost
from bench.harness import compiled, grid, no_compile, no_triton
from bench.inputs import Case, select_inputs


def triton(x: SimpleNamespace) -> Tensor:
    """As at a first cut: where segments begin has to be found."""
    return select(x.score, x.segment, x.position, x.quota, positions=x.positions, impl="triton")


def triton_begins_known(x: SimpleNamespace) -> Tensor:
    """As at a later cut."""
    if not hasattr(x, "begin"):  # in the first, untimed call
        x.begin = segment_begins(x.segment, x.quota.shape[1])
    return select(x.score, x.segment, x.position, x.quota, positions=x.positions, begin=x.begin, impl="triton")


def reference(x: SimpleNamespace) -> Tensor:
    return select_reference(x.score, x.segment, x.position, x.quota, positions=x.positions)


def compiled_reference(x: SimpleNamespace) -> Tensor:
    run = compiled(select_reference, x.case)
    return run(x.score, x.segment, x.position, x.quota, positions=x.positions)


def topk_loop(x: SimpleNamespace) -> Tensor:
    """A topk for each segment, best first; the first of each position among them is found by a scatter."""
    keep = x.segment == FIXED
    for s, quota in enumerate(x.quota[0].tolist()):
        inside = (x.segment[0] == s).nonzero().squeeze(1)
        best = inside[x.score[0, inside].topk(min(quota, len(inside))).indices]
        rank = torch.arange(len(best), device=best.device)
        spot = x.position[0, best]
        first = rank.new_full((x.positions,), len(best)).scatter_reduce_(0, spot, rank, "amin")
        keep[0, best[first[spot] == rank]] = True
    return keep


PROVIDERS = {
    "triton": triton,
    "triton, begins known": triton_begins_known,
    "reference": reference,
    "compiled": compiled_reference,
    "topk loop": topk_loop,
}


def reason(case: Case, provider: str) -> str:
    """Why this machine does not run it; empty if it does."""
    if provider.startswith("triton"):
        return no_triton()
    if provider == "compiled":
        return no_compile()
    if provider == "topk loop" and case.scores == "equal":
        return "torch.topk takes any of equals"
    return ""


# OneVision's two sizes have the same frame grid, and differ here by 17 text tokens.
CASES = {
    **{f"select: {c}": c for c in (Case("onevision-7b"), Case("onevision-0.5b"), Case("llava-video-7b"))},
    **{f"select: {c}": c for c in (Case("onevision-7b", frames=frames) for frames in (8, 128, 1024))},
    "select: OneVision-7B, 32 frames, one segment": Case("onevision-7b", one_segment=True),
    "select: OneVision-7B, 32 frames, uniform scores": Case("onevision-7b", scores="uniform"),
    "select: OneVision-7B, 32 frames, equal scores": Case("onevision-7b", scores="equal"),
}


@pytest.mark.parametrize(("group", "case", "provider", "cache"), grid(CASES, PROVIDERS))
def test_select(measure, group, case, provider, cache):
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
        cost=select_cost(x.score, x.segment),
    )
