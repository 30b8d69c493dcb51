"""Relevance reuses the tower's hidden states; the result must be what the whole SigLIP gives."""

import copy

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig
from videollm import make_inputs

import adatp
from adatp.relevance import Questions, Relevance
from adatp.small.untrained import load_untrained
from adatp.tensors import blocks

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def make_siglip(layers=4, head=True):
    torch.manual_seed(0)
    vision = SiglipVisionConfig(**SHAPE, num_hidden_layers=layers, image_size=28, patch_size=14, vision_use_head=head)
    text = SiglipTextConfig(
        **SHAPE, num_hidden_layers=2, projection_size=32, vocab_size=300, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    siglip = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
    if head:
        torch.nn.init.normal_(siglip.vision_model.head.attention.in_proj_bias)  # they begin as zeros, and are trained
        torch.nn.init.normal_(siglip.vision_model.head.attention.out_proj.bias)
    return siglip


@pytest.fixture(scope="module")
def tokenizer():
    return load_untrained(image_size=84).relevance.tokenizer


@pytest.mark.parametrize("tower_layers", [0, 2, 3, 4])
def test_frames_equal_the_whole_vision_model(tokenizer, tower_layers):
    siglip = make_siglip()
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        whole = siglip.vision_model(pixels, output_hidden_states=True)
        relevance = Relevance(siglip, tokenizer, tower_layers)
        pooled = relevance(whole.hidden_states[tower_layers])
    torch.testing.assert_close(pooled, whole.pooler_output, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("at_once", [1, 3, 4, 9, 1000])
def test_frames_may_come_in_any_blocks(tokenizer, monkeypatch, at_once):
    siglip = make_siglip()
    states = torch.randn(7, 4, 32)
    relevance, seen = Relevance(siglip, tokenizer, 3), []
    with torch.no_grad():
        pooled = relevance(states)
        monkeypatch.setattr(blocks, "TOKENS", at_once)
        relevance.layers[0].register_forward_hook(lambda layer, args, output: seen.append(len(output)))
        parted = relevance(states)
    torch.testing.assert_close(parted, pooled, rtol=1e-5, atol=2e-6)
    assert sum(seen) == 7
    assert max(seen) == min(7, max(1, at_once // 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_is_as_exact_as_siglips_in_low_precision(tokenizer, dtype):
    siglip = make_siglip().to(dtype)
    relevance, states = Relevance(siglip, tokenizer, 4), torch.randn(5, 9, 32).to(dtype)
    with torch.no_grad():
        own, theirs = relevance(states), siglip.vision_model.head(siglip.vision_model.post_layernorm(states))
        exact = copy.deepcopy(siglip.vision_model).float()
        expected = exact.head(exact.post_layernorm(states.float()))
    assert own.dtype == dtype
    assert (own - expected).abs().max() <= 1.25 * (theirs - expected).abs().max()


def test_the_built_in_tower_is_continued_by_its_siglip(sdpa):
    tower = sdpa.model.model.vision_tower
    assert len(tower.encoder.layers) == 3
    assert len(sdpa.relevance.layers) == 1
    assert not tower.use_head


def test_only_what_is_needed_is_kept(tokenizer):
    siglip = make_siglip()
    kept = {id(p) for p in Relevance(siglip, tokenizer, 3).parameters()}
    dropped = [*siglip.vision_model.embeddings.parameters(), *siglip.vision_model.encoder.layers[:3].parameters()]
    assert not kept & {id(p) for p in dropped}


def test_text_is_padded_to_64_tokens_and_longer_questions_are_cut(tokenizer):
    siglip = make_siglip()
    relevance = Relevance(siglip, tokenizer, 3)
    short, long = "What?", "x" * 100
    padded = [*tokenizer(short)["input_ids"], *[tokenizer.pad_token_id] * 64][:64]
    with torch.no_grad():
        both = relevance.text([short, long])
        expected = siglip.text_model(input_ids=torch.tensor([padded])).pooler_output
        cut = siglip.text_model(input_ids=torch.tensor([tokenizer("x" * 64)["input_ids"]])).pooler_output
    torch.testing.assert_close(both[:1], expected)
    torch.testing.assert_close(both[1:], cut)


def test_a_siglip_without_a_head_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no pooling head"):
        Relevance(make_siglip(head=False), tokenizer, 3)


def test_a_tower_deeper_than_the_siglip_is_refused(tokenizer):
    with pytest.raises(ValueError, match="tower_layers must be from 0 to the SigLIP's 4 layers, got 5"):
        Relevance(make_siglip(), tokenizer, 5)


def test_from_pretrained(tokenizer, tmp_path):
    siglip = make_siglip()
    siglip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = Relevance.from_pretrained(str(tmp_path), 3, device="cpu", dtype=torch.float32)
    states = torch.randn(2, 4, 32)
    with torch.no_grad():
        expected = Relevance(siglip, tokenizer, 3)
        torch.testing.assert_close(loaded(states), expected(states))
        torch.testing.assert_close(loaded.text(["a", "b"]), expected.text(["a", "b"]))


class TestQuestions:
    @pytest.fixture
    def asked(self, tokenizer, monkeypatch):
        """A `Questions`, and what its text tower was asked, call by call."""
        relevance = Relevance(make_siglip(), tokenizer, 3)
        calls, text = [], relevance.text
        monkeypatch.setattr(relevance, "text", lambda questions: calls.append(list(questions)) or text(questions))
        return Questions(relevance), calls

    def test_a_question_is_encoded_once(self, asked):
        questions, calls = asked
        first = questions.features(["What?", "Who?", "What?"])
        assert calls == [["What?", "Who?"]]
        assert torch.equal(first[0], first[2])
        assert not torch.equal(first[0], first[1])
        again = questions.features(["Who?", "Where?"])
        assert calls[1:] == [["Where?"]]
        assert torch.equal(again[0], first[1])
        assert not again.requires_grad

    def test_features_are_those_of_the_text_tower(self, asked):
        questions, _ = asked
        with torch.no_grad():
            expected = questions._relevance.text(["What?", "Who?"])
        for _ in range(2):
            torch.testing.assert_close(questions.features(["What?", "Who?"]), expected)

    def test_the_oldest_are_forgotten(self, asked, monkeypatch):
        questions, calls = asked
        monkeypatch.setattr(Questions, "LIMIT", 2)
        for question in ("a", "b", "c", "b", "a"):
            questions.features([question])
        assert calls == [["a"], ["b"], ["c"], ["a"]]
        assert questions.features(["a", "b", "c", "d"]).shape == (4, 32), "more at once than are remembered"

    @pytest.mark.parametrize("generates", [False, True], ids=["forward", "generate"])
    def test_the_question_is_encoded_behind_the_frames_and_remembered(self, sdpa, generates):
        """Where the host queues it while a GPU runs the vision tower."""
        inputs, order, handles = make_inputs(sdpa, ["What is in the picture?"]), [], []
        for name, module in (
            ("text", sdpa.relevance.text_model),
            ("tower", sdpa.model.model.vision_tower),
            ("decoder", sdpa.model.model.language_model.layers[0]),
        ):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: order.append(name)))
        try:
            with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance):
                for _ in range(2):
                    if generates:
                        sdpa.model.generate(**inputs, max_new_tokens=2, do_sample=False)
                    else:
                        sdpa.model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        decoders = ["decoder"] * (2 if generates else 1)
        assert order == ["tower", "text", *decoders, "tower", *decoders]
