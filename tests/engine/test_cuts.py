"""A whole prefill: against the oracle on a model, and as tensor code on its own.

Under Triton's interpreter the same tensor code runs through the kernels.
"""

from contextlib import contextmanager
from fractions import Fraction

import oracle
import pytest
import torch
from random_prefill import layout as random_layout
from recompute import kept_tokens, prompt_embeds, recompute
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from videollm import make_inputs

import adatp
from adatp.engine import cuts as cuts_module
from adatp.engine.cuts import Cuts, Plan
from adatp.engine.scoring import Scoring
from adatp.layout import Grid, PromptLayout, VideoSize
from adatp_kernels import compact_triton, score_triton, select_triton
from adatp_kernels.dispatch import interpreted
from adatp_kernels.select import FIXED

pytestmark = pytest.mark.interpreter

IMPL = "triton" if interpreted() else "reference"

CONFIGS = {
    "paper": adatp.AdaTP(),
    "p=2": adatp.AdaTP(p=2.0),
    "all segments significant": adatp.AdaTP(tau_t=-1.0),
    "no segment significant": adatp.AdaTP(tau_t=1.0),
    "no local debiasing": adatp.AdaTP(local_debias=False),
    "no segments": adatp.AdaTP(segments=False, global_debias=False, local_debias=False),
    "early and steep": adatp.AdaTP(first=1, last=8, start_ratio=0.9, end_ratio=0.05, tau_s=0.5),
}


