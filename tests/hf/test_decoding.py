"""Every way of decoding that `generate` has, on a model of each family.

With ratios of 1 the output is the plain model's; with real ones, every generated token's logits are those of a
recomputation without a cache, or the mode gives exactly what the mode that it speeds up gives.
"""

import math
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from recompute import CLOSE, check_sequence, prompt_embeds
from small_llava_video import small_llava_video
from transformers import (
    CompileConfig,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.streamers import BaseStreamer
from videollm import make_inputs

import adatp
from adatp.hf.cache import PrunedLayer
from adatp.small.untrained import load_untrained

EVERYTHING = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)
SHALLOW = {config: replace(config or adatp.AdaTP(), last=3) for config in (EVERYTHING, None)}
TOKENS = 10
PICTURE, LONG = "What is in the picture?", "How many shots are there in this video of many colours?"
SINGLE, PADDED = [PICTURE], [PICTURE, "And why?"]
FAMILIES = ["llava_onevision", "llava_video"]

both_ratios = pytest.mark.parametrize("config", [EVERYTHING, None], ids=["ratio 1", "pruned"])
single_and_padded = pytest.mark.parametrize("questions", [SINGLE, PADDED], ids=["single", "padded"])
CASES = {"ratio 1": (EVERYTHING, SINGLE), "pruned": (None, SINGLE), "pruned padded": (None, PADDED)}
cases = pytest.mark.parametrize(("config", "questions"), CASES.values(), ids=CASES)
exact_or_padded = pytest.mark.parametrize(
    ("config", "questions"), [CASES["ratio 1"], CASES["pruned padded"]], ids=["ratio 1", "pruned padded"]
)


def load(family, **settings):
    """A small model of the family that the test may change."""
    if family == "llava_video":
        return small_llava_video(**settings)
    return load_untrained(image_size=84, **{"layers": 16, **settings})


@pytest.fixture(params=FAMILIES)
def fresh(request):
    return lambda **settings: load(request.param, **settings)


@pytest.fixture(scope="module", params=FAMILIES)
def eager(request):
    return load(request.param, attention="eager")


@pytest.fixture(scope="module", params=FAMILIES)
def shallow(request):
    """Of few layers, for what takes long: pruned as `SHALLOW` says."""
    return load(request.param, layers=4)


def applied(untrained, config=None):
    return adatp.apply(untrained.model, untrained.processor, config or adatp.AdaTP(), relevance=untrained.relevance)


def plain(untrained, inputs, seed=0, **settings):
    """What the model generates as it is now, pruned or not: always `TOKENS` tokens, greedily unless told otherwise."""
    torch.manual_seed(seed)
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, **settings}
    return untrained.model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **settings)


def generate(untrained, inputs, config=None, **settings):
    """The same of the pruned model, and its report."""
    with applied(untrained, config) as pruned:
        output = plain(untrained, inputs, **settings)
        return output, pruned.report


def only(inputs, b):
    """One prompt of a batch, without its padding."""
    mask = inputs["attention_mask"][b].bool()
    return {
        "input_ids": inputs["input_ids"][b : b + 1, mask],
        "attention_mask": inputs["attention_mask"][b : b + 1, mask],
        "pixel_values_videos": inputs["pixel_values_videos"][b : b + 1],
    }


