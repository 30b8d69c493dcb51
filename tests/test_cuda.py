"""What only a GPU can show: that nothing waits for it, how much is launched, and that the kernels are right on it."""

from collections import defaultdict
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("triton")

import triton
from conftest import make_inputs
from random_prefill import layout, prefill
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import adatp
from adatp.methods import METHODS
from adatp.prefill import Prefill
from adatp.untrained import load_untrained
from adatp_kernels import compact_triton, score_triton, select_triton
from adatp_kernels.compact import compact, compact_reference
from adatp_kernels.dispatch import interpreted
from adatp_kernels.score import score
from adatp_kernels.select import FIXED, PADDING, select, select_reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    pytest.mark.skipif(interpreted(), reason="the interpreter is on, and runs the kernels on the host"),
]

VIDEOS = pytest.mark.parametrize("videos", [1, 2], ids=["one video", "two videos"])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@contextmanager
def waiting(mode):
    """Whether what makes the host wait for the GPU raises ("error") or not ("default")."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@VIDEOS
@pytest.mark.parametrize("method", [adatp.AdaTP(), adatp.FastV(), adatp.PyramidDrop()], ids=lambda method: method.name)
def test_nothing_waits_for_the_gpu_but_the_one_read(monkeypatch, videos, method):
    reads = []
    read = Prefill._read

    def may_wait(self, grouping, quota):
        reads.append(1)
        with waiting("default"):
            return read(self, grouping, quota)

    monkeypatch.setattr(Prefill, "_read", may_wait)
    prompt = layout(8, 23, videos)
    one = torch.ones(1, device="cuda")
    with waiting("error"):
        with pytest.raises(RuntimeError, match="synchronizing"):
            one.item()
        after = prefill(prompt, "cuda", method=method)
    assert reads == [1]
    assert after[-1][0].width <= after[0][0].width < prompt.length, "and it was a pruned prefill"


@VIDEOS
def test_a_later_cut_is_at_most_four_kernels(videos):
    @contextmanager
    def launches():
        names = []
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            yield names
            torch.cuda.synchronize()
        on_gpu = [event.name for event in profiled.events() if event.device_type == DeviceType.CUDA]
        names += [name for name in on_gpu if not name.lower().startswith(("memcpy", "memset"))]

    prompt = layout(8, 23, videos)
    prefill(prompt, "cuda")  # compiles
    _, *later = (names for _, names in prefill(prompt, "cuda", watch=launches))
    assert max(map(len, later)) > 0, "the profiler sees no kernel, or no later cut drops anything"
    assert [names for names in later if len(names) > 4] == []


@VIDEOS
def test_prompts_of_other_lengths_compile_nothing_new(monkeypatch, videos):
    kernels = (
        score_triton.normaliser_kernel,
        score_triton.column_kernel,
        select_triton.select_kernel,
        compact_triton.compact_kernel,
    )
    for kernel in kernels:  # as in a fresh process, whatever other tests have compiled
        monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))

    def compiled():
        return {kernel.__name__: len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels}

    prefill(layout(8, 24, videos), "cuda")
    first = compiled()
    assert min(first.values()) > 0
    for frames, text in ((9, 24), (8, 25), (11, 37)):
        prefill(layout(frames, text, videos), "cuda")
        torch.cuda.synchronize()
        assert compiled() == first, f"{frames} frames, {text} text tokens"


def attention(dtype, columns=32 * 196, heads=28, groups=4, text=64, dim=128):
    """Queries and keys as LLaVA-OneVision-7B has them, 14 tokens before the video, and what else `score` takes."""
    random = torch.Generator("cuda").manual_seed(0)
    length = 14 + columns + 1 + text
    # a few times as large as a model's, so that few keys get most of a row
    query = torch.randn(1, heads, text, dim, generator=random, device="cuda").mul_(3).to(dtype)
    key = torch.randn(1, groups, length, dim, generator=random, device="cuda").to(dtype)
    rows = torch.arange(length - text, length, device="cuda")[None]
    return query, key, rows, (14, 14 + columns)


def probabilities(query, key, rows, columns, scale, dtype):
    """Mean over heads and rows of eager attention in `dtype`, softmax in at least fp32 as models have it: fp64."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = query.to(dtype) @ key.to(dtype).transpose(2, 3) * scale
    hidden = torch.arange(key.shape[2], device=key.device) > rows[:, None, :, None]
    logits = logits.masked_fill(hidden, float("-inf"))
    weights = logits.softmax(-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
    return weights[..., slice(*columns)].double().mean((1, 2))


def assert_as_right_as_eager(got, query, key, rows, columns, scale):
    """The error against fp64 is at most that of eager attention in the inputs' type, and some rounding in fp32."""
    exact = probabilities(query, key, rows, columns, scale, torch.float64)
    eager = probabilities(query, key, rows, columns, scale, query.dtype)
    rounding = 16 * torch.finfo(torch.float32).eps * exact.max()
    assert got.dtype == torch.float32
    assert (got.double() - exact).abs().max() <= (eager - exact).abs().max() + rounding


@DTYPES
def test_scores_are_as_right_as_eager_attention(dtype):
    inputs = attention(dtype)
    assert_as_right_as_eager(score(*inputs, scale=128**-0.5), *inputs, 128**-0.5)


@pytest.mark.parametrize("columns", [1024 * 196, 1 << 18])
def test_scores_of_long_videos_are_as_right_as_eager_attention(columns):
    inputs = attention(torch.bfloat16, columns, heads=4, groups=2, text=16, dim=64)
    assert_as_right_as_eager(score(*inputs, scale=64**-0.5), *inputs, 64**-0.5)


def test_the_same_input_gives_the_same_bits():
    inputs = attention(torch.bfloat16)
    first = score(*inputs, scale=128**-0.5)
    for _ in range(10):
        assert torch.equal(score(*inputs, scale=128**-0.5), first)


def test_score_takes_no_more_memory_than_its_buffers():
    query, key, rows, columns = attention(torch.bfloat16)
    score(query, key, rows, columns, scale=0.1)  # what a first call may leave behind
    heads, text, dim = query.shape[1:]
    groups, length = key.shape[1:3]
    count = columns[1] - columns[0]
    tile = score_triton.tiles(heads // groups * text, dim, query.element_size())
    row_tiles, column_tiles = triton.cdiv(heads // groups * text, tile.m), triton.cdiv(count, tile.n)
    splits, _ = score_triton.key_splits(row_tiles * groups, length, tile, query.device)
    group_parts, tile_parts = score_triton.row_parts(column_tiles, groups, row_tiles, query.device)
    # pairs for each split, parts of the columns, the columns, a counter a block
    words = 2 * heads * text * splits + count * group_parts * tile_parts + count + column_tiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = score(query, key, rows, columns, scale=0.1)
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    assert result.numel() == count
    assert taken <= 4 * words + 4096, "with a little for the allocator's granularity"
    assert taken < 4 * heads * text * length / 20, "nowhere near heads x rows x keys"


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("frames", [32, 1024])
def test_select_keeps_the_same_tokens_as_the_reference(frames, deduplicate):
    random = torch.Generator().manual_seed(0)
    visual, segments = frames * 196, frames // 8
    scores = torch.randn(2, visual, generator=random).exp().mul(8).round()  # many ties
    scores[torch.rand(2, visual, generator=random) < 0.01] = float("nan")
    segment = torch.full((2, visual + 30), FIXED)
    position = torch.zeros(2, visual + 30, dtype=torch.int64)
    segment[:, 14 : 14 + visual] = torch.arange(visual) // (8 * 196)
    position[:, 14 : 14 + visual] = torch.arange(visual) % 196
    segment[1, :6] = PADDING
    quota = torch.randint(0, 8 * 196 + 9, (2, segments), generator=random)
    want = select_reference(scores, segment, position, quota, positions=196, start=14, deduplicate=deduplicate)
    on_gpu = (tensor.cuda() for tensor in (scores, segment, position, quota))
    got = select(*on_gpu, positions=196, start=14, deduplicate=deduplicate)
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("length", [6402, 40_000, 200_777])
def test_compact_moves_the_same_rows_as_the_reference(length):
    random = torch.Generator("cuda").manual_seed(0)
    keep = torch.rand(2, length, generator=random, device="cuda") < torch.tensor([[0.4], [0.3]], device="cuda")
    counts = keep.sum(1).tolist()
    hidden = torch.randn(2, length, 896, generator=random, dtype=torch.bfloat16, device="cuda")
    table = torch.randn(1, length, 64, generator=random, device="cuda").bfloat16().expand(2, -1, -1)
    ids = torch.arange(2 * length, device="cuda").view(2, length)
    moved = compact(keep, counts, [hidden, table, ids])
    wanted = compact_reference(keep, counts, [hidden, table, ids])
    assert all(torch.equal(got, want) for got, want in zip(moved, wanted, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_kernels_run_where_the_tensors_are():
    inputs = [t.to("cuda:1") if isinstance(t, torch.Tensor) else t for t in attention(torch.bfloat16, heads=4)]
    assert torch.cuda.current_device() == 0
    got = score(*inputs, scale=0.1)
    ids = torch.zeros(1, got.shape[1], dtype=torch.int64, device="cuda:1")
    keep = select(got, ids, torch.arange(got.shape[1], device="cuda:1")[None] % 196, ids[:, :1] + 99, positions=196)
    (moved,) = compact(keep, [int(keep.sum())], [got])
    assert got.device == moved.device == torch.device("cuda:1")
    torch.testing.assert_close(got, score(*inputs, scale=0.1, impl="reference"), rtol=2e-2, atol=1e-6)
    assert torch.equal(moved[0], got[keep])


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_on_the_gpu_what_it_keeps_on_the_cpu(method):
    """A padded batch of two clips; and the logits of what is generated, DyCoke's choice in decoding included."""
    kept, logits = [], []
    for device in ("cpu", "cuda"):
        untrained = load_untrained(image_size=84, layers=16)
        model, relevance = untrained.model.to(device), untrained.relevance.to(device)
        inputs = make_inputs(untrained, ["What is in the picture?", "Where?"]).to(device)
        with adatp.apply(model, untrained.processor, method, relevance=relevance) as pruned:
            output = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            kept.append(torch.stack([s.kept_mask(layer) for s in pruned.report.samples for layer in range(16)]))
        logits.append(torch.stack(output.logits).cpu())
    assert torch.equal(*kept)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
