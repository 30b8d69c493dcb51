"""What `generate` offers, on pruned models of Qwen-VL's families: every token is that of a recomputation."""

import inspect
import threading
import weakref
from functools import partial

import pytest
import torch
from decoding import by_generate
from flash import use_flash
from pruned_families import CLOSE, check_batch, check_sample, kept_tokens
from recompute_families import recompute
from small_models import QWEN_CLASSES, make_model
from small_prompts import Image, Video, make_inputs, make_tokenizer, user_turn

import adatp
from adatp.hf import compiled_layers
from adatp.hf import last_layers as last_layers_module

TOKENS = 6
FIRST, SECOND, IMAGE = Video(7, 8, 12), Video(5, 12, 8, seconds=9.0), Image(4, 8)
ONE = [user_turn(SECOND, "What is it?")]
MIXED = [user_turn(FIRST, "And ", IMAGE, SECOND, "What?"), user_turn(IMAGE, SECOND, "Is it?")]
ADATP, UNIFORM = adatp.AdaTP(global_debias=False), adatp.Uniform()
EVERYTHING = adatp.AdaTP(start_ratio=1, end_ratio=1, global_debias=False, local_debias=False)

one_and_mixed = pytest.mark.parametrize("prompts", [ONE, MIXED], ids=["one", "mixed"])
methods = pytest.mark.parametrize("method", [ADATP, UNIFORM], ids=lambda method: method.name)


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
def inputs_of(kind, model, tokenizer):
    return partial(make_inputs, kind, model, tokenizer)


def generate(model, inputs, method=None, tokens=TOKENS, seed=0, **settings):
    """The output of `generate`, and its report; of the plain model without a method."""
    if method is not None:
        with adatp.apply(model, method=method, relevance=None) as pruned:
            return generate(model, inputs, None, tokens, seed, **settings)[0], pruned.report
    settings = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, **settings}
    torch.manual_seed(seed)
    return model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **settings), None


def check(model, inputs, output, report):
    """Hold every sequence's logits to the recomputation."""
    prompts, beams = len(inputs["input_ids"]), getattr(output, "beam_indices", None)
    sequences, samples = len(output.sequences) // prompts, len(report.samples) // prompts
    for i, sequence in enumerate(output.sequences):
        tokens, b = sequence[inputs["input_ids"].shape[1] :], i // sequences
        rows = [i] * len(tokens) if beams is None else beams[i].tolist()
        logits = torch.stack([step[row] for step, row in zip(output.logits, rows, strict=False)])
        check_sample(model, inputs, b, report.samples[b * samples], tokens, logits)


@one_and_mixed
@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["beams", "sampling"],
)
def test_copies_of_prompts(model, inputs_of, prompts, settings):
    inputs = inputs_of(prompts)
    if prompts is MIXED and "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        with pytest.raises(adatp.Unsupported, match="gives the copies of a prompt with several videos the wrong"):
            generate(model, inputs, ADATP, **settings)
        return
    output, report = generate(model, inputs, ADATP, **settings)
    check(model, inputs, output, report)
    assert len(report.samples) == 2 * len(prompts)
    if prompts is ONE:
        same, _ = generate(model, inputs, EVERYTHING, **settings)
        assert torch.equal(same.sequences, generate(model, inputs, **settings)[0].sequences)


@methods
@pytest.mark.parametrize("settings", [{"cache_implementation": "static"}, {"use_cache": False}], ids=["static", "none"])
def test_caches(model, inputs_of, method, settings):
    inputs = inputs_of(MIXED)
    output, report = generate(model, inputs, method, **settings)
    check(model, inputs, output, report)


def test_flash_attention(kind, tokenizer):
    """Which takes gaps in positions for borders of packed sequences."""
    model = make_model(kind)
    use_flash(model)
    inputs = make_inputs(kind, model, tokenizer, MIXED)
    for method in (ADATP, UNIFORM):
        output, report = generate(model, inputs, method)
        check(model, inputs, output, report)


@methods
def test_prompt_lookup(model, inputs_of, method):
    inputs = inputs_of([["<|im_start|>system\nBe kind.<|im_end|>\n", *ONE[0]]])
    widths, layer = [], model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    try:
        output, report = generate(model, inputs, method, tokens=30, prompt_lookup_num_tokens=4)
    finally:
        handle.remove()
    assert torch.equal(output.sequences, generate(model, inputs, method, tokens=30)[0].sequences)
    check(model, inputs, output, report)
    assert max(widths[1:]) > 1, "there should have been drafts"


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_features_beforehand(model, tokenizer, inputs_of, settings):
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this version of transformers takes no features that were encoded beforehand")
    inputs, runs = inputs_of(MIXED), []
    expected, expected_report = generate(model, inputs, ADATP, **settings)
    given = dict(inputs)
    with adatp.apply(model, tokenizer, ADATP):
        pixels, grid = given.pop("pixel_values_videos"), given["video_grid_thw"]
        features = model.get_video_features(pixels, grid, return_dict=True)
    before = [own.clone() for own in features.pooler_output]
    handle = model.model.visual.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    try:
        for _ in range(2):
            given["mm_encoder_outputs"] = {"video": features}
            output, report = generate(model, given, ADATP, **settings)
            assert report == expected_report
            assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))
    finally:
        handle.remove()
    assert all(map(torch.equal, before, features.pooler_output)), "the caller's features were changed"
    assert runs == [len(inputs["pixel_values"])] * 2, "the tower ran for the images alone"


