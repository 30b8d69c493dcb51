"""apply() and remove() on a model instance: what changes, what does not, and what is refused."""

import copy
import inspect
import warnings

import pytest
import torch
from recompute import prompt_embeds
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, StaticCache
from videollm import make_clip, make_inputs

import adatp
import adatp.pruning
import adatp.tensors.blocks
from adatp.small.untrained import load_untrained


@torch.no_grad()
def alone(model, inputs):
    """What the plain decoder puts out for each prompt of a batch without the others and their padding, `[W, D]`."""
    for embeds, mask in zip(prompt_embeds(model, inputs), inputs["attention_mask"].bool(), strict=True):
        positions = mask.nonzero().T
        decoder = model.model.language_model
        yield decoder(inputs_embeds=embeds[None, mask], position_ids=positions).last_hidden_state[0]


EVERYTHING = adatp.AdaTP(start_ratio=1.0, end_ratio=1.0, global_debias=False, local_debias=False)


def hooks_of(model):
    return {
        name: (
            dict(m._forward_pre_hooks),
            dict(m._forward_hooks),
            dict(m._forward_pre_hooks_with_kwargs),
            set(m.__dict__),
        )
        for name, m in model.named_modules()
    }


@pytest.fixture
def inputs(small):
    return make_inputs(small, ["What is in the picture?"])


@pytest.fixture
def sdpa_inputs(sdpa):
    return make_inputs(sdpa, ["What is in the picture?"])


class TestRatioOne:
    def test_logits_are_equal_exactly(self, small, inputs):
        with torch.no_grad():
            plain = small.model(**inputs)
            with adatp.apply(small.model, small.processor, EVERYTHING) as pruned:
                same = small.model(**inputs)
                assert pruned.report.pruned
        assert torch.equal(plain.logits, same.logits)
        for ours, theirs in zip(same.past_key_values.layers, plain.past_key_values.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)

    def test_a_padded_batch_is_each_of_its_prompts_alone_exactly(self, small):
        inputs = make_inputs(small, ["What is in the picture?", "Why?"])
        with torch.no_grad(), adatp.apply(small.model, small.processor, EVERYTHING):
            same = small.model.model(**inputs).last_hidden_state
        for ours, theirs in zip(same, alone(small.model, inputs), strict=True):
            assert torch.equal(ours[-len(theirs) :], theirs)

    @pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}])
    def test_generate_gives_the_same_tokens(self, small, inputs, settings):
        settings = {"max_new_tokens": 24, "do_sample": False, **settings}
        torch.manual_seed(0)
        plain = small.model.generate(**inputs, **settings)
        with adatp.apply(small.model, small.processor, EVERYTHING):
            torch.manual_seed(0)
            assert torch.equal(small.model.generate(**inputs, **settings), plain)


class TestRemove:
    def test_leaves_the_model_as_it_was(self):
        fresh = load_untrained(image_size=84, layers=16)
        model, inputs = fresh.model, make_inputs(fresh, ["What is in the picture?"])
        with torch.no_grad():
            before = model(**inputs, output_hidden_states=True)  # installs transformers' own hooks
            hooks, weights = hooks_of(model), {k: v.clone() for k, v in model.state_dict().items()}
            pruned = adatp.apply(model, fresh.processor, relevance=fresh.relevance)
            assert hooks_of(model) != hooks
            model(**inputs)
            pruned.remove()
            pruned.remove()  # harmless
            assert hooks_of(model) == hooks
            after = model(**inputs, output_hidden_states=True)
        assert torch.equal(before.logits, after.logits)
        assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())

    def test_puts_back_a_method_of_the_instance(self, sdpa):
        body = sdpa.model.model
        replaced = body.get_video_features
        body.get_video_features = replaced
        try:
            adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance).remove()
            assert body.__dict__["get_video_features"] is replaced
        finally:
            del body.get_video_features

    def test_after_an_exception_inside_the_context(self, small):
        hooks = hooks_of(small.model)
        with pytest.raises(KeyError), adatp.apply(small.model, small.processor, relevance=small.relevance):
            raise KeyError
        assert hooks_of(small.model) == hooks

    def test_an_exception_in_a_prefill_leaves_nothing_behind(self, small, inputs):
        with adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned, torch.no_grad():
            expected = small.model(**inputs).logits

            def fail(*_):
                raise ArithmeticError

            handle = small.model.model.language_model.layers[4].register_forward_hook(fail)
            with pytest.raises(ArithmeticError):
                small.model(**inputs)
            handle.remove()
            with pytest.raises(RuntimeError, match="the last prefill failed"):
                _ = pruned.report
            text = small.model(input_ids=inputs["input_ids"][:, -5:])
            assert text.logits.shape[1] == 5
            assert torch.equal(small.model(**inputs).logits, expected)

    def test_only_this_instance_changes(self, small, inputs):
        other = load_untrained(image_size=84, layers=16)
        with torch.no_grad():
            plain = other.model(**inputs).logits
            with adatp.apply(small.model, small.processor, relevance=small.relevance):
                small.model(**inputs)
                assert torch.equal(other.model(**inputs).logits, plain)