def answers(inputs, output):
    """`[B, t]`: the tokens after the prompts."""
    return output.sequences[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def check_logits(untrained, inputs, output, report):
    """Every generated token's logits: of the pruned model, or where nothing was dropped, of the plain one."""
    prompts = prompt_embeds(untrained.model, inputs)
    sequences, samples = len(output.sequences) // len(prompts), len(report.samples) // len(prompts)
    beams = getattr(output, "beam_indices", None)
    for i, tokens in enumerate(answers(inputs, output)):
        b = i // sequences
        rows = [i] * len(tokens) if beams is None else beams[i].tolist()
        logits = torch.stack([step[row] for step, row in zip(output.logits, rows, strict=False)])
        assert len(logits) == len(tokens) > 0
        sample, alone = report.samples[b * samples], only(inputs, b)
        padding = inputs["input_ids"].shape[1] - alone["input_ids"].shape[1]
        if sample.first_cut:
            check_sequence(untrained.model, prompts[b], sample, tokens, logits, padding)
            continue
        ids = torch.cat([alone["input_ids"], tokens[None, :-1]], 1)
        again = untrained.model(input_ids=ids, pixel_values_videos=alone["pixel_values_videos"])
        torch.testing.assert_close(logits, again.logits[0, -len(tokens) :], **CLOSE)


def check_against_plain_and_recomputation(untrained, inputs, config, **settings):
    """The rule of this file. Returns the pruned model's output and report."""
    output, report = generate(untrained, inputs, config, **settings)
    if config is EVERYTHING and len(inputs["input_ids"]) == 1:  # batching alone changes the last bits
        assert torch.equal(output.sequences, plain(untrained, inputs, **settings).sequences)
    check_logits(untrained, inputs, output, report)
    return output, report


def same_kept(report, other):
    assert [sample.kept for sample in report.samples] == [sample.kept for sample in other.samples]
    for ours, theirs in zip(report.samples, other.samples, strict=True):
        assert all(torch.equal(ours.kept_mask(layer), theirs.kept_mask(layer)) for layer in range(len(ours.kept)))


def lengths_of(report):
    """Slots of every layer after the prefill: those of the longest prompt."""
    return [max(lengths) for lengths in zip(*(sample.lengths() for sample in report.samples), strict=True)]


@contextmanager
def watched(model):
    """The tokens in every call of the decoder's first layer, and what every crop removes from a pruned layer."""
    widths, crops, crop = [], [], PrunedLayer.crop

    def enter(module, args, kwargs):
        widths.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    def remember(layer, tokens):
        crops.append(-tokens)
        crop(layer, tokens)

    handle = model.model.language_model.layers[0].register_forward_pre_hook(enter, with_kwargs=True)
    PrunedLayer.crop = remember
    try:
        yield widths, crops
    finally:
        PrunedLayer.crop = crop
        handle.remove()


class Watch(LogitsProcessor):
    """Keeps the ids of every step; changes nothing, or forbids what `forbid` returns for them."""

    def __init__(self, forbid=None):
        self.seen, self.forbid = [], forbid

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.clone())
        if self.forbid is None:
            return scores
        return scores.scatter(1, self.forbid(input_ids), float("-inf"))


