"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, dense and with experts: what is kept, and what the decoder makes of it.

What `generate` offers is in tests/hf/test_qwen_generate.py, what is refused in tests/models/test_qwen_vl_refused.py.
"""

import warnings
from functools import partial

import oracle
import pytest
import torch
from decoding import by_generate, by_loop
from pruned_families import check_batch, kept_tokens
from recompute_families import recompute
from small_models import QWEN_CLASSES, make_model
from small_prompts import Image, Video, make_inputs, make_tokenizer, user_turn, write

import adatp
from adatp.layout import Grid, VideoSize
from adatp.models import family_of
from adatp.relevance import UNCALIBRATED

STEPS = 32
FIRST, SECOND, IMAGE = Video(7, 8, 12), Video(5, 12, 8, seconds=9.0), Image(4, 8)
BATCHES = {
    "one": [user_turn(SECOND, "What is it?")],
    "padded": [user_turn(SECOND, "What is it?"), user_turn("Look: ", FIRST, "Is it a car?")],
    "mixed": [user_turn(FIRST, "And ", IMAGE, SECOND, "What?"), user_turn(IMAGE, SECOND, "Is it?")],
}
DECODE = {"generate": by_generate, "loop": by_loop}
PLAIN = adatp.AdaTP(global_debias=False)
EARLY = adatp.AdaTP(first=1, last=8, start_ratio=0.9, end_ratio=0.05, global_debias=False)
EVERYTHING = adatp.AdaTP(start_ratio=1, end_ratio=1, global_debias=False, local_debias=False)


@pytest.fixture(scope="module", params=QWEN_CLASSES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return make_model(kind)


@pytest.fixture(scope="module")
def tokenizer(kind):
    return make_tokenizer(kind)


@pytest.fixture
def apply(model, tokenizer):
    return partial(adatp.apply, model, tokenizer, relevance=None)


@pytest.fixture
def inputs_of(kind, model, tokenizer):
    return partial(make_inputs, kind, model, tokenizer)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_ratio_one_is_the_plain_model_exactly(kind, model, tokenizer, attention):
    model = model if attention == "sdpa" else make_model(kind, attention)
    for prompt in (BATCHES["one"][0], BATCHES["mixed"][0]):
        inputs = make_inputs(kind, model, tokenizer, [prompt])
        expected = model(**inputs).logits, by_generate(model, inputs, 4)[1]
        with adatp.apply(model, tokenizer, EVERYTHING) as pruned:
            found = model(**inputs).logits, by_generate(model, inputs, 4)[1]
            (sample,) = pruned.report.samples
        assert sample.kept == (sample.visual_tokens,) * 16
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("follow", DECODE)
@pytest.mark.parametrize(
    ("batch", "method"),
    [
        *((batch, PLAIN) for batch in BATCHES),
        ("one", EARLY),
        *(("padded", method) for method in (adatp.FastV(), adatp.PyramidDrop(), adatp.Uniform())),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.name} {getattr(value, 'first', '')}".strip(),
)
def test_every_token_is_that_of_a_recomputation(model, apply, inputs_of, batch, method, follow):
    inputs = inputs_of(BATCHES[batch])
    with apply(method) as pruned:
        tokens, logits = DECODE[follow](model, inputs, STEPS)
    report = pruned.report
    check_batch(model, inputs, report, tokens, logits, follow)
    for sample in report.samples:
        assert sample.first_cut == method.first_pruned(16)
        assert sample.kept[-1] < sample.visual_tokens / 2 + 1
    assert any("keep their positions" in note for note in report.notes) == method.renumbers


def test_time_stamps_stay_between_the_frames(apply, model, tokenizer, inputs_of):
    """Of Qwen3-VL's frames a method before the decoder drops most, but none of the text."""
    inputs, layer = inputs_of(BATCHES["one"]), model.model.language_model.layers[0]
    widths = []
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[1]), with_kwargs=True
    )
    try:
        with apply(adatp.Uniform()) as pruned, torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    (sample,), ids = pruned.report.samples, inputs["input_ids"][0]
    text = int((ids != model.config.video_token_id).sum())
    assert widths == [text + 30]
    assert (sample.other_tokens, sample.kept) == (text, (30,) * 16)