class TestPassThrough:
    def test_text_only(self, small):
        ids = small.processor.tokenizer("A question without a video", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            plain = small.model(input_ids=ids).logits
            with adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned:
                assert torch.equal(small.model(input_ids=ids).logits, plain)
                tokens = small.model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(tokens, small.model.generate(input_ids=ids, max_new_tokens=5, do_sample=False))
        assert not pruned.report.pruned
        assert pruned.report.reason == "no video in the prompt"
        assert str(pruned.report) == "not pruned: no video in the prompt"
        with pytest.raises(ValueError, match="no video in the prompt"):
            _ = pruned.report.flops

    def test_image_only(self, small):
        prompt = small.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
            add_generation_prompt=True,
        )
        inputs = small.processor(text=prompt, images=[make_clip(1)[0]], return_tensors="pt")
        with torch.no_grad():
            plain = small.model(**inputs).logits
            with adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned:
                assert torch.equal(small.model(**inputs).logits, plain)
        assert pruned.report.reason == "no video in the prompt"

    def test_inputs_embeds(self, small):
        embeds = torch.randn(1, 7, small.model.config.text_config.hidden_size)
        with torch.no_grad(), adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned:
            small.model(inputs_embeds=embeds)
        assert "inputs_embeds" in pruned.report.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    untrained = load_untrained(image_size=84, layers=16)
    model, relevance = untrained.model.to(dtype), untrained.relevance.to(dtype)
    inputs = make_inputs(untrained, ["What is in the picture?", "Why?"]).to(dtype)
    with torch.no_grad():
        with adatp.apply(model, untrained.processor, EVERYTHING):
            same = model.model(**inputs).last_hidden_state
        with adatp.apply(model, untrained.processor, relevance=relevance) as pruned:
            logits = model(**inputs).logits
            tokens = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    for ours, theirs in zip(same, alone(model, inputs), strict=True):
        assert torch.equal(ours[-len(theirs) :], theirs)
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert logits.shape[1] == max(sample.lengths()[-1] for sample in pruned.report.samples)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 8


def test_hidden_states_show_the_shrinking_lengths(small, inputs):
    with torch.no_grad(), adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned:
        output = small.model(**inputs, output_hidden_states=True)
    lengths = pruned.report.samples[0].lengths()
    assert [h.shape[1] for h in output.hidden_states] == [lengths[0], *lengths]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[2] < lengths[0]
    assert [layer.get_seq_length() for layer in output.past_key_values.layers] == lengths
    assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


def test_a_samples_without_a_video_in_the_batch_keeps_everything(small):
    video = make_inputs(small, ["What is in the picture?"])
    text = small.processor.tokenizer("No video here", return_tensors="pt")["input_ids"]
    padding = video["input_ids"].shape[1] - text.shape[1]
    text_row = torch.nn.functional.pad(text, (padding, 0), value=0)
    batch = {
        "input_ids": torch.cat([text_row, video["input_ids"]]),
        "attention_mask": torch.cat(
            [torch.nn.functional.pad(torch.ones_like(text), (padding, 0)), video["attention_mask"]]
        ),
        "pixel_values_videos": video["pixel_values_videos"],
    }
    with torch.no_grad():
        alone = small.model(input_ids=text).logits[0]
        with adatp.apply(small.model, small.processor, relevance=small.relevance) as pruned:
            video_alone = small.model(**video).logits[0]
            kept = pruned.report.samples[0].kept
            logits = small.model(**batch, position_ids=batch["attention_mask"].cumsum(1).sub(1).clamp(min=0)).logits
    assert pruned.report.samples[0].visual_tokens == 0
    assert pruned.report.samples[1].kept == kept
    torch.testing.assert_close(logits[0, -text.shape[1] :], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1, -20:], video_alone[-20:], atol=1e-4, rtol=1e-4)


