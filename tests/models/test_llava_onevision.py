"""What the engine is told of LLaVA-OneVision."""

import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config
from videollm import make_clip, make_inputs

import adatp
from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.layout import Grid, VideoSize
from adatp.models import families, family_of
from adatp.models.llava_onevision import LlavaOnevision


@pytest.fixture
def family(sdpa):
    return LlavaOnevision(sdpa.model)


def test_is_found_by_its_model_type(sdpa):
    assert families()["llava_onevision"] is LlavaOnevision
    assert type(family_of(sdpa.model)) is LlavaOnevision


def test_layout(sdpa, family):
    ids = make_inputs(sdpa, ["What?"], frames=3)["input_ids"][0]
    layout = family.layout(ids)
    video = ids == sdpa.model.config.video_token_id
    place = video.nonzero().flatten()
    assert (layout.videos, layout.grid, layout.tokens_per_frame) == ((VideoSize(3, Grid(3, 3)),), Grid(3, 3), 9)
    assert layout.begins == tuple(place[:-1:9].tolist())
    assert torch.equal(layout.visual, place[:-1]), "the newline is not prunable"
    assert (layout.length, layout.end) == (len(ids), place[-1])
    assert torch.equal(layout.rows, torch.arange(place[-1] + 1, len(ids)))
    assert family.question(ids, layout, sdpa.processor.tokenizer) == "What?"


def test_layout_of_several_videos_and_images(sdpa, family):
    image, video = sdpa.model.config.image_token_id, sdpa.model.config.video_token_id
    ids = [7] + [video] * 19 + [8, 9] + [image] * 4 + [video] * 28 + [5] + [image] * 4 + [6, 6]
    layout = family.layout(torch.tensor(ids))
    assert [video.frames for video in layout.videos] == [2, 3]
    assert layout.frames == 5
    assert layout.begins == (1, 10, 26, 35, 44)
    assert layout.visual.tolist() == [*range(1, 19), *range(26, 53)]
    assert (layout.length, layout.end) == (61, 53)
    assert layout.rows.tolist() == [54, 59, 60], "text after the last video; an image's tokens are none"


def test_a_prompt_without_a_video_has_no_layout(family):
    assert family.layout(torch.arange(20, 29)) is None


def test_an_image_beside_the_video_is_neither_text_nor_pruned(sdpa, family):
    prompt = "<|im_start|>user <video>\n<image>\nWhat?<|im_end|><|im_start|>assistant\n"
    inputs = sdpa.processor(text=prompt, videos=[make_clip(8)], images=[make_clip(1)[0]], return_tensors="pt")
    ids = inputs["input_ids"][0]
    image = (ids == sdpa.model.config.image_token_id).nonzero().flatten()
    layout = family.layout(ids)
    assert len(image)
    assert not torch.isin(layout.visual, image).any()
    assert not torch.isin(layout.rows, image).any()
    with torch.no_grad(), adatp.apply(sdpa.model, sdpa.processor, relevance=sdpa.relevance) as pruned:
        logits = sdpa.model(**inputs).logits
    assert logits.isfinite().all()
    assert pruned.report.samples[0].question == "What?"
    assert logits.shape[1] == pruned.report.samples[0].lengths()[-1]
    assert pruned.report.samples[0].other_tokens > len(image)


def test_videos_without_text_between_them_are_refused(sdpa, family):
    video = torch.full((10,), sdpa.model.config.video_token_id)
    with pytest.raises(ValueError, match=r"holds 20 video tokens in a row, which is not frames \* 9 \+ 1"):
        family.layout(torch.cat([video, video]))


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<video>\nWho?", "Who?"),
        ("Look. <video> Who?", "Who?"),
        ("<|im_start|>user Who? <video><|im_end|><|im_start|>assistant\n", "Who?"),
        ("<|im_start|>system\nBe kind.<|im_end|><|im_start|>user\n<video>\nWho?<|im_end|>\n", "Who?"),
        (
            "<|im_start|>user <video>\nWho?<|im_end|><|im_start|>assistant\nA man.<|im_end|>"
            "<|im_start|>user\nWhere?<|im_end|><|im_start|>assistant\n",
            "Where?",
        ),
        ("<|im_start|>user <video>\nWho?<|im_end|><|im_start|>assistant\nuser unknown<|im_end|>", "Who?"),
        ("<|im_start|>user <video>\n<image>\nWho?<|im_end|>", "Who?"),
        ("<|im_start|>user <video>\n<|im_end|><|im_start|>assistant\n", ""),
    ],
)
def test_the_question(sdpa, family, text, question):
    """The last the user has asked, after the video or before."""
    images = {"images": [make_clip(1)[0]]} if "<image>" in text else {}
    ids = sdpa.processor(text=text, videos=[make_clip(2)], return_tensors="pt", **images)["input_ids"][0]
    assert family.question(ids, family.layout(ids), sdpa.processor.tokenizer) == question


def test_ids_of_embeddings(sdpa, family):
    ids = make_inputs(sdpa, ["What?"], frames=2)["input_ids"]
    found = family.ids_of(sdpa.model.get_input_embeddings()(ids))
    video = ids == sdpa.model.config.video_token_id
    assert torch.equal(found, torch.where(video, ids, -1))


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
    assert family.grid == Grid(14, 14)
    assert family.tower_layers == 26
    assert family.siglip == "google/siglip-so400m-patch14-384"
    assert adatp.AdaTP().last_of(len(family.decoder.layers)) == 12
    ids = torch.full((1, 6273), model.config.video_token_id)
    layout = family.layout(torch.cat([ids[0], torch.zeros(20, dtype=torch.int64)]))
    assert layout.videos == (VideoSize(32, family.grid),)
    assert len(layout.visual) == 6272


def test_features_without_hidden_states_are_refused(family):
    with pytest.raises(ValueError, match="carry no hidden_states"):
        family.tower_states(object())