class TestSampling:
    @both_ratios
    @pytest.mark.parametrize(
        ("questions", "settings"),
        [
            (SINGLE, {"temperature": 0.6}),
            (PADDED, {"temperature": 1.5, "top_p": 0.8}),
            (SINGLE, {"num_return_sequences": 3}),
            (PADDED, {"num_return_sequences": 2}),
        ],
        ids=["temperature", "top-p padded", "returns 3", "returns 2 padded"],
    )
    def test_every_token(self, videollm, questions, config, settings):
        inputs = make_inputs(videollm, questions)
        settings = {"do_sample": True, **settings}
        output, report = check_against_plain_and_recomputation(videollm, inputs, config, **settings)
        copies = settings.get("num_return_sequences", 1)
        assert len(report.samples) == len(output.sequences) == copies * len(questions)
        assert len({tuple(row) for row in answers(inputs, output).tolist()}) == len(output.sequences)

    def test_the_seed_alone_decides_what_is_sampled(self, videollm):
        inputs = make_inputs(videollm, SINGLE)
        first, again, other = (generate(videollm, inputs, do_sample=True, seed=seed)[0].sequences for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@both_ratios
@pytest.mark.parametrize(
    ("questions", "settings"),
    [
        (SINGLE, {}),
        (PADDED, {"num_return_sequences": 2}),
        (PADDED, {"do_sample": True, "num_return_sequences": 3}),
    ],
    ids=["single", "padded", "sampled padded"],
)
def test_beam_search(videollm, questions, config, settings):
    inputs = make_inputs(videollm, questions)
    settings = {"num_beams": 3, **settings}
    output, report = check_against_plain_and_recomputation(videollm, inputs, config, **settings)
    assert len(report.samples) == 3 * len(questions), "every beam is a prompt of its own"
    assert len(output.sequences) == settings.get("num_return_sequences", 1) * len(questions)
    assert output.beam_indices.diff(dim=1).any(), "beams should have been reordered"


class Collect(BaseStreamer):
    def __init__(self):
        self.put_in, self.ends = [], 0

    def put(self, value):
        self.put_in.append(value)

    def end(self):
        self.ends += 1


class TestStreamers:
    @both_ratios
    def test_a_streamer_gets_the_prompt_and_every_token_once(self, videollm, config):
        inputs, streamer = make_inputs(videollm, SINGLE), Collect()
        output, _ = check_against_plain_and_recomputation(videollm, inputs, config)
        streamed, _ = generate(videollm, inputs, config, streamer=streamer)
        assert torch.equal(streamed.sequences, output.sequences)
        prompt, *tokens = streamer.put_in
        assert torch.equal(prompt, inputs["input_ids"]), "the whole prompt, whatever was pruned"
        assert [token.tolist() for token in tokens] == [[token] for token in answers(inputs, output)[0].tolist()]
        assert streamer.ends == 1

    @both_ratios
    def test_text_iterator_streamer_in_another_thread(self, videollm, config):
        inputs, tokenizer = make_inputs(videollm, SINGLE), videollm.processor.tokenizer
        expected, expected_report = generate(videollm, inputs, config)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        with applied(videollm, config) as pruned:
            thread = threading.Thread(target=plain, args=(videollm, inputs), kwargs={"streamer": streamer})
            thread.start()
            text = "".join(streamer)
            thread.join()
            assert text == tokenizer.decode(answers(inputs, expected)[0])
            same_kept(pruned.report, expected_report)
            with pytest.raises(RuntimeError, match="run the model first"):
                _ = pruned.thread_report  # this thread has run nothing


class TestProcessorsAndCriteria:
    @exact_or_padded
    @pytest.mark.parametrize("settings", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 2}], ids=", ".join)
    def test_of_transformers(self, videollm, questions, config, settings):
        inputs = make_inputs(videollm, questions)
        output, _ = check_against_plain_and_recomputation(videollm, inputs, config, **settings)
        assert not torch.equal(output.sequences, generate(videollm, inputs, config)[0].sequences)

    @exact_or_padded
    def test_a_processor_sees_the_whole_prompt(self, videollm, questions, config):
        """One that forbids the last token, and so whatever the model would repeat."""
        inputs, watch = make_inputs(videollm, questions), Watch(forbid=lambda ids: ids[:, -1:])
        output, _ = check_against_plain_and_recomputation(
            videollm, inputs, config, logits_processor=LogitsProcessorList([watch])
        )
        for step, seen in enumerate(watch.seen[:TOKENS]):
            assert torch.equal(seen, output.sequences[:, : inputs["input_ids"].shape[1] + step])
        assert (answers(inputs, output).diff() != 0).all()

    @exact_or_padded
    def test_stopping_criteria(self, videollm, questions, config):
        """Sample b stops after 3 + 5 b tokens, and is padded from there on."""
        inputs = make_inputs(videollm, questions)
        length = inputs["input_ids"].shape[1]

        class After(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                assert torch.equal(input_ids[:, :length], inputs["input_ids"])
                return torch.tensor([input_ids.shape[1] - length >= 3 + 5 * b for b in range(len(input_ids))])

        stop = {"stopping_criteria": StoppingCriteriaList([After()])}
        output, _ = generate(videollm, inputs, config, **stop)
        whole, report = generate(videollm, inputs, config)
        check_logits(videollm, inputs, whole, report)
        assert answers(inputs, output).shape[1] == 3 + 5 * (len(questions) - 1)
        for b, (stopped, row) in enumerate(zip(answers(inputs, output), answers(inputs, whole), strict=True)):
            assert torch.equal(stopped[: 3 + 5 * b], row[: 3 + 5 * b])
            assert (stopped[3 + 5 * b :] == videollm.model.generation_config.pad_token_id).all()
        if config is EVERYTHING and questions == SINGLE:
            assert torch.equal(output.sequences, plain(videollm, inputs, **stop).sequences)


@both_ratios
def test_three_hundred_tokens(shallow, config):
    inputs, cache = make_inputs(shallow, SINGLE), DynamicCache(config=shallow.model.config.text_config)
    lengths = []

    def look(input_ids, scores):
        lengths.append([layer.get_seq_length() for layer in cache.layers])
        return scores

    long = {"max_new_tokens": 300, "min_new_tokens": 300}
    output, report = generate(
        shallow, inputs, SHALLOW[config], past_key_values=cache, logits_processor=LogitsProcessorList([look]), **long
    )
    check_logits(shallow, inputs, output, report)
    if config is EVERYTHING:
        assert torch.equal(output.sequences, plain(shallow, inputs, **long).sequences)
    assert lengths == [[length + step for length in lengths_of(report)] for step in range(300)]
    assert (lengths[0][0] > lengths[0][-1]) == (config is None)


class Script(CandidateGenerator):
    """Proposes what it is told to, of every token after the prompt, three at a time."""

    def __init__(self, length, tokens):
        self.length, self.tokens = length, tokens

    def get_candidates(self, input_ids, **kwargs):
        done = input_ids.shape[1] - self.length
        return torch.cat([input_ids, self.tokens[None, done : min(done + 3, TOKENS - 1)]], 1), None

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        pass


def follow(monkeypatch, untrained, inputs, tokens):
    """Let the model's drafts be `tokens`."""
    script = Script(inputs["input_ids"].shape[1], tokens)
    monkeypatch.setattr(untrained.model, "_get_candidate_generator", lambda **kwargs: script, raising=True)


class TestPromptLookup:
    @both_ratios
    def test_gives_what_greedy_gives(self, videollm, config):
        inputs, settings = make_inputs(videollm, SINGLE), {"max_new_tokens": 40, "min_new_tokens": 40}
        greedy, expected = generate(videollm, inputs, config, **settings)
        check_logits(videollm, inputs, greedy, expected)
        with watched(videollm.model) as (widths, crops):
            output, report = generate(videollm, inputs, config, prompt_lookup_num_tokens=4, **settings)
        assert torch.equal(output.sequences, greedy.sequences)
        same_kept(report, expected)
        check_logits(videollm, inputs, output, report)
        if config is EVERYTHING:
            found = plain(videollm, inputs, prompt_lookup_num_tokens=4, **settings)
            assert torch.equal(output.sequences, found.sequences)
        drafts = sum(widths) - inputs["input_ids"].shape[1] - len(widths) + 1
        assert widths[0] > inputs["input_ids"].shape[1], "the first draft should have come with the prompt"
        assert max(widths[1:]) == 5
        assert max(crops) > 0, "some should have been rejected"
        assert len(widths) < 40, "and some accepted"
        assert drafts == (40 - len(widths)) + sum(crops) // (len(report.samples[0].kept) - 2)

    @both_ratios
    @pytest.mark.parametrize("right", [0, 1, 3])
    def test_drafts_that_come_with_the_prompt(self, videollm, config, right, monkeypatch):
        """Of every three drafts the first `right` are what greedy gives, from the first forward on."""
        inputs = make_inputs(videollm, SINGLE)
        greedy, expected = generate(videollm, inputs, config)
        tokens = answers(inputs, greedy)[0].clone()
        wrong = torch.arange(TOKENS) % (right + 1) == right if right < 3 else torch.zeros(TOKENS, dtype=torch.bool)
        tokens[wrong] = tokens[wrong] % 200 + 20
        follow(monkeypatch, videollm, inputs, tokens)
        with watched(videollm.model) as (widths, crops):
            output, report = generate(videollm, inputs, config, prompt_lookup_num_tokens=3)
        assert widths[:2] == [inputs["input_ids"].shape[1] + 3, 4]
        assert crops[0] == 3 - right
        assert len(widths) == math.ceil(TOKENS / (right + 1))
        assert torch.equal(output.sequences, greedy.sequences)
        same_kept(report, expected)
        check_logits(videollm, inputs, output, report)

    @both_ratios
    def test_a_draft_of_placeholders(self, videollm, config, monkeypatch):
        """Prompt lookup copies from the prompt, which is mostly video; once the prompt is read they are tokens."""
        inputs = make_inputs(videollm, SINGLE)
        greedy, expected = generate(videollm, inputs, config)
        tokens = answers(inputs, greedy)[0].clone()
        tokens[4:7] = videollm.model.config.video_token_id
        follow(monkeypatch, videollm, inputs, tokens)
        assert torch.equal(
            plain(videollm, inputs, prompt_lookup_num_tokens=3).sequences, plain(videollm, inputs).sequences
        ), "the plain model takes them"
        output, report = generate(videollm, inputs, config, prompt_lookup_num_tokens=3)
        assert torch.equal(output.sequences, greedy.sequences)
        same_kept(report, expected)


class TestAssistant:
    @both_ratios
    @pytest.mark.parametrize("seed", [2, 5], ids=["same weights", "other weights"])
    def test_gives_what_greedy_gives(self, videollm, config, seed):
        assistant = load(videollm.model.config.model_type, seed=seed)
        inputs = make_inputs(videollm, SINGLE)
        greedy, expected = generate(videollm, inputs, config)
        with watched(videollm.model) as (widths, _):
            output, report = generate(videollm, inputs, config, assistant_model=assistant.model)
        if config is EVERYTHING:
            assert torch.equal(output.sequences, plain(videollm, inputs).sequences)
        assert max(widths[1:]) > 1, "it should have drafted"
        assert torch.equal(output.sequences, greedy.sequences)
        same_kept(report, expected)
        check_logits(videollm, inputs, output, report)

    def test_a_pruned_one_is_refused(self, videollm):
        """Transformers hands an assistant no video."""
        assistant, inputs = load(videollm.model.config.model_type), make_inputs(videollm, SINGLE)
        with applied(assistant), pytest.raises(ValueError, match="apply the method to the assisted model only"):
            generate(videollm, inputs, assistant_model=assistant.model)

    def test_the_model_itself_is_refused(self, videollm):
        inputs = make_inputs(videollm, SINGLE)
        with applied(videollm), pytest.raises(ValueError, match="cannot assist itself while it is pruned"):
            plain(videollm, inputs, assistant_model=videollm.model)

    def test_early_exit_is_refused(self, videollm, monkeypatch):
        inputs = make_inputs(videollm, SINGLE)
        with applied(videollm):
            with pytest.raises(ValueError, match="cannot assist itself while it is pruned"):
                plain(videollm, inputs, assistant_early_exit=4)
            monkeypatch.setattr(videollm.model.generation_config, "assistant_early_exit", 4)
            with pytest.raises(ValueError, match="cannot assist itself while it is pruned"):
                plain(videollm, inputs)


def static(untrained, size=220):
    return StaticCache(config=untrained.model.config.text_config, max_cache_len=size)


class TestCacheOfTheCaller:
    @exact_or_padded
    @pytest.mark.parametrize(
        ("settings", "given"),
        [({}, False), ({}, True), ({"num_beams": 2, "num_return_sequences": 2}, True)],
        ids=["greedy by name", "greedy given", "beams given"],
    )
    def test_a_static_one_gives_what_a_growing_one_gives(self, videollm, config, questions, settings, given):
        inputs = make_inputs(videollm, questions)
        dynamic, expected = generate(videollm, inputs, config, **settings)

        def fixed():
            return {"past_key_values": static(videollm)} if given else {"cache_implementation": "static"}

        output, report = generate(videollm, inputs, config, **settings, **fixed())
        assert torch.equal(output.sequences, dynamic.sequences)
        assert type(output.past_key_values) is StaticCache
        same_kept(report, expected)
        check_logits(videollm, inputs, output, report)
        if config is EVERYTHING and questions == SINGLE:
            assert torch.equal(output.sequences, plain(videollm, inputs, **settings, **fixed()).sequences)

    @both_ratios
    def test_a_static_one_is_used_again_after_reset(self, videollm, config):
        """For a prompt that ends where the one before it had its holes."""
        cache = static(videollm)
        for question, frames in ((LONG, 10), ("Why?", 3)):
            inputs = make_inputs(videollm, [question], frames=frames)
            expected, _ = generate(videollm, inputs, config)
            output, report = generate(videollm, inputs, config, past_key_values=cache)
            assert torch.equal(output.sequences, expected.sequences)
            check_logits(videollm, inputs, output, report)
            cache.reset()

    def test_a_static_one_is_used_for_text_after_reset(self, videollm):
        cache, text = static(videollm), videollm.processor.tokenizer("No video", return_tensors="pt")
        expected = plain(videollm, text)
        with applied(videollm) as pruned:
            plain(videollm, make_inputs(videollm, [LONG]), past_key_values=cache)
            cache.reset()
            output = plain(videollm, text, past_key_values=cache)
            assert not pruned.report.pruned
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(torch.cat(output.logits), torch.cat(expected.logits), **CLOSE)

    @pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "static"])
    def test_after_reset_and_remove_it_is_the_plain_models(self, videollm, fixed):
        cache = static(videollm) if fixed else DynamicCache(config=videollm.model.config.text_config)
        generate(videollm, make_inputs(videollm, [LONG]), past_key_values=cache)
        cache.reset()
        if cache.get_seq_length():
            pytest.skip("reset() of a DynamicCache of this transformers keeps the length")
        inputs = make_inputs(videollm, SINGLE)
        output, expected = plain(videollm, inputs, past_key_values=cache), plain(videollm, inputs)
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(torch.cat(output.logits), torch.cat(expected.logits), **CLOSE)

    @pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "static"])
    def test_a_pruned_one_does_not_go_on_after_remove(self, videollm, fixed):
        inputs = make_inputs(videollm, SINGLE)
        cache = static(videollm) if fixed else DynamicCache(config=videollm.model.config.text_config)
        output, _ = generate(videollm, inputs, past_key_values=cache)
        mask = torch.ones(1, output.sequences.shape[1], dtype=torch.int64)
        with pytest.raises(RuntimeError, match="only be continued while the method is applied"):
            videollm.model.generate(output.sequences, attention_mask=mask, past_key_values=cache, max_new_tokens=2)