@torch.no_grad()
@pytest.mark.skipif(
    interpreted(), reason="compared with the reference below, on fewer prefills: the interpreter is slow"
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_layer_keeps_what_the_oracle_keeps(small, config):
    inputs = make_inputs(small, ["What is in the picture?"], frames=11, seed=5)
    embeds = prompt_embeds(small.model, inputs)[0]
    with adatp.apply(small.model, small.processor, config, relevance=small.relevance) as pruned:
        small.model(**inputs)
    sample = pruned.report.samples[0]
    n, c, layers = sample.frames, sample.tokens_per_frame, len(sample.kept)
    begin = int((inputs["input_ids"][0] == small.model.config.video_token_id).nonzero()[0])
    text = range(begin + n * c + 1, len(embeds))

    states = small.model.model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True)
    frames = small.relevance(states.hidden_states[-1]).tolist()
    question = small.relevance.text(["What is in the picture?"])[0].tolist()
    ids = oracle.segments(frames, config.tau_s) if config.segments else [0] * n
    similarity = [oracle.cosine(frame, question) for frame in frames]
    chosen = oracle.significant(similarity, ids, config.tau_t)
    if not config.global_debias:
        chosen = [False] * len(chosen)
    assert [(s.start, s.stop) for s in sample.segments] == [
        (ids.index(s), n - ids[::-1].index(s)) for s in range(max(ids) + 1)
    ]
    assert [s.significant for s in sample.segments] == chosen

    attentions = []
    kept = kept_tokens(sample, len(embeds))
    recompute(small.model, embeds, kept, attentions=attentions)
    last = config.last or layers - 12
    ratios = oracle.schedule(layers, config.p, config.first, last, config.start_ratio, config.end_ratio)
    frames_of = [ids.count(s) for s in range(max(ids) + 1)]
    for layer in range(config.first, last + 2):
        attention, alive = attentions[layer - 1]
        alive = alive.tolist()
        rows = [alive.index(token) for token in text]
        scores = attention[:, rows].double().mean((0, 1)).tolist()
        visual = [begin <= token < begin + n * c for token in alive]
        segment = [ids[(t - begin) // c] if v else FIXED for t, v in zip(alive, visual, strict=True)]
        position = [(t - begin) % c if v else 0 for t, v in zip(alive, visual, strict=True)]
        quota = oracle.quotas(ratios[layer], frames_of, chosen, c, config.alpha, config.gamma)
        keep = oracle.select(scores, segment, position, quota, config.local_debias)
        expected = [token for token, stays in zip(alive, keep, strict=True) if stays]
        assert kept[layer].tolist() == expected, f"layer {layer}"
    for layer in range(last + 1, layers):
        assert torch.equal(kept[layer], kept[last + 1])


def two_grids():
    """A prompt with 3 frames of 3 x 3 tokens and 3 of 2 x 4; after each frame there is a token that always stays."""
    videos = VideoSize(3, Grid(3, 3)), VideoSize(3, Grid(2, 4))
    return PromptLayout(71, (4, 14, 24, 34, 43, 52), torch.arange(61, 71), videos)


@pytest.fixture(params=["one video", "two videos", "two grids"])
def layout(request):
    """A prompt with 6 frames."""
    if request.param == "two grids":
        return two_grids()
    videos = 1 if request.param == "one video" else 2
    return random_layout(6 // videos, 10, videos, before=4, grid=Grid(3, 3))


def run(prefill, layout, device):
    """All cuts on random tensors; the tokens after each."""
    torch.manual_seed(0)

    def random(*shape):
        return torch.randn(1, *shape).to(device)

    tokens = prefill.tokens(*(random(layout.length, width) for width in (6, 4, 4)))
    after = []
    for layer in prefill.ratios:
        rows = tokens.places.rows.shape[1]
        tokens = prefill.cut(layer, tokens, random(4, rows, 4), random(2, tokens.width, 4), 0.5)
        after.append(tokens)
    return after


def make(layout, device="cpu", impl=IMPL, **settings):
    torch.manual_seed(1)
    features = torch.randn(6, 8)
    features[1] = features[0]
    config = adatp.AdaTP(last=4, **settings)
    similarity = torch.rand(6).sub(0.4).to(device)
    return Cuts(config, 12, layout, frames=features.to(device), similarity=similarity, scoring=Scoring(impl))


def segments(prefill, tokens):
    """`[W]` the segment of each token, `FIXED` for one that always stays."""
    layout = prefill.layout
    segment = torch.full((layout.length,), FIXED)
    segment[layout.visual] = prefill.plan.segment_of_frame.repeat_interleave(torch.tensor(layout.frame_tokens))
    return segment[tokens.origin[0]]


def test_what_travels_with_a_token_stays_with_it(layout):
    prefill = make(layout)
    first, *_, last = after = run(prefill, layout, "cpu")
    torch.manual_seed(0)
    hidden, cos, sin = (torch.randn(1, layout.length, width) for width in (6, 4, 4))
    assert last.width < first.width < layout.length
    position = torch.full((layout.length,), FIXED)
    position[layout.visual] = torch.cat([torch.arange(tokens) for tokens in layout.frame_tokens])
    fixed = (position == FIXED).nonzero().flatten()
    for tokens in after:
        origin = tokens.origin[0]
        assert origin.diff().min() > 0, "order is kept"
        assert torch.equal(tokens.hidden, hidden[:, origin])
        assert torch.equal(tokens.tables[0], cos[:, origin])
        assert torch.equal(tokens.tables[1], sin[:, origin])
        assert torch.equal(tokens.position[0], position[origin])
        assert set(fixed.tolist()) <= set(origin.tolist()), "text and newline always stay"


def test_rows_always_point_at_the_text_after_the_video(layout):
    for tokens in run(make(layout), layout, "cpu"):
        assert torch.equal(tokens.origin[0, tokens.places.rows[0]], layout.rows)


def test_columns_are_as_few_as_can_be(layout):
    for tokens in run(make(layout), layout, "cpu"):
        start, stop = tokens.places.columns
        outside = torch.cat([tokens.position[0, :start], tokens.position[0, stop:]])
        assert (outside == FIXED).all()
        assert start == 4
        assert stop == tokens.width - 1 - len(layout.rows), "the text after the video, and its newline"


def test_counts_follow_from_the_first_cut(layout):
    prefill = make(layout)
    for k, tokens in enumerate(run(prefill, layout, "cpu")):
        segment = segments(prefill, tokens)
        living = segment[segment >= 0].bincount(minlength=6)
        assert torch.equal(living, prefill.plan.kept[k])
        assert tokens.width == living.sum() + layout.length - layout.visual_tokens


def test_no_segment_holds_frames_of_two_videos():
    layout = random_layout(3, 10, 2, grid=Grid(3, 3))
    prefill = Cuts(adatp.AdaTP(last=4), 12, layout, frames=torch.ones(6, 8), scoring=Scoring(IMPL))
    run(prefill, layout, "cpu")
    assert prefill.plan.segment_of_frame.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_segment_of_a_larger_grid_keeps_more():
    """Quotas are shares of tokens, so frames of 9 and of 8 tokens keep 9 : 8."""
    prefill = Cuts(
        adatp.AdaTP(last=4, local_debias=False), 12, two_grids(), frames=torch.ones(6, 8), scoring=Scoring(IMPL)
    )
    run(prefill, two_grids(), "cpu")
    for ratio, kept in zip(prefill.ratios.values(), prefill.plan.kept[:, :2].tolist(), strict=True):
        assert kept == oracle.largest_remainder([Fraction(ratio) * 27, Fraction(ratio) * 24])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_device_is_read_once(layout, monkeypatch, impl):
    """Meta tensors have no data, so any read of the device but the one replaced here raises."""
    host = make(layout)
    expected = run(host, layout, "cpu")
    reads = []

    def read(self, method, grouping, quota):
        reads.append(quota.device.type)
        return host.plan

    monkeypatch.setattr(Cuts, "_read", read)
    after = run(make(layout, "meta", impl), layout, "meta")
    assert reads == ["meta"]
    assert [t.hidden.shape for t in after] == [t.hidden.shape for t in expected]
    assert after[-1].hidden.device.type == "meta"


def test_the_one_read_is_one_transfer(layout, monkeypatch):
    transfers = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self.shape) or cpu(self))
    prefill = make(layout)
    run(prefill, layout, "cpu")
    assert len(transfers) == 1
    assert isinstance(prefill.plan, Plan)


def test_the_segments_stand_where_the_plan_says(layout):
    prefill = make(layout)
    for tokens in run(prefill, layout, "cpu"):
        segment, begin = segments(prefill, tokens).tolist(), tokens.places.begin[0]
        for s in set(segment) - {FIXED}:
            assert set(segment[begin[s] : segment.index(s)]) <= {FIXED}, "text between the frames may come first"
        assert (begin.diff() >= 0).all()


class Operations(TorchDispatchMode):
    """Names of the operations: all of them, and `on_device` those on meta tensors, views aside."""

    def __init__(self):
        super().__init__()
        self.names, self.on_device = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        self.names.append(func._schema.name)
        if not func.is_view and any(tensor.is_meta for tensor in tensors):
            self.on_device.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def watched_cuts(prefill, layout, device, watch):
    """Run all cuts, each inside `watch()`; what `watch()` gave, by cut."""
    tokens = prefill.tokens(*(torch.randn(1, layout.length, width, device=device) for width in (6, 4, 4)))
    watched = []
    for layer in prefill.ratios:
        query = torch.randn(1, 4, tokens.places.rows.shape[1], 4, device=device)
        key = torch.randn(1, 2, tokens.width, 4, device=device)
        with watch() as seen:
            tokens = prefill.cut(layer, tokens, query, key, 0.5)
        watched.append(seen)
    return watched


def test_a_later_cut_is_three_operations_and_nothing_else(layout, monkeypatch):
    host = make(layout)
    run(host, layout, "cpu")
    monkeypatch.setattr(Cuts, "_read", lambda self, method, grouping, quota: host.plan)
    _, *seen = watched_cuts(make(layout, "meta", "triton"), layout, "meta", Operations)
    assert [operations.on_device for operations in seen] == [["adatp::score", "adatp::select", "adatp::compact"]] * 3


@pytest.mark.parametrize("frames", [32, 1024])
def test_few_operations_wait_for_the_host(monkeypatch, frames):
    """All that is dispatched counts, on host tensors too; what the one read brings is noted on the host before."""
    layout = random_layout(frames, 130)
    read = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: read.append(cpu(self)) or read[-1])

    def cuts(device, impl):
        torch.manual_seed(0)
        features, similarity = torch.randn(frames, 8).to(device), torch.rand(frames).sub(0.4).to(device)
        prefill = Cuts(adatp.AdaTP(), 28, layout, frames=features, similarity=similarity, scoring=Scoring(impl))
        return watched_cuts(prefill, layout, device, Operations)

    cuts("cpu", "reference")
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: read[0])
    first, *later = (len(operations.names) for operations in cuts("meta", "triton"))
    assert first <= 60
    assert max(later) <= 16


