"""What only a GPU can show: that nothing waits for it, how much is launched, and that the kernels are right on it."""

from collections import defaultdict
from contextlib import contextmanager, nullcontext

import pytest
import torch

pytest.importorskip("triton")

import triton
from operators import poisoned
from random_prefill import layout, prefill
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_map_only
from videollm import make_inputs

import adatp
from adatp.engine.cuts import Cuts
from adatp.layout import Grid
from adatp.methods import METHODS
from adatp.small.untrained import load_untrained
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


PROMPTS = {
    "one video": layout(8, 23),
    "two videos": layout(8, 23, 2),
    # of what is sent to the device, frames' and segments' begins and text rows are more than 64 KB each
    "long": layout(8200, 9000, grid=Grid(1, 1)),
}


@pytest.fixture(autouse=True)
def full_precision():
    """Products and convolutions of fp32 in fp32: cuDNN would take TF32 of its own accord."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("method", [adatp.AdaTP(), adatp.FastV(), adatp.PyramidDrop()], ids=lambda method: method.name)
def test_nothing_waits_for_the_gpu_but_the_one_read(monkeypatch, prompt, method):
    reads = []
    read = Cuts._read

    def may_wait(self, *args):
        reads.append(1)
        with waiting("default"):
            return read(self, *args)

    monkeypatch.setattr(Cuts, "_read", may_wait)
    one = torch.ones(1, device="cuda")
    with waiting("error"):
        with pytest.raises(RuntimeError, match="synchronizing"):
            one.item()
        after = prefill(prompt, "cuda", method=method)
    assert reads == [1]
    assert after[-1][0].width <= after[0][0].width < prompt.length, "and it was a pruned prefill"


@VIDEOS
def test_a_later_cut_is_at_most_five_kernels(videos):
    """Four of ours, and the zeros that two of them count arrivals on."""

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
    assert [names for names in later if len(names) > 5] == []


@VIDEOS
def test_prompts_of_other_lengths_compile_nothing_new(monkeypatch, videos):
    kernels = (
        score_triton.normaliser_kernel,
        score_triton.column_kernel,
        select_triton.select_kernel,
        compact_triton.compact_kernel,
    )
    for kernel in kernels:  # as in a fresh process, whatever other tests have compiled
        monkeypatch.setattr(kernel, "programs", {})
        monkeypatch.setattr(kernel.kernel, "device_caches", defaultdict(kernel.kernel.create_binder))

    def compiled():
        return {kernel.__name__: len(kernel.kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels}

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


@DTYPES
@pytest.mark.parametrize("dim", [72, 80, 256])
def test_scores_of_other_heads_are_as_right_as_eager_attention(dtype, dim):
    inputs = attention(dtype, 16 * 196, heads=8, groups=2, dim=dim)
    assert_as_right_as_eager(score(*inputs, scale=dim**-0.5), *inputs, dim**-0.5)


def test_one_row_is_as_right_as_eager_attention():
    """As FastV scores."""
    inputs = attention(torch.bfloat16, text=1)
    assert_as_right_as_eager(score(*inputs, scale=128**-0.5), *inputs, 128**-0.5)


def test_padding_changes_no_score():
    query, key, rows, (start, stop) = attention(torch.bfloat16, 16 * 196, heads=8, groups=2)
    padding = 100
    padded = torch.cat([torch.full_like(key[:, :, :padding], 9.0), key], 2)
    got = score(
        query, padded, rows + padding, (0, stop + padding), scale=0.1, first_key=torch.tensor([padding], device="cuda")
    )
    assert not got[:, :padding].any()
    assert_as_right_as_eager(got[:, start + padding :], query, key, rows, (start, stop), 0.1)


def test_strided_keys_and_queries_are_as_contiguous_ones():
    """As a fused projection, and a cache with room to spare, leave them."""
    query, key, rows, columns = attention(torch.bfloat16, 16 * 196, heads=8, groups=2)
    room = torch.randn(1, 2, key.shape[2] + 77, 2 * 128, device="cuda").bfloat16()
    room[:, :, : key.shape[2], :128] = key
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)
    got = score(turned, room[:, :, : key.shape[2], :128], rows, columns, scale=0.1)
    assert torch.equal(got, score(query, key, rows, columns, scale=0.1))


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
    first, second = score_triton.tiles(heads // groups * text, dim, query.element_size())
    tiles, blocks = groups * triton.cdiv(heads // groups * text, first.m), triton.cdiv(count, second.n)
    splits, _ = score_triton.key_splits(tiles, length, first, query.device)
    parts, _ = score_triton.row_parts(
        blocks, groups * triton.cdiv(heads // groups * text, second.m), second, query.device
    )
    # of a row its query, pairs for each split, its bound and lse2; parts of the columns, the columns, what has arrived
    words = tiles * first.m * (dim // 2 + 2 * splits + 2) + count * parts + count + tiles + blocks
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = score(query, key, rows, columns, scale=0.1)
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    assert result.numel() == count
    assert taken <= 4 * words + 4096, "with a little for the allocator's granularity"
    assert taken < 4 * heads * text * length / 20, "nowhere near heads x rows x keys"


def clips(frames, per_segment, *, scores=None):
    """What `select` takes of two prompts of `frames`, the second one padded, with `per_segment` frames a segment."""
    random = torch.Generator().manual_seed(0)
    visual, segments = frames * 196, frames // per_segment
    if scores is None:
        scores = torch.randn(2, visual, generator=random).exp().mul(8).round()  # many ties
        scores[torch.rand(2, visual, generator=random) < 0.01] = float("nan")
    position = torch.full((2, visual + 30), FIXED)
    position[:, 14 : 14 + visual] = torch.arange(visual) % 196
    position[1, :6] = PADDING
    begin = (14 + 196 * torch.arange(frames)).repeat(2, 1)
    segment = (torch.arange(frames) // per_segment).repeat(2, 1)
    quota = torch.zeros(2, frames, dtype=torch.int64)
    quota[:, :segments] = torch.randint(0, per_segment * 196 + 9, (2, segments), generator=random)
    return (scores, position, begin, quota), {"positions": 196, "start": 14, "segment": segment}


def on_gpu(inputs, options):
    return tree_map_only(torch.Tensor, torch.Tensor.cuda, (inputs, options))


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize(("frames", "per_segment"), [(32, 8), (1024, 8), (32, 32), (1024, 1024), (1024, 64)])
def test_select_keeps_the_same_tokens_as_the_reference(frames, per_segment, deduplicate):
    inputs, options = clips(frames, per_segment)
    want = select_reference(*inputs, **options, deduplicate=deduplicate)
    inputs, options = on_gpu(inputs, options)
    for got, wanted in zip(select(*inputs, **options, deduplicate=deduplicate), want, strict=True):
        assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize("frames", [32, 1024])
def test_a_static_video_is_selected_alike_a_hundred_times(frames):
    """One segment, all scores equal, and what was in the memory before differs from time to time."""
    inputs, options = clips(frames, frames, scores=torch.full((2, frames * 196), 0.25))
    want = select_reference(*inputs, **options)
    inputs, options = on_gpu(inputs, options)
    want = [part.cuda() for part in want]
    for turn in range(100):
        with poisoned() if turn % 2 else nullcontext():
            got = select(*inputs, **options)
        assert all(torch.equal(part, wanted) for part, wanted in zip(got, want, strict=True)), f"turn {turn}"


def cut():
    """A first cut's three operations, as a function of the queries and the keys, and such queries and keys."""
    query, key, rows, columns = attention(torch.bfloat16, heads=8, groups=2)
    length = key.shape[2]
    inputs, options = on_gpu(*clips(32, 8))
    _, position, begin, quota = (part[:1] for part in inputs)
    options["segment"] = options["segment"][:1]
    position = torch.nn.functional.pad(position, (0, length - position.shape[1]), value=FIXED)
    hidden = torch.randn(1, length, 64, device="cuda")

    def chosen(query, key):
        scores = score(query, key, rows, columns, scale=0.1)
        # what deduplication leaves would depend on the queries, and how many tokens are moved has to be known
        return scores, *select(scores, position, begin, quota, **options, deduplicate=False)

    _, keep, _ = chosen(query, key)
    count = int(keep.sum())

    def run(query, key):
        scores, keep, kept = chosen(query, key)
        return scores, keep, kept, *compact(keep, [count], [hidden])

    return run, query, key


