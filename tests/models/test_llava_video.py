"""LLaVA-Video: the model, its processor, and what the engine is told of them."""

import inspect

import numpy as np
import pytest
import torch
from original_llava_video import video_tokens
from small_llava_video import small_llava_video
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
)
from transformers.video_utils import VideoMetadata
from videollm import make_clip, make_inputs

from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp.layout import Grid
from adatp.models import families, family_of
from adatp.models.llava_video import (
    LlavaVideo,
    LlavaVideoConfig,
    LlavaVideoForConditionalGeneration,
    LlavaVideoModel,
    LlavaVideoProcessor,
)
from adatp.world.files import write_mp4

TIMES = {"fps": 2.0, "frames_indices": [0, 5, 9], "total_num_frames": 21}
TOLD = (
    "The video lasts for 10.50 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
    "0.00s,2.50s,4.50s.Please answer the following questions related to this video."
)


@pytest.fixture(scope="module")
def small():
    return small_llava_video()


@pytest.fixture
def processor():
    """One that tells the times, and that a test may change."""
    return small_llava_video(layers=1, add_time_instruction=True).processor


def published(**changes):
    """No weights: the published configuration."""
    decoder = Qwen2Config(**MODEL_SHAPES["llava-video-7b"].text_config)
    with torch.device("meta"):
        return LlavaVideoForConditionalGeneration(LlavaVideoConfig(text_config=decoder, **changes))


def placeholders(inputs, untrained):
    return (inputs["input_ids"] == untrained.model.config.video_token_id).sum(-1).tolist()


# The model