@pytest.mark.skipif(not interpreted(), reason="counts what the interpreter launches; test_cuda.py does on a GPU")
def test_a_later_cut_is_four_launches(layout, monkeypatch):
    launches = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launches.append(self.kernel.__name__)
            return self.kernel[grid]

    @contextmanager
    def counted():
        launches.clear()
        names = []
        yield names
        names += launches

    for module in (score_triton, select_triton, compact_triton):
        for name in ("normaliser_kernel", "column_kernel", "select_kernel", "compact_kernel"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, Counted(getattr(module, name)))
    _, *seen = watched_cuts(make(layout), layout, "cpu", counted)
    assert seen == [["normaliser_kernel", "column_kernel", "select_kernel", "compact_kernel"]] * 3


@torch.no_grad()
@pytest.mark.skipif(not interpreted(), reason="the kernels run on the host in Triton's interpreter only")
@pytest.mark.parametrize("name", ["paper", "no local debiasing", "early and steep"])
def test_the_kernels_keep_what_the_reference_keeps(sdpa, name):
    """In every layer, for a padded batch of two clips and questions; and the logits that come of it."""
    inputs = make_inputs(sdpa, ["What is in the picture?", "Where?"], frames=10, seed=3)
    kept, logits = {}, {}
    for impl in ("reference", "triton"):
        with adatp.apply(sdpa.model, sdpa.processor, CONFIGS[name], relevance=sdpa.relevance, impl=impl) as pruned:
            logits[impl] = sdpa.model(**inputs, logits_to_keep=1).logits
        samples, layers = pruned.report.samples, range(len(pruned.report.samples[0].kept))
        kept[impl] = torch.stack([torch.as_tensor(s.kept_mask(layer)) for s in samples for layer in layers])
    assert torch.equal(kept["triton"], kept["reference"])
    torch.testing.assert_close(logits["triton"], logits["reference"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.skipif(not interpreted(), reason="the kernels run on the host in Triton's interpreter only")
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "visionzip", "dycoke"])
def test_the_kernels_keep_what_the_reference_keeps_for_other_methods(sdpa, method):
    """And after two tokens of decoding, in which DyCoke scores and selects too."""
    inputs = make_inputs(sdpa, ["What is in the picture?", "Where?"], frames=6, seed=3)
    kept, logits = {}, {}
    for impl in ("reference", "triton"):
        with adatp.apply(sdpa.model, sdpa.processor, method, impl=impl) as pruned:
            output = sdpa.model.generate(
                **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            logits[impl] = torch.stack(output.logits)
        kept[impl] = torch.stack([s.kept_mask(layer) for s in pruned.report.samples for layer in range(16)])
    assert torch.equal(kept["triton"], kept["reference"])
    torch.testing.assert_close(logits["triton"], logits["reference"], rtol=1e-5, atol=1e-5)


def test_a_cut_that_drops_nothing_moves_nothing(layout, monkeypatch):
    prefill = make(layout, start_ratio=1.0, end_ratio=1.0, alpha=1.0, local_debias=False, global_debias=True, tau_t=1.0)
    calls = []
    compact = cuts_module.compact
    monkeypatch.setattr(cuts_module, "compact", lambda *a, **k: calls.append(1) or compact(*a, **k))
    after = run(prefill, layout, "cpu")
    assert len(calls) == 1, "only the first cut, which nobody knows the counts of"
    assert {t.width for t in after} == {layout.length}


def test_a_segment_is_significant_only_above_the_threshold(layout):
    similarity = torch.tensor([0.25, 0.5, 0.75, 0.5, 0.0, 0.1])
    prefill = Cuts(
        adatp.AdaTP(last=4, tau_t=0.5), 12, layout, frames=torch.eye(6), similarity=similarity, scoring=Scoring(IMPL)
    )
    run(prefill, layout, "cpu")
    assert prefill.plan.significant.tolist() == [False, False, True, False, False, False]


def test_a_prompt_goes_on_where_its_layers_are(layout):
    """From the device of one layer to that of the next; meta tensors meet no others."""
    prefill = make(layout, impl="reference")
    first, second, *_ = prefill.ratios
    tokens = prefill.tokens(*(torch.randn(1, layout.length, width) for width in (6, 4, 4)))
    query, key = torch.randn(1, 4, 10, 4), torch.randn(1, 2, layout.length, 4)
    tokens = prefill.cut(first, tokens, query, key, 0.5)
    moved = tokens.follow(tokens.hidden.to("meta"))
    after = prefill.cut(second, moved, query.to("meta"), torch.randn(1, 2, moved.width, 4, device="meta"), 0.5)
    assert after.width < moved.width
    assert {
        t.device.type
        for t in (after.hidden, *after.tables, after.position, after.origin, after.places.rows, after.places.begin)
    } == {"meta"}


def test_other_ranks_have_a_say_before_the_selection(layout):
    """As tensor parallelism averages the scores; here they are turned round."""
    torch.manual_seed(1)
    features = torch.randn(6, 8)
    kept = []
    for average in (None, torch.neg):
        prefill = Cuts(adatp.AdaTP(last=4), 12, layout, frames=features, scoring=Scoring(IMPL, average))
        kept.append(run(prefill, layout, "cpu")[0].origin[0].tolist())
    assert kept[0] != kept[1]
