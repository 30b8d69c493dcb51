"""Switches that take the cache away, run a layer again or want gradients: each works, or is refused early."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from recompute import CLOSE, check_sequence, prompt_embeds
from small_llava_video import small_llava_video
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GenerationConfig
from videollm import make_inputs

import adatp
from adatp.small.untrained import load_untrained

QUESTIONS = ["What is in the picture?", "And why?"]
SETTINGS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
SETTINGS |= {"output_logits": True, "return_dict_in_generate": True}
METHODS = ["adatp", "fastv", "pyramiddrop", "visionzip", "dycoke", "none"]
both_kinds = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])


@pytest.fixture(params=["llava_onevision", "llava_video"])
def fresh(request):
    """A small model that the test may change."""
    if request.param == "llava_video":
        return small_llava_video(layers=16)
    return load_untrained(image_size=84, layers=16)


def applied(untrained, method="adatp"):
    return adatp.apply(untrained.model, untrained.processor, method, relevance=untrained.relevance)


def generate(untrained, inputs, method="adatp", **settings):
    with applied(untrained, method) as pruned:
        output = untrained.model.generate(**inputs, **SETTINGS, **settings)
        return output, pruned.report


def check(untrained, inputs, output, report):
    """Hold every token's logits to a recomputation that drops what the report says."""
    length = inputs["input_ids"].shape[1]
    for b, prompt in enumerate(prompt_embeds(untrained.model, inputs)):
        padding = int((inputs["attention_mask"][b] == 0).sum())
        logits = torch.stack([step[b] for step in output.logits])
        check_sequence(untrained.model, prompt, report.samples[b], output.sequences[b, length:], logits, padding)