class TestBlocks:
    """An MLP takes at most so many tokens at a time, whatever enters the layer."""

    @staticmethod
    def run(sdpa, inputs, **settings):
        seen = []
        layers = sdpa.model.model.language_model.layers
        hooks = [
            layer.mlp.gate_proj.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
            for layer in layers
        ]
        try:
            with torch.no_grad():
                return sdpa.model(**inputs, **settings), seen
        finally:
            for hook in hooks:
                hook.remove()

    @pytest.mark.parametrize("tokens", [1, 7, 40])
    @pytest.mark.parametrize("method", ["adatp", "fastv", "visionzip"])
    def test_give_what_the_whole_gives(self, sdpa, sdpa_inputs, monkeypatch, tokens, method):
        with adatp.apply(sdpa.model, sdpa.processor, method, relevance=sdpa.relevance) as pruned:
            whole, lengths = self.run(sdpa, sdpa_inputs)
            monkeypatch.setattr("adatp.tensors.blocks.TOKENS", tokens)
            parted, seen = self.run(sdpa, sdpa_inputs)
        assert max(seen) <= tokens < max(lengths)
        assert sum(seen) == sum(lengths) == sum(pruned.report.samples[0].lengths())
        torch.testing.assert_close(parted.logits, whole.logits, rtol=1e-4, atol=1e-5)

    def test_are_nearly_alike(self, monkeypatch):
        monkeypatch.setattr("adatp.tensors.blocks.TOKENS", 10)
        seen = []
        adatp.tensors.blocks.in_blocks(lambda block: seen.append(block.shape[1]) or block, torch.zeros(1, 21, 2), 1)
        assert seen == [7, 7, 7]

    def test_are_not_made_of_other_prompts_or_once_removed(self, sdpa, sdpa_inputs, monkeypatch):
        monkeypatch.setattr("adatp.tensors.blocks.TOKENS", 1)
        text = sdpa.processor.tokenizer("Why is the sky blue?", return_tensors="pt")
        with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            _, seen = self.run(sdpa, text)
        assert set(seen) == {text["input_ids"].shape[1]}
        _, seen = self.run(sdpa, sdpa_inputs)
        assert set(seen) == {sdpa_inputs["input_ids"].shape[1]}


@pytest.mark.parametrize("hooks_too", [True, False], ids=["call", "forward"])
def test_layers_compiled_one_by_one_still_prune(hooks_too):
    """`layer.compile()` compiles its hooks as well, among them the one that cuts."""
    small = load_untrained(image_size=84, layers=4)
    inputs = make_inputs(small, ["What is in the picture?"])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with (
        torch.no_grad(),
        adatp.apply(small.model, small.processor, adatp.AdaTP(last=3), relevance=small.relevance) as pruned,
    ):
        expected, expected_report = small.model(**inputs), pruned.report
        for layer in small.model.model.language_model.layers:
            if hooks_too:
                layer.compile(backend="eager", dynamic=True)
            else:
                layer.forward = torch.compile(layer.forward, backend="eager", dynamic=True)
        output = small.model(**inputs)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert pruned.report is not expected_report
        assert pruned.report.samples[0].kept == expected_report.samples[0].kept
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