def compiling():
    """Compile decoding on the CPU too; whatever cannot be one graph is an error."""
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    return config


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class TestCompiled:
    @pytest.fixture(autouse=True)
    def _begin(self):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        yield
        torch._dynamo.reset()

    @both_ratios
    def test_decoding_gives_what_it_gives_uncompiled(self, shallow, config):
        outputs = []
        prompts = [make_inputs(shallow, [question], frames=frames) for question, frames in ((LONG, 10), ("Why?", 8))]
        cache = static(shallow)
        with applied(shallow, SHALLOW[config]) as pruned:
            for inputs in prompts:
                settings = {"past_key_values": cache, "compile_config": compiling()}
                outputs.append((plain(shallow, inputs, **settings), pruned.report, graphs()))
                cache.reset()
        for inputs, (output, report, compiled) in zip(prompts, outputs, strict=True):
            expected, expected_report = generate(shallow, inputs, SHALLOW[config])
            assert torch.equal(output.sequences, expected.sequences)
            same_kept(report, expected_report)
            check_logits(shallow, inputs, output, report)
            if config is EVERYTHING:
                assert torch.equal(output.sequences, plain(shallow, inputs).sequences)
            assert compiled == outputs[0][2] > 0, "a prompt of another length should find what is compiled"

    def test_decoding_of_a_padded_batch_with_a_cache_by_name(self, shallow):
        inputs = make_inputs(shallow, PADDED)
        expected, _ = generate(shallow, inputs, SHALLOW[None])
        settings = {"cache_implementation": "static", "compile_config": compiling()}
        output, report = generate(shallow, inputs, SHALLOW[None], **settings)
        assert graphs() > 0
        assert torch.equal(output.sequences, expected.sequences)
        check_logits(shallow, inputs, output, report)

    @pytest.mark.parametrize("method", [adatp.PyramidDrop(), adatp.VisionZip(), adatp.FastV()], ids=lambda m: m.name)
    def test_decoding_with_other_methods(self, shallow, method):
        """Positions that follow a renumbered prompt are part of the graph, and fit the next prompt too."""
        cache, compiled = static(shallow), []
        prompts = [make_inputs(shallow, [question], frames=frames) for question, frames in ((LONG, 10), ("Why?", 8))]
        with applied(shallow, method):
            for inputs in prompts:
                output = plain(shallow, inputs, past_key_values=cache, compile_config=compiling())
                compiled.append(graphs())
                cache.reset()
                assert torch.equal(output.sequences, plain(shallow, inputs).sequences)
        assert compiled[0] == compiled[1] > 0

    def test_a_model_compiled_whole_still_prunes(self, shallow):
        inputs = make_inputs(shallow, SINGLE)
        with torch.no_grad(), applied(shallow, SHALLOW[None]) as pruned:
            expected, expected_report = shallow.model(**inputs), pruned.report
            output = torch.compile(shallow.model, backend="eager")(**inputs)
            assert pruned.report is not expected_report
            assert pruned.report.pruned
            same_kept(pruned.report, expected_report)
            lengths = expected_report.samples[0].lengths()
            assert [layer.get_seq_length() for layer in output.past_key_values.layers] == lengths
        torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
        assert output.logits.shape[1] == lengths[-1] < inputs["input_ids"].shape[1]


