"""Calls of `generate` that run more prefills than that of the user's prompt: the report is of the user's prompt."""

import pytest
import torch
from recompute import CLOSE, check_sequence, kept_tokens, prompt_embeds
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from videollm import make_inputs

import adatp

EVERYTHING = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)
SINGLE, PADDED = ["What is in the picture?"], ["What is in the picture?", "And why?"]
TOKENS, SCALE = 6, 1.5
SETTINGS = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


def applied(untrained, method=None):
    return adatp.apply(untrained.model, untrained.processor, method or adatp.AdaTP(), relevance=untrained.relevance)


def run(untrained, inputs, **settings):
    outputs = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    return untrained.model.generate(**inputs, **SETTINGS, **outputs, **settings)


def same_kept(report, other):
    assert report.pruned
    assert len(report.samples) == len(other.samples)
    for ours, theirs in zip(report.samples, other.samples, strict=True):
        assert (ours.kept, ours.question, ours.lengths()) == (theirs.kept, theirs.question, theirs.lengths())
        assert all(torch.equal(ours.kept_mask(layer), theirs.kept_mask(layer)) for layer in range(len(ours.kept)))


def check_logits(untrained, inputs, output, report):
    """Hold the logits before any processor to a recomputation of the pruned prompts."""
    prompts, length = prompt_embeds(untrained.model, inputs), inputs["input_ids"].shape[1]
    for b, sample in enumerate(report.samples):
        padding = int((inputs["attention_mask"][b] == 0).sum())
        logits = torch.stack([step[b] for step in output.logits])
        check_sequence(untrained.model, prompts[b], sample, output.sequences[b, length:], logits, padding)


def negative_of(untrained, texts):
    tokenizer = untrained.processor.tokenizer
    tokens = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    return {"negative_prompt_ids": tokens["input_ids"], "negative_prompt_attention_mask": tokens["attention_mask"]}


class TestGuidance:
    """Classifier-free guidance runs a prompt without the video, or a negative one, beside the user's prompt."""

    @pytest.mark.parametrize("questions", [SINGLE, PADDED], ids=["single", "padded"])
    @pytest.mark.parametrize("negative", [False, True], ids=["no negative", "negative"])
    @pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
    def test_guides_what_is_left_and_reports_it(self, videollm, questions, negative, settings):
        inputs = make_inputs(videollm, questions)
        prompts = negative_of(videollm, ["A bad answer", "No"][: len(questions)]) if negative else {}
        with applied(videollm) as pruned:
            run(videollm, inputs)
            expected = pruned.report
            output = run(videollm, inputs, guidance_scale=SCALE, **prompts, **settings)
            report = pruned.report
            assert pruned.thread_report is report
        same_kept(report, expected)
        check_logits(videollm, inputs, output, report)
        self.check_scores(videollm.model, inputs, output, prompts)

    @torch.no_grad()
    def check_scores(self, model, inputs, output, negative):
        """Hold the guided scores to the plain model's, which gets the other prompt and all tokens so far."""
        ids = negative.get("negative_prompt_ids", inputs["input_ids"][:, -1:])
        mask = negative.get("negative_prompt_attention_mask", torch.ones_like(ids))
        ids = torch.cat([ids, output.sequences[:, inputs["input_ids"].shape[1] :]], 1)
        mask = torch.nn.functional.pad(mask, (0, TOKENS), value=1)
        other = model(input_ids=ids, attention_mask=mask).logits[:, -TOKENS - 1 : -1].log_softmax(-1)
        for step, (logits, scores) in enumerate(zip(output.logits, output.scores, strict=True)):
            guided = SCALE * (logits.log_softmax(-1) - other[:, step]) + other[:, step]
            shown = scores.isfinite()  # the end of the text is forbidden
            torch.testing.assert_close(scores[shown], guided[shown], **CLOSE)

    def test_with_beams(self, videollm):
        inputs = make_inputs(videollm, SINGLE)
        with applied(videollm) as pruned:
            run(videollm, inputs, num_beams=3)
            expected = pruned.report
            run(videollm, inputs, num_beams=3, guidance_scale=SCALE)
            same_kept(pruned.report, expected)

    def test_at_ratio_one_is_the_plain_models(self, videollm):
        inputs, settings = make_inputs(videollm, SINGLE), {"guidance_scale": SCALE}
        plain = run(videollm, inputs, **settings)
        with applied(videollm, EVERYTHING):
            output = run(videollm, inputs, **settings)
        assert torch.equal(output.sequences, plain.sequences)
        assert all(map(torch.equal, output.scores, plain.scores))

    def test_of_a_prompt_without_a_video(self, videollm):
        text = videollm.processor.tokenizer("What is a video?", return_tensors="pt")
        with applied(videollm) as pruned:
            run(videollm, text, guidance_scale=SCALE, **negative_of(videollm, ["No"]))
            assert str(pruned.report) == "not pruned: no video in the prompt"

    def test_of_a_follow_up_leaves_the_report_of_the_prompt(self, videollm):
        inputs = make_inputs(videollm, SINGLE)
        with applied(videollm) as pruned:
            output, report = run(videollm, inputs), pruned.report
            for more in (torch.tensor([[20]]), torch.tensor([[20, 21, 22]])):
                ids = torch.cat([output.sequences, more], 1)
                turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                cache = output.past_key_values
                output = run(videollm, turn, past_key_values=cache, guidance_scale=SCALE)
                assert pruned.report is report

    def test_with_a_video_in_the_negative_prompt_is_refused_before_the_tower_runs(self, videollm):
        """For transformers its placeholders would be words."""
        inputs, seen = make_inputs(videollm, SINGLE), []
        handle = videollm.model.model.vision_tower.register_forward_pre_hook(lambda *_: seen.append(1))
        try:
            with applied(videollm), pytest.raises(adatp.Unsupported, match="negative_prompt_ids hold placeholders"):
                run(videollm, inputs, guidance_scale=SCALE, negative_prompt_ids=inputs["input_ids"])
        finally:
            handle.remove()
        assert seen == []