class TestQuestion:
    def test_is_read_from_the_prompt(self, sdpa, sdpa_inputs):
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
            sdpa.model(**sdpa_inputs)
        assert pruned.report.samples[0].question == "What is in the picture?"

    def test_can_be_given_and_changes_the_similarity(self, sdpa, sdpa_inputs):
        with torch.no_grad(), adatp.apply(sdpa.model, relevance=sdpa.relevance, question="Who?") as pruned:
            sdpa.model(**sdpa_inputs)
            first = pruned.report.samples[0]
            pruned.question = "Where on earth?"
            sdpa.model(**sdpa_inputs)
            second = pruned.report.samples[0]
        assert (first.question, second.question) == ("Who?", "Where on earth?")
        assert first.similarity != second.similarity

    def test_one_a_sample(self, sdpa):
        inputs = make_inputs(sdpa, ["What?", "Why?"])
        with torch.no_grad(), adatp.apply(sdpa.model, relevance=sdpa.relevance, question=["a", "b"]) as pruned:
            sdpa.model(**inputs)
            assert [s.question for s in pruned.report.samples] == ["a", "b"]
            pruned.question = ["a", "b", "c"]
            with pytest.raises(ValueError, match="3 questions for 2 prompts"):
                sdpa.model(**inputs)

    def test_missing_is_told(self, sdpa, sdpa_inputs):
        end = int((sdpa_inputs["input_ids"][0] == sdpa.model.config.video_token_id).nonzero()[-1])
        turn = sdpa.processor.tokenizer("<|im_end|><|im_start|>assistant\n", return_tensors="pt")["input_ids"]
        ids = torch.cat([sdpa_inputs["input_ids"][:, : end + 1], turn], 1)
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
            with pytest.warns(adatp.NoRelevanceWarning, match="sample 0 has no question"):
                sdpa.model(input_ids=ids, pixel_values_videos=sdpa_inputs["pixel_values_videos"])
        assert not any(s.significant for s in pruned.report.samples[0].segments)
        assert "has no question" in pruned.report.notes[0]

    def test_needs_a_processor(self, sdpa):
        with pytest.raises(ValueError, match="processor is needed"):
            adatp.apply(sdpa.model, relevance=sdpa.relevance)

    def test_missing_in_one_prompt_leaves_the_others_alone(self, sdpa):
        inputs = make_inputs(sdpa, ["", "hello there"])
        length = int(inputs["attention_mask"][1].sum())
        alone = {
            "input_ids": inputs["input_ids"][1:, -length:],
            "pixel_values_videos": inputs["pixel_values_videos"][1:],
        }
        config = adatp.AdaTP(tau_t=-1.0)
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, config, relevance=sdpa.relevance) as pruned:
            with pytest.warns(adatp.NoRelevanceWarning, match="sample 0 has no question"):
                sdpa.model(**inputs)
            unasked, asked = pruned.report.samples
            sdpa.model(**alone)
        assert asked.kept == pruned.report.samples[0].kept
        assert asked.question == "hello there"
        assert all(s.significant for s in asked.segments)
        assert unasked.question is None
        assert unasked.similarity is None
        assert not any(s.significant for s in unasked.segments)


def test_segments_do_not_depend_on_global_debiasing(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?"], frames=12, seed=3)
    segments = []
    for debias in (True, False):
        config = adatp.AdaTP(tau_s=0.99, global_debias=debias)
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, config, relevance=sdpa.relevance) as pruned:
            sdpa.model(**inputs)
        segments.append([(s.start, s.stop) for s in pruned.report.samples[0].segments])
        assert (pruned.report.samples[0].similarity is not None) == debias
        assert pruned.report.notes == ()
    assert segments[0] == segments[1]


def test_a_video_of_which_nothing_is_left_is_noted(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?"])
    config = adatp.AdaTP(p=1e-6)
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, config, relevance=sdpa.relevance) as pruned:
        assert sdpa.model(**inputs).logits.isfinite().all()
    assert pruned.report.samples[0].kept[2:] == (0,) * 14
    assert any("no visual token left" in note for note in pruned.report.notes)


class TestNoTextEncoder:
    def test_every_ratio_is_r_and_the_user_is_told_once(self, sdpa, sdpa_inputs):
        told = "no global debiasing.*tau_s is not calibrated.*adatp calibrate VIDEO.*Pass relevance=PATH"
        with pytest.warns(adatp.NoRelevanceWarning, match=told):
            pruned = adatp.apply(sdpa.model, sdpa.processor, relevance=None)
        with pruned, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            sdpa.model(**sdpa_inputs)
            sample, notes = pruned.report.samples[0], pruned.report.notes
        assert sample.similarity is None
        assert sample.question is None
        assert not any(s.significant or s.similarity is not None for s in sample.segments)
        assert "no aligned text encoder" in notes[0]
        assert "tau_s is not calibrated" in notes[0]

    def test_auto_that_cannot_be_loaded_warns(self, sdpa, monkeypatch):
        with pytest.warns(adatp.NoRelevanceWarning, match="no SigLIP is known for this vision tower"):
            adatp.apply(sdpa.model, sdpa.processor).remove()
        monkeypatch.setattr("adatp.models.llava_onevision.LlavaOnevision.siglip", "/nowhere/siglip")
        with pytest.warns(adatp.NoRelevanceWarning, match="/nowhere/siglip cannot be loaded"):
            adatp.apply(sdpa.model, sdpa.processor).remove()

    def test_a_named_one_that_cannot_be_loaded_is_an_error(self, sdpa):
        with pytest.raises(OSError, match="nowhere"):
            adatp.apply(sdpa.model, sdpa.processor, relevance="/nowhere/siglip")

    def test_one_of_another_width_is_an_error(self, sdpa):
        sdpa_width = sdpa.relevance.width
        sdpa.relevance.width = 1152
        try:
            with pytest.raises(ValueError, match="width 64"):
                adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance)
        finally:
            sdpa.relevance.width = sdpa_width


