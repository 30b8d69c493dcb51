"""Benchmark of the cost and the gain of pruning: the forward with and without it, a first cut, and all cuts."""

import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

import adatp
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.flops import prefill_flops
from adatp.small.untrained import Untrained, load_untrained
from bench.harness import Measure, grid, too_much
from bench.inputs import (
    BASE,
    DEVICE,
    DTYPE,
    FRAMES_PER_SEGMENT,
    Case,
    compact_inputs,
    run_compact,
    run_score,
    run_select,
    score_inputs,
    select_inputs,
)

FORWARD = "forward: small untrained model on the CPU, 32 frames"
CASE = Case(BASE)
FIRST = f"first cut: {CASE}"
PREFILL = f"pruned prefill: {CASE}"


@pytest.fixture(scope="module")
def small() -> tuple[Untrained, Any]:
    """Return the small untrained model, and a prompt with 32 random frames in 8 shots."""
    untrained = load_untrained()
    random = np.random.default_rng(0)
    shots = random.integers(0, 256, (8, 14, 14, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    prompt = "<|im_start|>user <video>\nWhat happens?<|im_end|><|im_start|>assistant\n"
    return untrained, untrained.processor(text=prompt, videos=[shots.repeat(4, 0)], return_tensors="pt")


@pytest.mark.benchmark(group=FORWARD, timer=time.perf_counter)
@pytest.mark.parametrize("provider", ["unpruned", "adatp"])
def test_forward(measure: Measure, small: tuple[Untrained, Any], provider: str) -> None:
    untrained, inputs = small

    def forward() -> None:
        untrained.model(**inputs, logits_to_keep=1)

    if provider == "unpruned":
        measure(forward, provider, baseline=True)
    else:
        with adatp.apply(untrained.model, untrained.processor, relevance=untrained.relevance):
            measure(forward, provider)


@pytest.fixture(scope="module")
def layer() -> Callable[[int], Any]:
    """Return one decoder layer with random weights, as a function of the number of tokens."""
    config = Qwen2Config(**{**MODEL_SHAPES[CASE.model].text_config, "num_hidden_layers": 1}, vocab_size=8)
    torch.manual_seed(0)
    model = Qwen2Model._from_config(config, attn_implementation="sdpa").eval().to(DEVICE, DTYPE)
    hidden = compact_inputs(CASE).tensors[0]
    cos, sin = model.rotary_emb(hidden, torch.arange(CASE.length, device=DEVICE)[None])

    def run(length: int) -> Any:
        tables = (cos[:, :length], sin[:, :length])
        return model.layers[0](hidden[:, :length], position_embeddings=tables, attention_mask=None)

    return run


class Cut:
    """The work between two decoder layers, which reduces the prompt from `before` tokens to `after` tokens."""

    def __init__(self, before: int, after: int) -> None:
        s, x, m = score_inputs(CASE), select_inputs(CASE), compact_inputs(CASE)
        visual = torch.linspace(0, CASE.visual - 1, before - CASE.text).long().to(DEVICE)
        left = torch.cat([visual, torch.arange(CASE.visual, CASE.length, device=DEVICE)])
        rows = torch.arange(len(visual), before, device=DEVICE)[None]
        self.scored = SimpleNamespace(
            query=s.query, key=s.key[:, :, left], rows=rows, columns=(0, len(visual)), scale=s.scale
        )
        is_first = before == CASE.length  # after the first cut, segments have gaps, and positions are unique
        begins = x.begin if is_first else x.begin[:, ::FRAMES_PER_SEGMENT]
        self.selected = SimpleNamespace(
            score=x.score[:, visual],
            segment=x.segment if is_first else None,
            begin=torch.searchsorted(visual, begins),
            position=x.position[:, left],
            quota=torch.full_like(x.quota, (after - CASE.text) // CASE.segments),
            positions=CASE.positions,
            deduplicate=is_first,
        )
        keep = self.select()
        tensors = [tensor[:, left] for tensor in m.tensors]
        self.compacted = SimpleNamespace(keep=keep, counts=[int(keep.sum())], tensors=tensors)

    def score(self) -> Tensor:
        return run_score(self.scored)

    def select(self) -> Tensor:
        return run_select(self.selected)

    def compact(self) -> list[Tensor]:
        return run_compact(self.compacted)

    def all(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.score(), self.select(), self.compact()


def lengths() -> list[int]:
    """Return the tokens at every decoder layer's input under the schedule alone."""
    shape = MODEL_SHAPES[CASE.model]
    return [count + CASE.text for count in adatp.AdaTP().counts(shape, shape.layers)]


@pytest.fixture(scope="module")
def cuts() -> list[Cut]:
    return [Cut(before, after) for before, after in pairwise(lengths()) if after < before]


@pytest.mark.parametrize(
    ("group", "case", "provider", "cache"),
    grid({FIRST: CASE}, ["unpruned decoder layer", "score", "select", "compact", "all"]),
)
def test_first_cut(
    measure: Measure, layer: Callable[[int], Any], cuts: list[Cut], group: str, case: Case, provider: str, cache: str
) -> None:
    baseline = provider == "unpruned decoder layer"
    run = (lambda: layer(CASE.length)) if baseline else getattr(cuts[0], provider)
    measure(run, provider, cache, baseline=baseline)


@pytest.mark.parametrize(
    ("group", "case", "provider", "cache"), grid({PREFILL: CASE}, ["all decoder layers", "all cuts"])
)
def test_prefill(
    measure: Measure, layer: Callable[[int], Any], cuts: list[Cut], group: str, case: Case, provider: str, cache: str
) -> None:
    """Time all layers and all cuts. All layers share the weights of one."""

    def layers() -> None:
        for length in lengths():
            layer(length)

    def between() -> None:
        for cut in cuts:
            cut.all()

    baseline = provider == "all decoder layers"
    work = prefill_flops(Qwen2Config(**MODEL_SHAPES[CASE.model].text_config), lengths(), CASE.length)
    reason = too_much(0, work.linear + work.attention) if baseline else ""
    measure(layers if baseline else between, provider, cache, baseline=baseline, reason=reason)