def assert_same(got, want):
    assert all(torch.equal(part, wanted) for part, wanted in zip(got, want, strict=True))


def test_a_cut_replays_from_a_cuda_graph():
    run, query, key = cut()
    other = torch.randn_like(query)
    want, changed = run(query, key), run(other, key)
    assert not torch.equal(want[0], changed[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(query, key)
    torch.cuda.current_stream().wait_stream(side)
    graph, given = torch.cuda.CUDAGraph(), query.clone()
    with torch.cuda.graph(graph):
        got = run(given, key)
    for turn in range(100):
        given.copy_(other if turn % 2 else query)
        graph.replay()
        assert_same(got, changed if turn % 2 else want)


def test_a_cut_runs_on_another_stream():
    run, query, key = cut()
    want = run(query, key)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    torch.cuda._sleep(10_000_000)  # the stream that nothing here belongs on
    with torch.cuda.stream(side):
        got = run(query, key)
    side.synchronize()
    assert_same(got, want)


def test_a_cut_is_the_same_in_deterministic_mode():
    run, query, key = cut()
    want = run(query, key)
    with poisoned():
        assert_same(run(query, key), want)


def test_a_cut_is_the_same_where_pytorch_is_passed_by():
    """Without gradients an operator is called at once."""
    run, query, key = cut()
    want = run(query, key)
    with torch.no_grad():
        assert_same(run(query, key), want)
    with torch.inference_mode():
        assert_same(run(query, key), want)


def test_a_cut_compiles_as_one_graph():
    run, query, key = cut()
    torch._dynamo.reset()
    assert_same(torch.compile(run, fullgraph=True)(query, key), run(query, key))


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
    position = torch.arange(got.shape[1], device="cuda:1")[None] % 196
    begin = torch.zeros(1, 1, dtype=torch.int64, device="cuda:1")
    keep, _ = select(got, position, begin, begin + 99, positions=196)
    (moved,) = compact(keep, [int(keep.sum())], [got])
    assert got.device == moved.device == torch.device("cuda:1")
    torch.testing.assert_close(got, score(*inputs, scale=0.1, impl="reference"), rtol=2e-2, atol=1e-6)
    assert torch.equal(moved[0], got[keep])


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_on_the_gpu_what_it_keeps_on_the_cpu(monkeypatch, method):
    """A padded batch of two clips; and the logits of what is generated, DyCoke's choice in decoding included.

    Tokens may differ where their scores hardly do; what follows such a cut is another prompt, and not compared.
    """
    scored, scores_of = {}, Cuts._scores  # by prompt, in order

    def noted(self, tokens, *args):
        scores = scores_of(self, tokens, *args)
        whole = torch.full((self.layout.length,), float("nan"))
        whole[tokens.origin[0, slice(*tokens.places.columns)].cpu()] = scores[0].cpu()
        scored.setdefault(self, []).append(whole[self.layout.visual])
        return scores

    monkeypatch.setattr(Cuts, "_scores", noted)
    kept, logits, scores = [], [], []
    for device in ("cpu", "cuda"):
        untrained = load_untrained(image_size=84, layers=16)
        model, relevance = untrained.model.to(device), untrained.relevance.to(device)
        inputs = make_inputs(untrained, ["What is in the picture?", "Where?"]).to(device)
        with adatp.apply(model, untrained.processor, method, relevance=relevance) as pruned:
            output = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            samples = pruned.report.samples
            kept.append([[s.kept_mask(layer).flatten() for layer in range(16)] for s in samples])
        logits.append(torch.stack(output.logits).cpu())
        scores.append(list(scored.values()))
        scored.clear()
    for b, (host, device) in enumerate(zip(*kept, strict=True)):
        changes = [layer for layer in range(1, 16) if not torch.equal(host[layer], host[layer - 1])]
        different = [layer for layer in range(16) if not torch.equal(host[layer], device[layer])]
        if different:
            assert scores[0], "nothing was scored, so nothing may differ"
            layer = different[0]
            near = scores[0][b][changes.index(layer)][host[layer] != device[layer]]
            assert near.max() - near.min() <= 1e-5, f"prompt {b}, layer {layer}"
    if torch.equal(*(torch.stack([layer for sample in own for layer in sample]) for own in kept)):
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