CONFIGS = {
    "paper": PLAIN,
    "p=2": adatp.AdaTP(p=2.0, global_debias=False),
    "no local debiasing": adatp.AdaTP(global_debias=False, local_debias=False),
    "a segment a video": adatp.AdaTP(tau_s=-1.0, global_debias=False),
    "no segments": adatp.AdaTP(segments=False, global_debias=False, local_debias=False),
    "early and steep": EARLY,
}


def frames_of_the_tower(model, inputs):
    """For each video the mean of each temporal patch's patches after the tower's last block."""
    states = model.model.visual(inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]).last_hidden_state
    means, begin = [], 0
    for t, h, w in inputs["video_grid_thw"].tolist():
        own = states[begin : begin + t * h * w].view(t, h * w, -1)
        means.append([[sum(patch) / (h * w) for patch in zip(*frame, strict=True)] for frame in own.tolist()])
        begin += t * h * w
    return means


@torch.no_grad()
def test_frames_are_the_means_of_their_patches(model, inputs_of):
    inputs, family = inputs_of(BATCHES["mixed"]), family_of(model)
    features = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
    found = family.frame_features(features, family.sizes(inputs))
    expected = torch.tensor([frame for frames in frames_of_the_tower(model, inputs) for frame in frames])
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("batch", ["one", "mixed"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_layer_keeps_what_the_oracle_keeps(model, apply, inputs_of, config, batch):
    inputs = inputs_of(BATCHES[batch][:1])
    ids, special = inputs["input_ids"][0].tolist(), model.config
    with apply(config) as pruned:
        model(**inputs)
    (sample,) = pruned.report.samples

    segment_of_frame: list[int] = []
    for frames in frames_of_the_tower(model, inputs):
        first = max(segment_of_frame, default=-1) + 1
        own = oracle.segments(frames, config.tau_s) if config.segments else [-first] * len(frames)
        segment_of_frame += [first + segment for segment in own]
    sizes = [h * w // 4 for t, h, w in inputs["video_grid_thw"].tolist() for _ in range(t)]
    assert [(s.start, s.stop) for s in sample.segments] == [
        (segment_of_frame.index(s), len(sizes) - segment_of_frame[::-1].index(s))
        for s in range(max(segment_of_frame) + 1)
    ]
    frame_and_place = [(frame, place) for frame, size in enumerate(sizes) for place in range(size)]
    visual = [i for i, token in enumerate(ids) if token == special.video_token_id]
    where = dict(zip(visual, frame_and_place, strict=True))
    marks = {special.image_token_id, special.vision_start_token_id, special.vision_end_token_id}
    text = [i for i in range(visual[-1] + 1, len(ids)) if ids[i] not in marks]

    attentions: list = []
    kept = kept_tokens(sample, inputs, 0)
    recompute(model, inputs, 0, inputs["input_ids"].new_empty(0), kept, attentions=attentions)
    layers = len(kept)
    last = config.last or layers - 12
    ratios = oracle.schedule(layers, config.p, config.first, last, config.start_ratio, config.end_ratio)
    totals = [0] * (max(segment_of_frame) + 1)
    for size, segment in zip(sizes, segment_of_frame, strict=True):
        totals[segment] += size
    nothing = [False] * len(totals)
    for layer in range(config.first, last + 2):
        attention, alive = attentions[layer - 1]
        alive = alive.tolist()
        scores = attention[:, [alive.index(token) for token in text]].double().mean((0, 1)).tolist()
        segment = [segment_of_frame[where[token][0]] if token in where else oracle.FIXED for token in alive]
        position = [where[token][1] if token in where else 0 for token in alive]
        quota = oracle.quotas(ratios[layer], totals, nothing, 1, config.alpha, config.gamma)
        keep = oracle.select(scores, segment, position, quota, config.local_debias)
        expected = [token for token, stays in zip(alive, keep, strict=True) if stays]
        assert kept[layer].tolist() == expected, f"layer {layer}"
    assert all(torch.equal(own, kept[last + 1]) for own in kept[last + 1 :])


def test_the_report_tells_sizes_and_costs(model, apply, inputs_of):
    inputs = inputs_of(BATCHES["mixed"])
    with apply(PLAIN) as pruned, torch.no_grad():
        layers = model(**inputs, use_cache=True).past_key_values.layers
    report = pruned.report
    first, second = VideoSize(7, Grid(4, 6), 2), VideoSize(5, Grid(6, 4), 2)
    assert [sample.videos for sample in report.samples] == [(first, second), (second,)]
    assert report.to_dict()["samples"][0]["videos"] == [
        {"frames": 7, "rows": 4, "columns": 6, "temporal_patch": 2},
        {"frames": 5, "rows": 6, "columns": 4, "temporal_patch": 2},
    ]
    assert report.cache_bytes == sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    assert report.cache_bytes < report.cache_bytes_full
    assert 0.2 < report.flops.ratio < 0.6
    assert report.flops.ratio == report.to_dict()["flops"]["ratio"]


@pytest.mark.parametrize(
    "method", [adatp.AdaTP(global_debias=False, local_debias=False), adatp.FastV(), adatp.Uniform()]
)
def test_flops_are_a_target(model, apply, inputs_of, method):
    with apply(method, flops=0.55) as pruned, torch.no_grad():
        model(**inputs_of(BATCHES["padded"]))
    assert pruned.report.flops.ratio == pytest.approx(0.55, abs=0.02)


ASKED = {
    "after the video": (user_turn(FIRST, "What is it?"), "What is it?"),
    "before the video": (user_turn("What is it?", FIRST), "What is it?"),
    "before and after": (user_turn("Look: ", FIRST, "\nWhat is it?"), "What is it?"),
    "system prompt": (["<|im_start|>system\nBe kind.<|im_end|>\n", *user_turn(FIRST, "What is it?")], "What is it?"),
    "system prompt, before": (["<|im_start|>system\nBe kind.<|im_end|>\n", *user_turn("Who?", FIRST)], "Who?"),
    "later turn": (
        [*user_turn(FIRST, "What is it?"), "A car.<|im_end|>\n", *user_turn("What colour has it?")],
        "What colour has it?",
    ),
    "video in the second turn": ([*user_turn("Hello"), "Hi.<|im_end|>\n", *user_turn(FIRST, "Who?")], "Who?"),
    "two videos and an image": (user_turn(FIRST, IMAGE, "or", SECOND, "Which?"), "Which?"),
    "image after the video": (user_turn(FIRST, IMAGE, "Which?"), "Which?"),
    "none": (user_turn(FIRST), ""),
}


@pytest.mark.parametrize(("prompt", "question"), ASKED.values(), ids=ASKED)
def test_the_question_is_read_as_the_chat_template_writes_it(kind, model, tokenizer, prompt, question):
    family = family_of(model)
    (ids,) = tokenizer("".join(write(kind, part) for part in prompt), return_tensors="pt")["input_ids"]
    grids = torch.tensor([part[:3] for part in prompt if isinstance(part, Video)])
    layout = family.layout(ids, family.sizes({"video_grid_thw": grids}))
    assert family.question(ids, layout, tokenizer) == question


class TestWithoutAnAlignedTextTower:
    def test_the_user_is_warned_once_and_the_report_says_so(self, kind, model, tokenizer, inputs_of):
        with pytest.warns(adatp.NoRelevanceWarning) as caught:
            pruned = adatp.apply(model, tokenizer)
        (warned,) = caught
        for words in (f"{kind} model has no aligned text tower", "tau_s is not calibrated", "adatp calibrate VIDEO"):
            assert words in str(warned.message)
        with pruned, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**inputs_of(BATCHES["one"]))
        (sample,), (note,) = pruned.report.samples, pruned.report.notes
        assert "no aligned text encoder" in note
        assert "tau_s is not calibrated" in note
        assert sample.question is None
        assert not any(segment.significant for segment in sample.segments)

    def test_without_a_comparison_only_tau_s_is_a_note(self, model, tokenizer, inputs_of):
        for method, notes in ((PLAIN, (UNCALIBRATED,)), (adatp.FastV(), ())):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with adatp.apply(model, tokenizer, method) as pruned, torch.no_grad():
                    model(**inputs_of(BATCHES["one"]))
            assert pruned.report.notes == notes

    def test_a_question_changes_nothing(self, model, tokenizer, inputs_of):
        """As for every family with relevance=None."""
        inputs, reports = inputs_of(BATCHES["one"]), []
        for question in (None, "Where is it?"):
            with pytest.warns(adatp.NoRelevanceWarning), torch.no_grad():
                with adatp.apply(model, tokenizer, relevance=None, question=question) as pruned:
                    model(**inputs)
            reports.append(pruned.report)
        assert reports[0] == reports[1]