EVERY_OUTPUT = {"output_scores": True, "output_hidden_states": True, "output_attentions": True}


class TestOutputs:
    @cases
    def test_shapes(self, eager, questions, config):
        inputs = make_inputs(eager, questions)
        output, report = check_against_plain_and_recomputation(eager, inputs, config, **EVERY_OUTPUT)
        batch, length = inputs["input_ids"].shape
        lengths, text = lengths_of(report), eager.model.config.text_config
        for steps in (output.logits, output.scores):
            assert [tuple(step.shape) for step in steps] == [(batch, text.vocab_size)] * TOKENS
        prefill, *later = output.hidden_states
        assert [tuple(h.shape) for h in prefill] == [(batch, w, text.hidden_size) for w in (length, *lengths)]
        assert {tuple(h.shape) for step in later for h in step} == {(batch, 1, text.hidden_size)}
        prefill, *later = output.attentions
        heads = text.num_attention_heads
        assert [tuple(a.shape) for a in prefill] == [(batch, heads, w, w) for w in lengths]
        for k, step in enumerate(later, start=1):
            assert [tuple(a.shape) for a in step] == [(batch, heads, 1, w + k) for w in lengths]
        cache = output.past_key_values
        # the last token has not been read
        assert [layer.get_seq_length() for layer in cache.layers] == [w + TOKENS - 1 for w in lengths]
        assert (len(set(lengths)) > 1) == (config is None)

    def test_ratio_one_is_the_plain_models_exactly(self, eager):
        inputs = make_inputs(eager, SINGLE)
        output, _ = generate(eager, inputs, EVERYTHING, **EVERY_OUTPUT)
        expected = plain(eager, inputs, **EVERY_OUTPUT)
        for name in ("logits", "scores"):
            assert all(map(torch.equal, getattr(output, name), getattr(expected, name)))
        for name in ("hidden_states", "attentions"):
            for ours, theirs in zip(getattr(output, name), getattr(expected, name), strict=True):
                assert all(map(torch.equal, ours, theirs))

    @both_ratios
    def test_of_a_batch_are_those_of_each_sample(self, eager, config):
        inputs = make_inputs(eager, PADDED)
        output, report = generate(eager, inputs, config, **EVERY_OUTPUT)
        for b, sample in enumerate(report.samples):
            alone, alone_report = generate(eager, only(inputs, b), config, **EVERY_OUTPUT)
            assert sample.kept == alone_report.samples[0].kept
            for ours, theirs in zip(output.hidden_states[0], alone.hidden_states[0], strict=True):
                assert torch.equal(ours[b, -theirs.shape[1] :], theirs[0]), "each prompt is run by itself"
            for together, single in zip(output.hidden_states[1:], alone.hidden_states[1:], strict=True):
                for ours, theirs in zip(together, single, strict=True):
                    torch.testing.assert_close(ours[b], theirs[0], **CLOSE)
            for together, single in zip(output.attentions, alone.attentions, strict=True):
                for ours, theirs in zip(together, single, strict=True):
                    new, seen = theirs.shape[-2:]
                    torch.testing.assert_close(ours[b, :, -new:, -seen:], theirs[0], **CLOSE)
                    assert not ours[b, :, -new:, :-seen].any(), "nothing attends to padding"


