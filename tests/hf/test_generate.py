"""Every decoded token's logits against a recomputation without any cache that drops the same tokens."""

from functools import partial

import pytest
import torch
from recompute import CLOSE, check_sequence, embeds_of, kept_tokens, prompt_embeds, recompute
from videollm import make_inputs

import adatp

TOKENS = 32


def generate(untrained, inputs, config=None, **settings):
    with adatp.apply(
        untrained.model, untrained.processor, config or adatp.AdaTP(), relevance=untrained.relevance
    ) as pruned:
        output = untrained.model.generate(
            **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True,
            **settings,
        )  # fmt: skip
        return output, pruned.report


@pytest.mark.parametrize("config", [adatp.AdaTP(), adatp.AdaTP(p=2.0, tau_t=-1.0), adatp.AdaTP(first=1)])
def test_greedy(small, config):
    inputs = make_inputs(small, ["What is in the picture?"])
    prompt = prompt_embeds(small.model, inputs)[0]
    output, report = generate(small, inputs, config, do_sample=False)
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    assert len(tokens) == TOKENS
    check_sequence(small.model, prompt, report.samples[0], tokens, torch.cat(output.logits))


def test_beam_search(small):
    inputs = make_inputs(small, ["What is in the picture?"])
    prompt = prompt_embeds(small.model, inputs)[0]
    output, report = generate(small, inputs, num_beams=3, num_return_sequences=3, do_sample=False)
    assert len(report.samples) == 3
    for sequence, beams in zip(output.sequences, output.beam_indices, strict=True):
        tokens = sequence[inputs["input_ids"].shape[1] :]
        logits = torch.stack([step[beam] for step, beam in zip(output.logits, beams, strict=True)])
        check_sequence(small.model, prompt, report.samples[0], tokens, logits)


def test_left_padded_batch_with_different_counts(small):
    questions = ["What is in the picture?", "And why?", "How many shots are there in this video of many colours?"]
    inputs = make_inputs(small, questions)
    prompts = prompt_embeds(small.model, inputs)
    output, report = generate(small, inputs, do_sample=False)
    assert [s.question for s in report.samples] == questions
    assert len({s.kept for s in report.samples}) > 1, "the samples should keep different counts"
    for b, sample in enumerate(report.samples):
        padding = int((inputs["attention_mask"][b] == 0).sum())
        tokens = output.sequences[b, inputs["input_ids"].shape[1] :]
        logits = torch.stack([step[b] for step in output.logits])
        check_sequence(small.model, prompts[b], sample, tokens, logits, padding)


def test_beam_search_over_a_padded_batch(small):
    questions = ["What is in the picture?", "And why?"]
    inputs = make_inputs(small, questions)
    prompts = prompt_embeds(small.model, inputs)
    output, report = generate(small, inputs, num_beams=2, num_return_sequences=2, do_sample=False)
    for i, (sequence, beams) in enumerate(zip(output.sequences, output.beam_indices, strict=True)):
        padding = int((inputs["attention_mask"][i // 2] == 0).sum())
        tokens = sequence[inputs["input_ids"].shape[1] :]
        logits = torch.stack([step[beam] for step, beam in zip(output.logits, beams, strict=True)])
        check_sequence(small.model, prompts[i // 2], report.samples[i], tokens, logits, padding)


def test_batched_output_equals_one_by_one(small):
    questions = ["What is in the picture?", "And why?"]
    together = make_inputs(small, questions)
    output, report = generate(small, together, do_sample=False)
    for b, question in enumerate(questions):
        prompt_length = int(together["attention_mask"][b].sum())
        alone = {
            "input_ids": together["input_ids"][b : b + 1, -prompt_length:],
            "attention_mask": together["attention_mask"][b : b + 1, -prompt_length:],
            "pixel_values_videos": together["pixel_values_videos"][b : b + 1],
        }
        single, single_report = generate(small, alone, do_sample=False)
        assert single_report.samples[0].kept == report.samples[b].kept, question
        assert torch.equal(single.sequences[0, prompt_length:], output.sequences[b, together["input_ids"].shape[1] :])


def test_follow_up_on_the_kept_cache(small):
    inputs = make_inputs(small, ["What is in the picture?"])
    prompt = prompt_embeds(small.model, inputs)[0]
    follow_up = torch.tensor([list(range(20, 33))])
    with adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned, torch.no_grad():
        first = small.model(**inputs, use_cache=True)
        report = pruned.report
        second = small.model(input_ids=follow_up, past_key_values=first.past_key_values)
        assert pruned.report is report, "a continuation leaves the report alone"
        kept = kept_tokens(report.samples[0], len(prompt))
        again = recompute(small.model, embeds_of(small.model, prompt, follow_up[0]), kept)
    torch.testing.assert_close(second.logits[0], again[-follow_up.shape[1] :], **CLOSE)


def test_without_a_cache_the_prefill_is_the_same(small):
    inputs = make_inputs(small, ["What is in the picture?"])
    with adatp.apply(small.model, small.processor, relevance=small.relevance), torch.no_grad():
        cached = small.model(**inputs, use_cache=True)
        uncached = small.model(**inputs, use_cache=False)
    assert uncached.past_key_values is None
    assert torch.equal(cached.logits, uncached.logits)


@torch.no_grad()
def test_a_forward_after_generate_has_its_whole_prompt(sdpa):
    """What generate says of its prompt's length is for its own forwards."""
    short, long = (make_inputs(sdpa, ["Why?"], frames=frames) for frames in (4, 10))
    with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
        expected, report = sdpa.model(**long).logits, pruned.report
        sdpa.model.generate(**short, max_new_tokens=2)
        with pytest.raises(TypeError):  # and it says nothing after a failure
            sdpa.model.generate(**short, max_new_tokens=object())
        assert torch.equal(sdpa.model(**long).logits, expected)
        assert pruned.report == report


@torch.no_grad()
def test_nothing_is_computed_for_padding(videollm):
    """What each layer's MLP sees of a padded batch is what the report says its prompts have left, and no slot more."""
    inputs = make_inputs(videollm, ["What is in the picture?", "Why?", "How many shots are there in all?"])
    assert (inputs["attention_mask"] == 0).any()
    layers = videollm.model.model.language_model.layers
    seen = [0] * len(layers)

    def count(index, _, args):
        seen[index] += args[0].shape[0] * args[0].shape[1]

    handles = [layer.mlp.register_forward_pre_hook(partial(count, i)) for i, layer in enumerate(layers)]
    try:
        with adatp.apply(videollm.model, videollm.processor, relevance=videollm.relevance) as pruned:
            videollm.model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [sum(widths) for widths in zip(*(s.lengths() for s in pruned.report.samples), strict=True)]
