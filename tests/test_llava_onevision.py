"""What the engine is told of LLaVA-OneVision."""

import pytest
import torch
from conftest import make_clip, make_inputs
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

import adatp
from adatp.flops import MODEL_SHAPES
from adatp.models import families, family_of
from adatp.models.llava_onevision import LlavaOnevision
from adatp_kernels.select import FIXED, PADDING


@pytest.fixture
def family(sdpa):
    return LlavaOnevision(sdpa.model)


def test_is_found_by_its_model_type(sdpa):
    assert families()["llava_onevision"] is LlavaOnevision
    assert type(family_of(sdpa.model)) is LlavaOnevision


def test_layout(sdpa, family):
    inputs = make_inputs(sdpa, ["What?", "Who is it?"], frames=3)
    layout = family.layout(inputs["input_ids"], inputs["attention_mask"].bool())
    assert (layout.frames, layout.tokens_per_frame) == (3, 9)
    for b in range(2):
        ids = inputs["input_ids"][b]
        video = ids == sdpa.model.config.video_token_id
        place = video.nonzero().flatten()
        assert layout.frame[b, place].tolist() == [i // 9 for i in range(27)] + [FIXED], "the newline is not prunable"
        assert layout.position[b, place[:-1]].tolist() == list(range(9)) * 3
        assert (layout.frame[b, ~video & inputs["attention_mask"][b].bool()] == FIXED).all()
        assert (layout.frame[b, inputs["attention_mask"][b] == 0] == PADDING).all()
        assert torch.equal(layout.text[b].nonzero().flatten(), torch.arange(place[-1] + 1, len(ids)))
    assert family.question(inputs["input_ids"], layout, sdpa.processor.tokenizer) == ["What?", "Who is it?"]


def test_an_image_beside_the_video_is_neither_text_nor_pruned(sdpa, family):
    prompt = "<|im_start|>user <video>\n<image>\nWhat?<|im_end|><|im_start|>assistant\n"
    inputs = sdpa.processor(text=prompt, videos=[make_clip(8)], images=[make_clip(1)[0]], return_tensors="pt")
    ids = inputs["input_ids"]
    image = ids == sdpa.model.config.image_token_id
    layout = family.layout(ids, None)
    assert image.any()
    assert (layout.frame[image] == FIXED).all()
    assert not layout.text[image].any()
    assert layout.text.sum() == ids.shape[1] - (layout.text[0].int().argmax()) - image.sum()
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
        logits = sdpa.model(**inputs).logits
    assert logits.isfinite().all()
    assert pruned.report.samples[0].question == "What?"
    assert logits.shape[1] == pruned.report.samples[0].lengths()[-1]
    assert pruned.report.samples[0].other_tokens > image.sum()


def test_two_videos_are_refused(sdpa, family):
    video = torch.full((1, 10), sdpa.model.config.video_token_id)
    with pytest.raises(ValueError, match="sample 0 holds more than one video"):
        family.layout(torch.cat([video, torch.zeros(1, 1, dtype=torch.int64), video], 1), None)
    with pytest.raises(ValueError, match=r"holds 20 video tokens, which is not frames \* 9 \+ 1"):
        family.layout(torch.cat([video, video], 1), None)


def test_the_question_ends_with_its_turn(sdpa, family):
    text = "<video>\n Who rides?\n<|im_end|><|im_start|>assistant\nA man.<|im_end|><|im_start|>user\nWhere?<|im_end|>"
    inputs = sdpa.processor(text=text, videos=[make_clip(2)], return_tensors="pt")
    layout = family.layout(inputs["input_ids"], None)
    assert family.question(inputs["input_ids"], layout, sdpa.processor.tokenizer) == ["Who rides?"]


@pytest.mark.parametrize(("feature_layer", "expected"), [(-1, 3), (-2, 2), (0, 0), (2, 2), ([-2, -1], 3)])
def test_tower_layers(sdpa, family, monkeypatch, feature_layer, expected):
    monkeypatch.setattr(sdpa.model.config, "vision_feature_layer", feature_layer)
    assert family.tower_layers == expected


def test_the_text_encoder_of_the_published_tower_is_known(sdpa, family, monkeypatch):
    assert family.siglip is None
    monkeypatch.setattr(sdpa.model.config.vision_config, "hidden_size", 1152)
    assert family.siglip == "google/siglip-so400m-patch14-384"


def test_the_published_configuration():
    """No weights: LLaVA-OneVision's own defaults, with the decoder of the 0.5B checkpoint."""
    decoder = Qwen2Config(**MODEL_SHAPES["onevision-0.5b"].text_config)
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(text_config=decoder))
    family = family_of(model)
    assert family.tokens_per_frame == 196
    assert family.tower_layers == 26
    assert family.siglip == "google/siglip-so400m-patch14-384"
    assert adatp.AdaTPConfig().last_of(len(family.decoder.layers)) == 12
    ids = torch.full((1, 6273), model.config.video_token_id)
    layout = family.layout(torch.cat([ids, torch.zeros(1, 20, dtype=torch.int64)], 1), None)
    assert layout.frames == 32
    assert layout.visual_tokens() == [6272]


def test_features_without_hidden_states_are_refused(family):
    with pytest.raises(ValueError, match="carry no hidden_states"):
        family.tower_states(object())