@contextmanager
def nothing_runs(model):
    """No module of the tower, and no decoder layer, is entered."""
    seen = []
    modules = [model.model.vision_tower, *model.model.language_model.layers]
    handles = [module.register_forward_pre_hook(lambda *_: seen.append(1)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    assert seen == []


def enable(model, use_reentrant=False):
    """Turn gradient checkpointing on; the method has another name from transformers 5.23 on."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": use_reentrant})


def disable(model):
    name = "activation" if hasattr(model, "activation_checkpointing_disable") else "gradient"
    getattr(model, f"{name}_checkpointing_disable")()


def checkpointed(forward, use_reentrant, *args, **kwargs):
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=use_reentrant)


class TestGradientCheckpointing:
    """In training mode, transformers takes the cache away from each layer, whose keys score a cut."""

    WORDS = r"gradient checkpointing in training mode.*call model\.eval\(\) first"

    @both_kinds
    @pytest.mark.parametrize("part", ["model", "decoder", "one layer"])
    @pytest.mark.parametrize("method", METHODS)
    def test_in_training_mode_is_refused(self, videollm, part, method, use_reentrant):
        model, inputs = videollm.model, make_inputs(videollm, QUESTIONS[:1])
        decoder = model.model.language_model
        enable(model, use_reentrant)
        try:
            {"model": model, "decoder": decoder, "one layer": decoder.layers[3]}[part].train()
            with nothing_runs(model), torch.no_grad(), applied(videollm, method):
                for use_cache in (True, False):
                    with pytest.raises(adatp.Unsupported, match=self.WORDS):
                        model(**inputs, use_cache=use_cache)
                    if use_cache or method != "dycoke":
                        with pytest.raises(adatp.Unsupported, match=self.WORDS):
                            model.generate(**inputs, max_new_tokens=2, use_cache=use_cache)
        finally:
            model.eval()
            disable(model)

    def test_leaves_other_prompts_alone(self, fresh):
        text = fresh.processor.tokenizer("No video", return_tensors="pt")
        enable(fresh.model)
        fresh.model.train()
        with torch.no_grad():
            expected = fresh.model(**text).logits
            with applied(fresh):
                assert torch.equal(fresh.model(**text).logits, expected)

    @both_kinds
    @pytest.mark.parametrize("part", ["none", "tower", "decoder without its layers"])
    def test_outside_of_the_layers_runs(self, fresh, part, use_reentrant):
        inputs = make_inputs(fresh, QUESTIONS)
        expected, _ = generate(fresh, inputs)
        enable(fresh.model, use_reentrant)
        fresh.model.model.vision_tower.train(part == "tower")
        fresh.model.model.language_model.training = part == "decoder without its layers"
        output, report = generate(fresh, inputs)
        assert torch.equal(output.sequences, expected.sequences)
        check(fresh, inputs, output, report)

    def test_disabled_again_or_in_eval_mode_runs(self, fresh):
        inputs = make_inputs(fresh, QUESTIONS[:1])
        enable(fresh.model)
        fresh.model.train()
        with pytest.raises(adatp.Unsupported, match="gradient checkpointing"):
            generate(fresh, inputs)
        fresh.model.eval()
        check(fresh, inputs, *generate(fresh, inputs))
        fresh.model.train()
        disable(fresh.model)
        check(fresh, inputs, *generate(fresh, inputs))

    @both_kinds
    @pytest.mark.parametrize("first", [True, False], ids=["before apply", "after apply"])
    def test_by_hand_runs(self, fresh, first, use_reentrant):
        """Layers that the caller has put into `torch.utils.checkpoint` keep their cache."""
        inputs = make_inputs(fresh, QUESTIONS)
        expected, _ = generate(fresh, inputs)

        def wrap():
            for layer in fresh.model.model.language_model.layers:
                layer.forward = partial(checkpointed, layer.forward, use_reentrant)

        if first:
            wrap()
            output, report = generate(fresh, inputs)
        else:
            with applied(fresh) as pruned:
                wrap()
                output = fresh.model.generate(**inputs, **SETTINGS)
                report = pruned.report
        for layer in fresh.model.model.language_model.layers:
            layer.__dict__.pop("forward", None)
        assert torch.equal(output.sequences, expected.sequences)
        check(fresh, inputs, output, report)


@pytest.mark.parametrize("method", METHODS)
def test_training_mode_without_checkpointing_gives_what_eval_gives(fresh, method):
    """None of these models has dropout."""
    inputs = make_inputs(fresh, QUESTIONS)
    expected, expected_report = generate(fresh, inputs, method)
    fresh.model.train()
    output, report = generate(fresh, inputs, method)
    assert torch.equal(output.sequences, expected.sequences)
    assert all(map(torch.equal, output.logits, expected.logits))
    assert report == expected_report


def off(untrained, where):
    """Turn the cache off, and return the arguments of `generate`."""
    model = untrained.model
    if where == "the call":
        return {"use_cache": False}
    if where == "a configuration":
        return {"generation_config": GenerationConfig(use_cache=False)}
    if where == "the model's generation configuration":
        model.generation_config.use_cache = False
    if where == "the decoder's configuration":
        model.config.text_config.use_cache = False
    return {}


SWITCHES = ["the call", "a configuration", "the model's generation configuration", "the decoder's configuration"]


class TestWithoutACache:
    @pytest.mark.parametrize("where", SWITCHES)
    def test_turned_off_anywhere_gives_what_it_gives_with_one(self, fresh, where):
        inputs = make_inputs(fresh, QUESTIONS)
        expected, _ = generate(fresh, inputs)
        output, report = generate(fresh, inputs, **off(fresh, where))
        assert torch.equal(output.sequences, expected.sequences)
        check(fresh, inputs, output, report)

    @pytest.mark.parametrize("method", METHODS)
    def test_in_the_decoders_configuration_none_comes_back(self, fresh, method):
        inputs = make_inputs(fresh, QUESTIONS)
        with torch.no_grad(), applied(fresh, method):
            expected = fresh.model(**inputs)
            off(fresh, "the decoder's configuration")
            output = fresh.model(**inputs)
        assert expected.past_key_values is not None
        assert output.past_key_values is None
        assert torch.equal(output.logits, expected.logits)

    def test_a_cache_of_the_callers_is_filled_but_does_not_come_back(self, fresh):
        """As the plain model does."""
        inputs, caches = make_inputs(fresh, QUESTIONS[:1]), [DynamicCache(), DynamicCache(), DynamicCache()]
        with torch.no_grad():
            assert fresh.model(**inputs, use_cache=False, past_key_values=caches[0]).past_key_values is None
            with applied(fresh) as pruned:
                assert fresh.model(**inputs, use_cache=False, past_key_values=caches[1]).past_key_values is None
                fresh.model(**inputs, use_cache=True, past_key_values=caches[2])
                lengths = pruned.report.samples[0].lengths()
        assert caches[0].get_seq_length() == inputs["input_ids"].shape[1]
        assert [layer.get_seq_length() for layer in caches[1].layers] == lengths
        for ours, theirs in zip(caches[1].layers, caches[2].layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)

    @pytest.mark.parametrize("where", SWITCHES[:3])
    def test_the_sparse_decoding_of_dycoke_is_refused(self, fresh, where):
        """It was left out without a word."""
        inputs, settings = make_inputs(fresh, QUESTIONS[:1]), off(fresh, where)
        with nothing_runs(fresh.model), pytest.raises(adatp.Unsupported, match=r"use_cache=False.*DyCoke\(p=0\)"):
            generate(fresh, inputs, "dycoke", **settings)
        generate(fresh, inputs, adatp.DyCoke(p=0), **settings)
        with torch.no_grad(), applied(fresh, "dycoke"):
            assert fresh.model(**inputs, use_cache=False).past_key_values is None, "a prefill alone needs none"


class TestGradients:
    WORDS = "a pruned prefill has no gradients"

    def freeze(self, untrained, trained):
        untrained.model.requires_grad_(False)
        trained.requires_grad_(True)

    @pytest.mark.parametrize("part", ["multi_modal_projector", "vision_tower", "language_model"])
    def test_of_any_part_are_refused(self, fresh, part):
        inputs = make_inputs(fresh, QUESTIONS[:1])
        self.freeze(fresh, getattr(fresh.model.model, part))
        with nothing_runs(fresh.model), applied(fresh), pytest.raises(adatp.Unsupported, match=self.WORDS):
            fresh.model(**inputs)
        check(fresh, inputs, *generate(fresh, inputs))

    def test_of_the_embeddings_are_refused(self, fresh):
        """As adapters want them for gradient checkpointing."""
        inputs = make_inputs(fresh, QUESTIONS[:1])
        fresh.model.requires_grad_(False)
        fresh.model.enable_input_require_grads()
        with applied(fresh), pytest.raises(adatp.Unsupported, match=self.WORDS):
            fresh.model(**inputs)
        check(fresh, inputs, *generate(fresh, inputs))

    def test_of_the_head_alone_are_those_of_what_is_left(self, fresh):
        """The head comes after the pruned prefill."""
        inputs, head = make_inputs(fresh, QUESTIONS[:1]), fresh.model.lm_head
        head.weight = torch.nn.Parameter(head.weight.detach().clone())  # it may be shared with the embeddings
        self.freeze(fresh, head)
        with applied(fresh):
            hidden = fresh.model.model(**inputs).last_hidden_state
            fresh.model(**inputs).logits.square().sum().backward()
        (expected,) = torch.autograd.grad(head(hidden).square().sum(), [head.weight])
        torch.testing.assert_close(head.weight.grad, expected, **CLOSE)

    def test_nobody_wants_run(self, fresh):
        inputs = make_inputs(fresh, QUESTIONS[:1])
        fresh.model.requires_grad_(False)
        with applied(fresh):
            assert not fresh.model(**inputs).logits.requires_grad