class TestWithoutACache:
    @exact_or_padded
    @pytest.mark.parametrize(
        "settings", [{}, {"do_sample": True}, {"num_beams": 2}], ids=["greedy", "sampling", "beams"]
    )
    def test_gives_what_it_gives_with_one(self, videollm, config, questions, settings):
        """Every step is a prefill of the prompt and the tokens so far, which have no say in what is kept."""
        inputs, settings = make_inputs(videollm, questions), {**settings, "max_new_tokens": 6, "min_new_tokens": 6}
        cached, expected = generate(videollm, inputs, config, **settings)
        output, report = generate(videollm, inputs, config, use_cache=False, **settings)
        assert getattr(output, "past_key_values", None) is None
        assert torch.equal(output.sequences, cached.sequences)
        same_kept(report, expected)
        assert [s.lengths() for s in report.samples] == [s.lengths() for s in expected.samples], "of the prompt alone"
        check_logits(videollm, inputs, output, expected)
        if config is EVERYTHING and questions == SINGLE:
            assert torch.equal(output.sequences, plain(videollm, inputs, use_cache=False, **settings).sequences)


def in_dtype(untrained, dtype):
    return untrained._replace(model=untrained.model.to(dtype), relevance=untrained.relevance.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(fresh, dtype):
    untrained = in_dtype(fresh(layers=4), dtype)
    inputs = make_inputs(untrained, SINGLE).to(dtype)
    output, _ = generate(untrained, inputs, SHALLOW[EVERYTHING], output_hidden_states=True)
    expected = plain(untrained, inputs)
    assert torch.equal(output.sequences, expected.sequences)
    assert all(map(torch.equal, output.logits, expected.logits))
    for questions in (SINGLE, PADDED):
        inputs = make_inputs(untrained, questions).to(dtype)
        output, report = generate(untrained, inputs, SHALLOW[None], output_hidden_states=True)
        assert all(sample.first_cut for sample in report.samples)
        assert {h.dtype for step in output.hidden_states for h in step} == {dtype}
        assert {t.dtype for layer in output.past_key_values.layers for t in (layer.keys, layer.values)} == {dtype}
        assert torch.cat(output.logits).isfinite().all()
        assert answers(inputs, output).shape[1] == TOKENS


@both_ratios
@single_and_padded
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cache_bytes_are_what_the_cache_holds(fresh, dtype, questions, config):
    untrained = in_dtype(fresh(layers=4), dtype)
    inputs = make_inputs(untrained, questions).to(dtype)
    with torch.no_grad(), applied(untrained, SHALLOW[config]) as pruned:
        layers = untrained.model(**inputs, use_cache=True).past_key_values.layers
        report = pruned.report
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    assert sum(tensor.nbytes for tensor in tensors) == report.cache_bytes
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) == report.cache_bytes, "nothing larger is kept alive"
    assert (report.cache_bytes < report.cache_bytes_full) == (config is None)
    with torch.no_grad():
        layers = untrained.model(**inputs, use_cache=True).past_key_values.layers
    assert sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values)) == report.cache_bytes_full