@pytest.mark.parametrize("count", [1, 2], ids=["one", "batch"])
def test_a_follow_up_on_the_kept_cache(model, tokenizer, inputs_of, count):
    """The video is short, so that all ways of counting positions on agree."""
    inputs = inputs_of([user_turn(Video(3, 12, 8), "What?"), user_turn(Video(2, 8, 12), "Why is it?")][:count])
    said = tokenizer("<|im_end|>\n<|im_start|>user\nAnd where?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]

    def talk():
        output, _ = generate(model, inputs, tokens=4)
        ids = torch.cat([output.sequences, torch.tensor([said]).expand(count, -1)], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 4 + len(said)), value=1)
        again = {"input_ids": ids, "attention_mask": mask, "past_key_values": output.past_key_values}
        answer, _ = generate(model, again)
        return answer.sequences, torch.stack(answer.logits, 1)

    plain, plain_logits = talk()
    with adatp.apply(model, tokenizer, EVERYTHING):
        same, same_logits = talk()
    assert torch.equal(plain, same)
    torch.testing.assert_close(same_logits, plain_logits, **CLOSE)
    with adatp.apply(model, tokenizer, ADATP) as pruned:
        ids, logits = talk()
    length = inputs["input_ids"].shape[1]
    for b, sample in enumerate(pruned.report.samples):
        assert sample.kept[-1] < sample.visual_tokens / 2
        for follow in ("generate", "loop"):
            again = recompute(model, inputs, b, ids[b, length:-1], kept_tokens(sample, inputs, b), follow=follow)
            torch.testing.assert_close(logits[b], again[-TOKENS:], **CLOSE)


@torch.no_grad()
def test_embeddings_are_pruned_like_ids(model, tokenizer, inputs_of):
    """At plain positions: without ids transformers knows no others."""
    inputs = inputs_of(ONE)
    given = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del given["input_ids"], given["mm_token_type_ids"]
    same, expected = generate(model, given, EVERYTHING)[0], generate(model, given)[0]
    assert torch.equal(torch.stack(same.logits), torch.stack(expected.logits))
    _, report = generate(model, given, ADATP)
    _, of_ids = generate(model, inputs, ADATP)
    (sample,), (other,) = report.samples, of_ids.samples
    assert sample.kept[:2] == other.kept[:2] == (120, 120)
    assert [s.start for s in sample.segments] == [s.start for s in other.segments]
    assert sample.kept[-1] == other.kept[-1]


def test_bf16(kind, model, tokenizer, inputs_of):
    half = make_model(kind).to(torch.bfloat16)
    inputs = inputs_of(ONE)
    given = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        expected = half(**given).logits
        with adatp.apply(half, tokenizer, EVERYTHING):
            assert torch.equal(half(**given).logits, expected)
    output, report = generate(half, given, ADATP)
    close, fp32 = generate(model, inputs, ADATP)
    assert torch.stack(output.logits).isfinite().all()
    assert {t.dtype for layer in output.past_key_values.layers for t in (layer.keys, layer.values)} == {torch.bfloat16}
    assert torch.cosine_similarity(output.logits[0].float(), close.logits[0]).item() > 0.95
    (ours,), (theirs,) = report.samples, fp32.samples
    assert [s.start for s in ours.segments] == [s.start for s in theirs.segments]
    both = ours.kept_mask(2) & theirs.kept_mask(2)
    assert both.sum() > 0.9 * theirs.kept_mask(2).sum()


def test_threads_share_a_model(model, tokenizer, inputs_of):
    prompts = [inputs_of(ONE), inputs_of(MIXED)]
    expected = [generate(model, inputs, ADATP) for inputs in prompts]
    found = [None] * 2

    def work(i):
        found[i] = generate(model, prompts[i])[0], pruned.thread_report

    with adatp.apply(model, tokenizer, ADATP) as pruned:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for (output, report), (wanted, wanted_report) in zip(found, expected, strict=True):
        assert report == wanted_report
        assert torch.equal(output.sequences, wanted.sequences)


def test_compiled_layers(monkeypatch):
    """Deepstack adds to what a layer puts out, so that the layers which it adds to do not run as one graph."""
    monkeypatch.setattr(compiled_layers, "BACKEND", "aot_eager")
    monkeypatch.setattr(compiled_layers, "_GRAPHS", weakref.WeakKeyDictionary())
    monkeypatch.setattr(compiled_layers, "_WARM", weakref.WeakSet())
    monkeypatch.setattr(last_layers_module, "DEVICES", {"cpu"})
    model, tokenizer = make_model("qwen3_vl", layers=5), make_tokenizer("qwen3_vl")
    inputs = make_inputs("qwen3_vl", model, tokenizer, ONE)
    recorded = []
    for method in (adatp.FastV(layer=1), adatp.AdaTP(last=2, global_debias=False)):
        with adatp.apply(model, tokenizer, method, compile_layers=True) as pruned:
            tokens, logits = by_generate(model, inputs, 3)
            recorded.append(bool(pruned._hooks._last_layers._recordings))
        check_batch(model, inputs, pruned.report, tokens, logits)
    assert recorded == [False, True]
    torch._dynamo.reset()