class RunsAnother(LogitsProcessor):
    """Runs the model on inputs of its own in every step, as contrastive decoding does."""

    def __init__(self, model, inputs):
        self.model, self.inputs, self.logits = model, inputs, []

    def __call__(self, input_ids, scores):
        self.logits.append(self.model(**self.inputs).logits)
        return scores


class TestAnotherVideo:
    @pytest.mark.parametrize("frames", [6, 10], ids=["of another length", "of the same length"])
    def test_run_by_a_logits_processor(self, videollm, frames):
        inputs, others = make_inputs(videollm, SINGLE), make_inputs(videollm, PADDED[1:], frames=frames, seed=5)
        with applied(videollm) as pruned, torch.no_grad():
            logits = videollm.model(**others).logits
            expected, alone = run(videollm, inputs), pruned.report
            processor = RunsAnother(videollm.model, others)
            output = run(videollm, inputs, logits_processor=LogitsProcessorList([processor]))
            same_kept(pruned.report, alone)
        assert torch.equal(output.sequences, expected.sequences)
        assert len(processor.logits) == TOKENS
        assert all(torch.equal(own, logits) for own in processor.logits), "as if it ran outside of generate"

    def test_that_fails_leaves_the_report_of_the_prompt(self, videollm):
        inputs = make_inputs(videollm, SINGLE)
        wrong = {"input_ids": inputs["input_ids"]}
        processor = LogitsProcessorList([RunsAnother(videollm.model, wrong)])
        with applied(videollm) as pruned:
            with pytest.raises(ValueError, match="pass pixel_values_videos"):
                run(videollm, inputs, logits_processor=processor)
            assert pruned.report.pruned
            with pytest.raises(ValueError, match="pass pixel_values_videos"):
                videollm.model.generate(input_ids=inputs["input_ids"], max_new_tokens=2)
            with pytest.raises(RuntimeError, match="the last prefill failed"):
                _ = pruned.report


HIDDEN = {"output_hidden_states": True}


def video_of(kwargs):
    """The video, which transformers from 5.18 on has encoded already."""
    return {name: kwargs[name] for name in ("pixel_values_videos", "mm_encoder_outputs") if name in kwargs}


def contrastive(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Contrastive search (arXiv 2202.06417), as transformers had it: every candidate runs on a copy of the cache."""
    k, alpha, cache = generation_config.top_k, 0.6, kwargs["past_key_values"]
    output = model(input_ids, past_key_values=cache, **video_of(kwargs), **HIDDEN)
    seen, logits = output.hidden_states[-1], output.logits[:, -1]
    for _ in range(TOKENS):
        probability, candidates = logits.softmax(-1).topk(k)
        cache.batch_repeat_interleave(k)
        output = model(candidates.view(-1, 1), past_key_values=cache, **HIDDEN)
        state = output.hidden_states[-1]  # [k, 1, D]
        alike = torch.cosine_similarity(seen, state, dim=-1).max(-1).values
        best = ((1 - alpha) * probability[0] - alpha * alike).argmax()
        cache.batch_select_indices(best[None])
        input_ids = torch.cat([input_ids, candidates[:, best, None]], 1)
        seen, logits = torch.cat([seen, state[best, None]], 1), output.logits[best, -1][None]
    return input_ids


def dola(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """DoLa (arXiv 2309.03883) with one early layer, whose logits are taken from the last ones."""
    cache, new = kwargs["past_key_values"], {"input_ids": input_ids, **video_of(kwargs)}
    for _ in range(TOKENS):
        output = model(**new, past_key_values=cache, logits_to_keep=1, **HIDDEN)
        early = model.lm_head(output.hidden_states[8][:, -1])
        token = (output.logits[:, -1].log_softmax(-1) - early.log_softmax(-1)).argmax(-1, keepdim=True)
        input_ids, new = torch.cat([input_ids, token], 1), {"input_ids": token}
    return input_ids


def text_first(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
    """Runs the prompt without its video, then with it."""
    model(input_ids[:, -5:])
    return dola(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)


class TestCustomGenerate:
    """Modes that transformers has moved out of its package run through `custom_generate`."""

    @pytest.mark.parametrize("mode", [contrastive, dola, text_first])
    def test_reports_the_users_prompt(self, videollm, mode):
        inputs, config = make_inputs(videollm, SINGLE), GenerationConfig(top_k=3, max_new_tokens=TOKENS)
        settings = {"custom_generate": mode, "generation_config": config}
        plain = videollm.model.generate(**inputs, **settings)
        with applied(videollm, EVERYTHING):
            assert torch.equal(videollm.model.generate(**inputs, **settings), plain)
        with applied(videollm) as pruned:
            run(videollm, inputs)
            expected = pruned.report
            output = videollm.model.generate(**inputs, **settings)
            same_kept(pruned.report, expected)
        assert output.shape[1] == inputs["input_ids"].shape[1] + TOKENS


def test_a_cache_and_a_report_after_a_side_prefill_go_together(videollm):
    """The cache that comes back holds what the report says."""
    inputs, cache = make_inputs(videollm, SINGLE), DynamicCache(config=videollm.model.config.text_config)
    with applied(videollm) as pruned:
        run(videollm, inputs, guidance_scale=SCALE, past_key_values=cache)
        sample = pruned.report.samples[0]
    kept = kept_tokens(sample, inputs["input_ids"].shape[1])
    assert [layer.get_seq_length() for layer in cache.layers] == [len(own) + TOKENS - 1 for own in kept]
