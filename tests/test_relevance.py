"""Relevance reuses the tower's hidden states; the result must be what the whole SigLIP gives."""

import pytest
import torch
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from adatp.relevance import Relevance
from adatp.untrained import load_untrained

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def make_siglip(layers=4, head=True):
    torch.manual_seed(0)
    vision = SiglipVisionConfig(**SHAPE, num_hidden_layers=layers, image_size=28, patch_size=14, vision_use_head=head)
    text = SiglipTextConfig(
        **SHAPE, num_hidden_layers=2, projection_size=32, vocab_size=300, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()


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
        pooled = relevance.frames(whole.hidden_states[tower_layers])
    assert torch.equal(pooled, whole.pooler_output)


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
        for ours, theirs in zip(
            loaded(states, ["a", "b"]), Relevance(siglip, tokenizer, 3)(states, ["a", "b"]), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
