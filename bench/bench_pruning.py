"""What pruning costs beside what it saves, side by side in one run: `make bench`.

The tables of pytest-benchmark give every time as a ratio to the fastest of its group.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

import adatp
from adatp.builtin import load_builtin
from adatp.flops import MODEL_SHAPES
from adatp_kernels.compact import compact
from adatp_kernels.score import score
from adatp_kernels.select import FIXED, select

torch.set_grad_enabled(False)


@pytest.fixture(scope="module")
def small():
    """The built-in model and 32 random frames in 8 shots."""
    builtin = load_builtin()
    random = np.random.default_rng(0)
    shots = random.integers(0, 256, (8, 14, 14, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    prompt = "<|im_start|>user <video>\nWhat happens?<|im_end|><|im_start|>assistant\n"
    return builtin, builtin.processor(text=prompt, videos=[shots.repeat(4, 0)], return_tensors="pt")


@pytest.mark.benchmark(group="one forward of the built-in model, tower included, 32 frames")
@pytest.mark.parametrize("pruned", [False, True], ids=["unpruned", "adatp"])
def test_forward(benchmark, small, pruned):
    builtin, inputs = small

    def forward():
        builtin.model(**inputs, logits_to_keep=1)

    if pruned:
        with adatp.apply(builtin.model, builtin.processor, relevance=builtin.relevance) as handle:
            benchmark(forward)
            benchmark.extra_info["flops_ratio"] = handle.report.flops.ratio
    else:
        benchmark(forward)


@pytest.fixture(scope="module")
def layer():
    """One decoder layer of OneVision-0.5B with random weights, before its first cut at 32 frames, fp32."""
    shape = MODEL_SHAPES["onevision-0.5b"]
    config = Qwen2Config(**{**shape.text_config, "num_hidden_layers": 1}, vocab_size=8)
    visual, text = shape.frames * shape.tokens_per_frame, shape.text_tokens
    length = visual + text
    torch.manual_seed(0)
    model = Qwen2Model._from_config(config, attn_implementation="sdpa").eval()
    hidden = torch.randn(1, length, config.hidden_size)
    head = config.hidden_size // config.num_attention_heads
    segment = torch.full((1, length), FIXED)
    segment[0, :visual] = torch.arange(visual) // (4 * shape.tokens_per_frame)  # 8 segments of 4 frames
    keep = torch.rand(1, length) < 0.27
    return SimpleNamespace(
        module=model.layers[0],
        hidden=hidden,
        tables=model.rotary_emb(hidden, torch.arange(length)[None]),
        query=torch.randn(1, config.num_attention_heads, text, head),
        key=torch.randn(1, config.num_key_value_heads, length, head),
        rows=torch.arange(visual, length)[None],
        columns=(0, visual),
        scale=head**-0.5,
        scores=torch.rand(1, length).pow(8),  # heavy-tailed, as attention is
        segment=segment,
        position=torch.arange(length)[None] % shape.tokens_per_frame,
        quota=torch.full((1, 8), int(0.4 * 4 * shape.tokens_per_frame)),
        positions=shape.tokens_per_frame,
        keep=keep,
        counts=[int(keep.sum())],
    )


@pytest.mark.benchmark(group="OneVision-0.5B, 32 frames: the first cut beside one unpruned decoder layer")
@pytest.mark.parametrize("operation", ["decoder layer", "score", "select", "compact"])
def test_operation(benchmark, layer, operation):
    x = layer
    run = {
        "decoder layer": lambda: x.module(x.hidden, position_embeddings=x.tables, attention_mask=None),
        "score": lambda: score(x.query, x.key, x.rows, x.columns, scale=x.scale),
        "select": lambda: select(x.scores, x.segment, x.position, x.quota, positions=x.positions),
        "compact": lambda: compact(x.keep, x.counts, (x.hidden, *x.tables, x.segment, x.position)),
    }[operation]
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
