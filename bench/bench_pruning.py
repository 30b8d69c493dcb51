"""What pruning costs beside what it saves: the forward with and without, a first cut, all cuts."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

import adatp
from adatp.flops import prefill_flops
from adatp.shapes import MODEL_SHAPES
from adatp.untrained import load_untrained
from adatp_kernels.compact import compact
from adatp_kernels.score import score
from adatp_kernels.select import segment_begins, select
from bench.harness import grid, too_much
from bench.inputs import BASE, DEVICE, DTYPE, Case, compact_inputs, score_inputs, select_inputs

FORWARD = "forward: small untrained model on the CPU, 32 frames"
CASE = Case(BASE)
FIRST = f"first cut: {CASE}"
PREFILL = f"pruned prefill: {CASE}"


@pytest.fixture(scope="module")
def small():
    """The small untrained model and 32 random frames in 8 shots."""
    untrained = load_untrained()
    random = np.random.default_rng(0)
    shots = random.integers(0, 256, (8, 14, 14, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    prompt = "<|im_start|>user <video>\nWhat happens?<|im_end|><|im_start|>assistant\n"
    return untrained, untrained.processor(text=prompt, videos=[shots.repeat(4, 0)], return_tensors="pt")


@pytest.mark.benchmark(group=FORWARD, timer=time.perf_counter)
@pytest.mark.parametrize("provider", ["unpruned", "adatp"])
def test_forward(measure, small, provider):
    untrained, inputs = small

    def forward():
        untrained.model(**inputs, logits_to_keep=1)

    if provider == "unpruned":
        measure(forward, provider, baseline=True)
    else:
        with adatp.apply(untrained.model, untrained.processor, relevance=untrained.relevance):
            measure(forward, provider)


@pytest.fixture(scope="module")
def layer():
    """One decoder layer with random weights, as a function of how many tokens it sees."""
    config = Qwen2Config(**{**MODEL_SHAPES[CASE.model].text_config, "num_hidden_layers": 1}, vocab_size=8)
    torch.manual_seed(0)
    model = Qwen2Model._from_config(config, attn_implementation="sdpa").eval().to(DEVICE, DTYPE)
    hidden = compact_inputs(CASE).tensors[0]
    cos, sin = model.rotary_emb(hidden, torch.arange(CASE.length, device=DEVICE)[None])

    def run(length):
        tables = (cos[:, :length], sin[:, :length])
        return model.layers[0](hidden[:, :length], position_embeddings=tables, attention_mask=None)

    return run


class Cut:
    """What is done between two decoder layers: of the prompt's tokens `before` are left, and `after` shall be."""

    def __init__(self, before: int, after: int) -> None:
        s, x, m = score_inputs(CASE), select_inputs(CASE), compact_inputs(CASE)
        visual = torch.linspace(0, CASE.visual - 1, before - CASE.text).long().to(DEVICE)
        left = torch.cat([visual, torch.arange(CASE.visual, CASE.length, device=DEVICE)])
        self.query, self.key, self.scale = s.query, s.key[:, :, left], s.scale
        self.rows = torch.arange(len(visual), before, device=DEVICE)[None]
        self.columns = (0, len(visual))
        self.given = x.score[:, visual]
        self.segment, self.position = x.segment[:, left], x.position[:, left]
        self.quota = torch.full_like(x.quota, (after - CASE.text) // CASE.segments)
        self.tensors = [tensor[:, left] for tensor in m.tensors]
        self.deduplicate = before == CASE.length  # after the first cut nothing is left to find ...
        self.begin = None if self.deduplicate else segment_begins(self.segment, CASE.segments)  # ... and this is known
        self.keep = self.select()
        self.counts = [int(self.keep.sum())]

    def score(self):
        return score(self.query, self.key, self.rows, self.columns, scale=self.scale)

    def select(self):
        ids = (self.given, self.segment, self.position, self.quota)
        return select(*ids, positions=CASE.positions, begin=self.begin, deduplicate=self.deduplicate)

    def compact(self):
        return compact(self.keep, self.counts, self.tensors)

    def all(self):
        return self.score(), self.select(), self.compact()


def lengths() -> list[int]:
    """Tokens at every decoder layer's input under the schedule alone."""
    shape = MODEL_SHAPES[CASE.model]
    return [count + CASE.text for count in adatp.AdaTP().counts(shape, shape.layers)]


@pytest.fixture(scope="module")
def cuts():
    return [Cut(before, after) for before, after in pairwise(lengths()) if after < before]


@pytest.mark.parametrize(
    ("group", "case", "provider", "cache"),
    grid({FIRST: CASE}, ["unpruned decoder layer", "score", "select", "compact", "all"]),
)
def test_first_cut(measure, layer, cuts, group, case, provider, cache):
    baseline = provider == "unpruned decoder layer"
    run = (lambda: layer(CASE.length)) if baseline else getattr(cuts[0], provider)
    measure(run, provider, cache, baseline=baseline)


@pytest.mark.parametrize(
    ("group", "case", "provider", "cache"), grid({PREFILL: CASE}, ["all decoder layers", "all cuts"])
)
def test_prefill(measure, layer, cuts, group, case, provider, cache):
    """The weights of one decoder layer stand for all."""

    def layers():
        for length in lengths():
            layer(length)

    def between():
        for cut in cuts:
            cut.all()

    baseline = provider == "all decoder layers"
    work = prefill_flops(Qwen2Config(**MODEL_SHAPES[CASE.model].text_config), lengths(), CASE.length)
    reason = too_much(0, work.linear + work.attention) if baseline else ""
    measure(layers if baseline else between, provider, cache, baseline=baseline, reason=reason)