@pytest.mark.parametrize("pool", ["average", "bilinear"])
@pytest.mark.parametrize("image_size", [384, 42, 70, 84])
def test_the_tokens_are_those_of_the_original(pool, image_size):
    model = small_llava_video(layers=1, image_size=image_size, pool=pool).model
    # small integers: their averages are exact; the weights of "bilinear" are of float32 coordinates
    features = torch.randint(-99, 100, (2, (image_size // 14) ** 2, model.config.text_config.hidden_size)).float()
    newline = torch.arange(features.shape[2]).float() / 8 + 200
    model.model.image_newline.data = newline
    ours = model.model.apply_pooling(features).flatten(0, 1).detach().numpy()
    original = video_tokens(features.numpy(), newline.numpy(), pool)
    assert ours.shape == original.shape
    np.testing.assert_allclose(ours, original, rtol=0, atol=0 if pool == "average" else 1e-3)
    columns = {"average": image_size // 14 // 2, "bilinear": (image_size // 14 + 1) // 2}[pool] + 1
    at_the_end_of_a_row = np.arange(len(ours)) % columns == columns - 1
    assert ((ours == newline.numpy()).all(1) == at_the_end_of_a_row).all()


@pytest.mark.parametrize("pool", ["average", "bilinear"])
def test_the_whole_video_reaches_the_decoder_as_in_the_original(pool):
    untrained = small_llava_video(layers=1, image_size=70, pool=pool)
    body = untrained.model.model
    inputs = make_inputs(untrained, ["What?", "Who is it?"], frames=3)
    with torch.no_grad():
        features = untrained.model.get_video_features(inputs["pixel_values_videos"], return_dict=True)
        projected = body.multi_modal_projector(features.hidden_states[-1]).unflatten(0, (2, 3))
        newline = body.image_newline.numpy()
        original = np.concatenate([video_tokens(video.numpy(), newline, pool) for video in projected])
        ours = body(**inputs).video_hidden_states
    assert ours.shape == original.shape == (2 * 3 * {"average": 2 * 3, "bilinear": 3 * 4}[pool], len(newline))
    np.testing.assert_allclose(ours, original, rtol=1e-4, atol=1e-5)


def test_video_features_are_returned_as_by_onevision(small):
    pixels = make_inputs(small, ["What?", "Who is it?"], frames=3)["pixel_values_videos"]
    with torch.no_grad():
        features = small.model.get_video_features(pixels, return_dict=True)
        as_tuple = small.model.get_video_features(pixels, return_dict=False)
        tokens = small.model.model.apply_pooling(
            small.model.model.multi_modal_projector(features.hidden_states[-1])
        ).reshape(2, 36, -1)
    # before mm_encoder_outputs, transformers adds a video's last newline in forward
    whole = "mm_encoder_outputs" in inspect.signature(small.model.model.forward).parameters
    assert torch.equal(features.pooler_output, tokens if whole else tokens[:, :-1])
    assert features.hidden_states[-1].shape == (6, 36, 64)
    assert isinstance(as_tuple, tuple)
    assert any(torch.equal(value, features.pooler_output) for value in as_tuple if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(("pool", "tokens"), [("average", 182), ("bilinear", 210)])
def test_the_published_configuration(pool, tokens):
    model = published(spatial_pool_mode=pool)
    features = torch.empty(2, 729, model.config.text_config.hidden_size, device="meta")
    assert model.model.apply_pooling(features).shape == (2, tokens, 3584)
    assert len(model.model.vision_tower.encoder.layers) == 26
    assert len(model.model.language_model.layers) == 28
    family = family_of(model)
    assert type(family) is LlavaVideo
    assert family.grid.tokens == tokens
    assert family.grid.newlines
    assert family.grid.columns == family.grid.rows + 1
    assert family.tower_layers == 26
    assert family.siglip == "google/siglip-so400m-patch14-384"


def test_the_papers_number_of_visual_tokens():
    model = published()
    ids = torch.full((3640 + 20,), 0)
    ids[10:3650] = model.config.video_token_id
    layout = family_of(model).layout(ids)
    assert len(layout.visual) == 3640 == 20 * MODEL_SHAPES["llava-video-7b"].tokens_per_frame
    assert len(layout.begins) == 20


def test_a_batch_of_two_videos_is_answered_as_each_alone(small):
    questions = ["What?", "Who is it, and where?"]
    both = make_inputs(small, questions, frames=5)
    answers = small.model.generate(**both, max_new_tokens=6, do_sample=False)[:, both["input_ids"].shape[1] :]
    assert answers.shape == (2, 6)
    with torch.no_grad():
        logits = small.model(**both).logits[:, -1]
        for b in range(2):
            kept = both["attention_mask"][b].bool()
            alone = small.model(
                input_ids=both["input_ids"][b : b + 1, kept], pixel_values_videos=both["pixel_values_videos"][b : b + 1]
            )
            torch.testing.assert_close(alone.logits[0, -1], logits[b], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["average", "bilinear"])
def test_a_saved_model_loads(tmp_path, pool):
    untrained = small_llava_video(layers=2, pool=pool)
    untrained.model.save_pretrained(tmp_path)
    inputs = make_inputs(untrained, ["What?", "Who is it?"], frames=3)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(loaded) is LlavaVideoForConditionalGeneration
    assert type(loaded.model) is LlavaVideoModel
    assert type(AutoModel.from_pretrained(tmp_path)) is LlavaVideoModel
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, untrained.model(**inputs).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LlavaVideoConfig
    assert (config.model_type, config.spatial_pool_mode) == ("llava_video", pool)
    suppressed = GenerationConfig.from_pretrained(tmp_path).suppress_tokens
    assert suppressed == untrained.model.generation_config.suppress_tokens
    assert suppressed


def test_tied_embeddings_stay_tied(tmp_path):
    config = LlavaVideoConfig(**{**small_llava_video(layers=1).model.config.to_dict(), "tie_word_embeddings": True})
    model = LlavaVideoForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    for tied in (model, LlavaVideoForConditionalGeneration.from_pretrained(tmp_path)):
        assert tied.lm_head.weight is tied.get_input_embeddings().weight


@pytest.mark.parametrize("mode", ["max", "", None])
def test_other_pool_modes_are_refused(mode, small):
    message = f"spatial_pool_mode must be 'average' or 'bilinear', got {mode!r}"
    with pytest.raises(ValueError, match=message):
        LlavaVideoConfig(spatial_pool_mode=mode)
    with pytest.raises(ValueError, match=message):
        LlavaVideoProcessor(
            small.processor.image_processor,
            small.processor.tokenizer,
            small.processor.video_processor,
            spatial_pool_mode=mode,
        )


# The processor


@pytest.mark.parametrize("frames", [1, 5, 20])
@pytest.mark.parametrize("pool", ["average", "bilinear"])
@pytest.mark.parametrize("image_size", [70, 84])
def test_the_placeholders_match_the_features(frames, pool, image_size):
    untrained = small_llava_video(layers=1, image_size=image_size, pool=pool)
    inputs = make_inputs(untrained, ["What?", "Who is it?"], frames=frames)
    with torch.no_grad():
        states = untrained.model.model(**inputs).video_hidden_states
    assert placeholders(inputs, untrained) == [len(states) // 2] * 2
    assert inputs["pixel_values_videos"].shape == (2, frames, 3, image_size, image_size)


@pytest.mark.parametrize(
    "metadata",
    [
        [TIMES],
        TIMES,
        VideoMetadata(**TIMES),
        [VideoMetadata(**TIMES)],
        [{"fps": 4, "frames_indices": np.array([0.0, 10.0, 18.0]), "duration": 10.5, "total_num_frames": 999}],
    ],
)
def test_the_time_instruction(processor, metadata):
    inputs = processor(text="<video>\nWhat?", videos=[make_clip(3)], video_metadata=metadata)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == "<video>" * 36 + TOLD + "\nWhat?"
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values_videos"}


def test_every_video_has_its_own_times(processor):
    later = {**TIMES, "frames_indices": [1, 2, 3]}
    inputs = processor(
        text=["<video>What?", "<video>Why?"], videos=[make_clip(3), make_clip(3)], video_metadata=[TIMES, later]
    )
    first, second = (processor.tokenizer.decode(ids) for ids in inputs["input_ids"])
    assert first == "<video>" * 36 + TOLD + "What?"
    assert second == "<video>" * 36 + TOLD.replace("0.00s,2.50s,4.50s", "0.50s,1.00s,1.50s") + "Why?"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"got fps None and 3 frames_indices; .*set processor.add_time_instruction = False"),
        ([TIMES, TIMES], "video_metadata"),
        ([{**TIMES, "frames_indices": [0, 1]}], "as there are frames, 3; got fps 2.0 and 2 frames_indices"),
        ([{**TIMES, "fps": None}], "got fps None.*set processor.add_time_instruction = False"),
        ([{**TIMES, "frames_indices": None}], "no frames_indices"),
    ],
)
def test_times_that_do_not_fit_are_refused(processor, metadata, message):
    with pytest.raises(ValueError, match=message):
        processor(text="<video>\nWhat?", videos=[make_clip(3)], video_metadata=metadata)


def test_the_times_of_a_file_are_read_from_it(processor, pyav, tmp_path):
    write_mp4(tmp_path / "clip.mp4", make_clip(8, size=24))  # 4 a second
    sampled = {"do_sample_frames": True, "num_frames": 3}
    inputs = processor(text="<video>\nWhat?", videos=[tmp_path / "clip.mp4"], **sampled)
    told = TOLD.replace("10.50", "2.00").replace("0.00s,2.50s,4.50s", "0.00s,0.75s,1.75s")
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == "<video>" * 36 + told + "\nWhat?"
    whole = {"fps": 4.0, "total_num_frames": 8}
    inputs = processor(text="<video>\nWhat?", videos=[make_clip(8)], video_metadata=[whole], **sampled)
    told = told.replace("0.75s,1.75s", "0.50s,1.25s")  # frames 0, 2 and 5, as Hugging Face's class chooses
    assert processor.tokenizer.decode(inputs["input_ids"][0]) == "<video>" * 36 + told + "\nWhat?"


def test_no_times_are_told_if_none_are_wanted(processor):
    processor.add_time_instruction = False
    for given in ({}, {"video_metadata": [TIMES]}):
        inputs = processor(text="<video>\nWhat?", videos=[make_clip(3)], **given)
        assert processor.tokenizer.decode(inputs["input_ids"][0]) == "<video>" * 36 + "\nWhat?"


@pytest.mark.parametrize(
    ("text", "videos", "message"),
    [
        ("<video>", None, "the prompts hold 1 <video> for 0 videos"),
        ("What?", [make_clip(2)], "the prompts hold 0 <video> for 1 videos"),
        (["<video>", "<video><video>"], [make_clip(2)] * 2, "hold 3 <video> for 2 videos"),
        ("<video>", [make_clip(2), make_clip(3)], "hold 1 <video> for 2 videos"),
        (["<video>", "<video>"], [make_clip(2), make_clip(3)], r"same length, got \[2, 3\]"),
        ("<video>", [make_clip(2) > 9], "dtype bool"),
    ],
)
def test_bad_prompts_and_videos(small, text, videos, message):
    with pytest.raises(ValueError, match=message):
        small.processor(text=text, videos=videos)


def test_prompts_without_videos(small):
    assert small.processor.tokenizer.decode(small.processor(text=["What?"])["input_ids"][0]) == "What?"
    inputs = small.processor(text=["<image>What?"], images=[make_clip(1)[0]], return_tensors="pt")
    with torch.no_grad():
        assert small.model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("pool", ["average", "bilinear"])
def test_a_saved_processor_loads(tmp_path, told, pool):
    saved = small_llava_video(layers=1, pool=pool, add_time_instruction=told).processor
    saved.save_pretrained(tmp_path)
    conversation = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
    prompt = saved.apply_chat_template(conversation)
    call = {"text": prompt, "videos": [make_clip(3)], "video_metadata": [TIMES], "return_tensors": "pt"}
    for load in (AutoProcessor.from_pretrained, LlavaVideo.load_processor):
        loaded = load(str(tmp_path))
        assert type(loaded) is LlavaVideoProcessor
        assert (loaded.spatial_pool_mode, loaded.add_time_instruction) == (pool, told)
        assert loaded.apply_chat_template(conversation) == prompt
        for name, value in saved(**call).items():
            torch.testing.assert_close(loaded(**call)[name], value)  # torchvision's pixels are not bitwise ours
    assert AutoProcessor.from_pretrained(tmp_path, add_time_instruction=not told).add_time_instruction is not told


def test_a_processor_tells_the_times_unless_told_otherwise(small):
    parts = small.processor
    assert LlavaVideoProcessor(parts.image_processor, parts.tokenizer, parts.video_processor).add_time_instruction
    assert isinstance(parts.image_processor, LlavaOnevisionImageProcessorPil)


# The family


def test_is_found_by_its_model_type(small):
    assert families()["llava_video"] is LlavaVideo
    assert type(family_of(small.model)) is LlavaVideo


def test_the_layout(small):
    family = family_of(small.model)
    ids = make_inputs(small, ["What?"], frames=3)["input_ids"][0]
    layout = family.layout(ids)
    video = ids == small.model.config.video_token_id
    assert family.grid == Grid(3, 4, newlines=True)
    place = video.nonzero().flatten()
    assert layout.begins == tuple(place[::12].tolist())
    assert torch.equal(layout.visual, place), "newlines are prunable like any other token"


def test_the_question_is_read_without_the_time_instruction(small, processor):
    conversation = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who is it?"}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    ids = processor(text=prompt, videos=[make_clip(3)], video_metadata=[TIMES], return_tensors="pt")["input_ids"][0]
    assert TOLD in processor.tokenizer.decode(ids)
    family = family_of(small.model)
    assert family.question(ids, family.layout(ids), processor.tokenizer) == "Who is it?"
    assert family.clean_question(f" {TOLD} The video lasts for long?\n") == "The video lasts for long?"