class TestRefusals:
    def test_twice(self, sdpa):
        with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(RuntimeError, match="already applied"):
                adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance)
        adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance).remove()

    def test_another_family(self):
        config = Qwen2Config(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
        )
        with pytest.raises(
            TypeError, match=r"Qwen2ForCausalLM.*supported are: internvl, llava_onevision, llava_video, "
        ):
            adatp.apply(Qwen2ForCausalLM(config))

    def test_too_few_layers(self):
        untrained = load_untrained(image_size=84, layers=14)
        with pytest.raises(ValueError, match=r"14 decoder layers.*AdaTP\(last="):
            adatp.apply(untrained.model, untrained.processor, relevance=untrained.relevance)
        config = adatp.AdaTP(last=6)
        adatp.apply(untrained.model, untrained.processor, config, relevance=untrained.relevance).remove()

    @pytest.mark.parametrize(("impl", "error"), [("triton", RuntimeError), ("cuda", ValueError)])
    def test_an_implementation_that_cannot_run(self, sdpa, impl, error):
        with pytest.raises(error, match=impl):
            adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance, impl=impl)

    def test_a_cache_that_is_not_on_the_device(self, sdpa, sdpa_inputs):
        cache = StaticCache(config=sdpa.model.config.text_config, max_cache_len=200, offloading=True)
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(TypeError, match=r"needs a DynamicCache.*StaticCache"):
                sdpa.model(**sdpa_inputs, past_key_values=cache)

    def test_a_mask_of_four_dimensions(self, sdpa, sdpa_inputs):
        length = sdpa_inputs["input_ids"].shape[1]
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(ValueError, match="attention_mask must be"):
                sdpa.model(**{**sdpa_inputs, "attention_mask": mask})

    def test_padding_on_the_right(self, sdpa, sdpa_inputs):
        mask = sdpa_inputs["attention_mask"].clone()
        mask[:, -2:] = 0
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(ValueError, match="padded on the left only"):
                sdpa.model(**{**sdpa_inputs, "attention_mask": mask})

    def test_a_wrapped_model(self, sdpa):
        with pytest.raises(TypeError, match="itself, got a LlavaOnevisionModel; unwrap it first"):
            adatp.apply(sdpa.model.model, sdpa.processor, relevance=sdpa.relevance)

    def test_a_decoder_of_another_kind(self, sdpa, monkeypatch):
        monkeypatch.setattr(sdpa.model.config.text_config, "model_type", "qwen3")
        with pytest.raises(TypeError, match=r"must have a Qwen2 decoder.*'qwen3'"):
            adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance)

    def test_a_video_that_joins_a_cache(self, sdpa, sdpa_inputs):
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            cache = DynamicCache()
            sdpa.model(input_ids=sdpa_inputs["input_ids"][:, :3], past_key_values=cache)
            with pytest.raises(ValueError, match="video cannot be pruned if the cache"):
                sdpa.model.generate(**sdpa_inputs, past_key_values=cache, max_new_tokens=2)

    @pytest.mark.parametrize("chunk", [3, 16, 500])
    def test_chunked_prefill(self, sdpa, sdpa_inputs, chunk):
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(ValueError, match=r"[Cc]hunked prefill"):
                sdpa.model.generate(**sdpa_inputs, prefill_chunk_size=chunk, max_new_tokens=2)

    def test_labels(self, sdpa, sdpa_inputs):
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(ValueError, match="labels cannot be given"):
                sdpa.model(**sdpa_inputs, labels=sdpa_inputs["input_ids"])

    def test_gradients(self, sdpa, sdpa_inputs):
        with adatp.apply(sdpa.model, sdpa.processor, EVERYTHING):
            with pytest.raises(ValueError, match="a pruned prefill has no gradients"):
                sdpa.model(**sdpa_inputs)

    def test_a_query_projection_replaced_since(self, sdpa, sdpa_inputs):
        """As adapters do; queries of another layer must not stand in for its own."""
        attention = sdpa.model.model.language_model.layers[3].self_attn
        before, other = attention.q_proj, copy.deepcopy(attention.q_proj)
        try:
            with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
                attention.q_proj = other
                with pytest.raises(RuntimeError, match="query projection of decoder layer 3 did not run"):
                    sdpa.model(**sdpa_inputs)
        finally:
            attention.q_proj = before

    def test_copying_the_model(self, sdpa):
        with adatp.apply(sdpa.model, sdpa.processor, EVERYTHING), pytest.raises(TypeError, match="call remove"):
            copy.deepcopy(sdpa.model)

    def test_a_pruned_cache_after_remove(self, sdpa, sdpa_inputs):
        with torch.no_grad():
            with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
                cache = sdpa.model(**sdpa_inputs, use_cache=True).past_key_values
                sdpa.model(input_ids=torch.tensor([[20]]), past_key_values=cache)
            with pytest.raises(RuntimeError, match="only be continued while the method is applied"):
                sdpa.model(input_ids=torch.tensor([[20]]), past_key_values=cache)

    def test_half_a_video(self, sdpa, sdpa_inputs):
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
            with pytest.raises(ValueError, match="chunked prefill"):
                sdpa.model(input_ids=sdpa_inputs["input_ids"][:, :50])

    def test_a_video_without_text_after_it(self, sdpa, sdpa_inputs):
        end = int((sdpa_inputs["input_ids"][0] == sdpa.model.config.video_token_id).nonzero()[-1])
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, EVERYTHING):
            with pytest.raises(ValueError, match="no text after its video"):
                sdpa.model(
                    input_ids=sdpa_inputs["input_ids"][:, : end + 1],
                    pixel_values_videos=sdpa_inputs["pixel_values_videos"],
                )

    def test_placeholders_without_a_video(self, sdpa, sdpa_inputs):
        with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, EVERYTHING):
            with pytest.raises(ValueError, match="pass pixel_values_videos"):
                sdpa.model(input_ids=sdpa_inputs["input_ids"])

    def test_a_report_before_the_first_run(self, sdpa):
        with adatp.apply(sdpa.model, sdpa.processor, EVERYTHING) as pruned:
            with pytest.raises(RuntimeError, match="run the model first"):
                _ = pruned.report


