"""Benchmark of `compact`: the kernel, the reference, and one index_select for each tensor."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from adatp_kernels.compact import compact_reference
from bench.costs import compact_cost
from bench.harness import Measure, compiled, grid, no_compile, no_triton, too_much
from bench.inputs import BASE, Case, compact_inputs, run_compact


def triton(x: SimpleNamespace) -> list[Tensor]:
    return run_compact(x, "triton")


def reference(x: SimpleNamespace) -> list[Tensor]:
    return run_compact(x, "reference")


def compiled_reference(x: SimpleNamespace) -> list[Tensor]:
    kept: list[Tensor] = compiled(compact_reference, x.case)(x.keep, x.counts, x.tensors)
    return kept


def index_selects(x: SimpleNamespace) -> list[Tensor]:
    """Gather by index_select. The host waits for `nonzero`, because it needs the number of tokens."""
    index = x.keep[0].nonzero().squeeze(1)
    return [tensor.index_select(1, index) for tensor in x.tensors]


PROVIDERS = {
    "triton": triton,
    "reference": reference,
    "compiled": compiled_reference,
    "index_select": index_selects,
}


def reason(case: Case, provider: str) -> str:
    """Return why this machine does not run the provider; empty if it does."""
    why = too_much(2 * case.length * case.hidden * 4)  # fp32 on the host, then the device's dtype, and the results
    if provider == "triton":
        return no_triton() or why
    return why or (no_compile() if provider == "compiled" else "")


CASES = [
    *(Case(model) for model in ("onevision-0.5b", "onevision-7b", "llava-video-7b")),
    *(Case(BASE, frames=frames) for frames in (8, 128, 1024)),
]


@pytest.mark.parametrize(("group", "case", "provider", "cache"), grid({f"compact: {c}": c for c in CASES}, PROVIDERS))
def test_compact(measure: Measure, group: str, case: Case, provider: str, cache: str) -> None:
    why = reason(case, provider)
    x = SimpleNamespace() if why else compact_inputs(case)

    def check(result: list[Tensor]) -> None:
        assert all(torch.equal(a, b) for a, b in zip(result, reference(x), strict=True))

    measure(
        lambda: PROVIDERS[provider](x),
        provider,
        cache,
        baseline=provider == "reference",
        reason=why,
        check=check,
        cost=None if why else compact_cost(x.keep, x.counts, x.tensors),
    )