def test_a_cache_of_the_callers(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?"])
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
        expected = sdpa.model(**inputs).logits
        for cache in (DynamicCache(), DynamicCache(config=sdpa.model.config)):
            assert torch.equal(sdpa.model(**inputs, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_step_of_decoding_looks_for_no_video(sdpa, sdpa_inputs, cache, monkeypatch):
    """Nor asks the cache how long it is, which a static one has on the device."""
    asked = []
    is_continued = adatp.hf.hooks.is_continued
    monkeypatch.setattr(adatp.hf.hooks, "is_continued", lambda *a, **k: asked.append(1) or is_continued(*a, **k))
    with adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
        sdpa.model.generate(**sdpa_inputs, max_new_tokens=4, min_new_tokens=4, cache_implementation=cache)
    assert len(asked) == 1


def test_positional_arguments(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?", "And?"])
    body = sdpa.model.model
    names = list(inspect.signature(body.forward).parameters)
    positional = [inputs.get(name) for name in names[: names.index("attention_mask") + 1]]
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
        assert torch.equal(body(*positional).last_hidden_state, body(**inputs).last_hidden_state)


def test_a_cache_that_was_reset(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?"])
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
        cache = DynamicCache(config=sdpa.model.config.text_config)
        expected = sdpa.model(**inputs, past_key_values=cache).logits
        cache.reset()
        if cache.get_seq_length():
            pytest.skip("reset() of this transformers keeps the length")
        assert torch.equal(sdpa.model(**inputs, past_key_values=cache).logits, expected)


def test_features_encoded_beforehand(sdpa):
    inputs = make_inputs(sdpa, ["What is in the picture?"])
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
        expected = sdpa.model(**inputs).logits
        report = pruned.report
        pixels = inputs.pop("pixel_values_videos")
        try:
            features = sdpa.model.get_video_features(pixel_values_videos=pixels, return_dict=True)
            outputs = sdpa.model(**inputs, mm_encoder_outputs={"video": features})
        except TypeError:
            pytest.skip("this transformers takes no mm_encoder_outputs")
        assert torch.equal(outputs.logits, expected)
        assert pruned.report == report
