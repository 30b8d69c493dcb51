"""The processor without torchvision: as the pages of Hugging Face call it, and loaded from a checkpoint."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from videollm import make_clip

import adatp
from adatp import sample_frames
from adatp.errors import InputError
from adatp.models.processor import TorchOnlyProcessor, load_processor
from adatp.models.video_processor import FRAMES, VideoProcessor
from adatp.world.files import write_mp4


def test_pixels_are_those_of_a_bicubic_resize():
    video = make_clip(3, size=120)
    ours = VideoProcessor(size={"height": 84, "width": 60})([video])["pixel_values_videos"]
    assert ours.shape == (1, 3, 3, 84, 60)
    assert ours.dtype == torch.float32
    mean, std = (np.array(values) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    for frame, pixels in zip(video, ours[0], strict=True):
        # a channel at a time in mode F, because Pillow rounds 8-bit images between its two passes
        channels = [Image.fromarray(frame[..., i].astype(np.float32)) for i in range(3)]
        resized = [np.asarray(channel.resize((60, 84), Image.Resampling.BICUBIC)) for channel in channels]
        expected = np.stack(resized, -1).round().clip(0, 255)
        restored = (pixels.permute(1, 2, 0).numpy() * std + mean) * 255
        different = np.abs(restored - expected) > 0.01
        assert different.mean() < 1e-3, "only what lies between two levels may be rounded to the other"


def test_the_placeholders_match_the_features(sdpa):
    clip = make_clip(7)
    inputs = sdpa.processor(text="<video>\nWhat?", videos=[clip], return_tensors="pt")
    assert (inputs["input_ids"] == sdpa.model.config.video_token_id).sum() == 7 * 9 + 1
    assert inputs["pixel_values_videos"].shape == (1, 7, 3, 84, 84)


def test_a_saved_processor_loads(sdpa, tmp_path):
    sdpa.processor.save_pretrained(tmp_path)
    loaded = load_processor(str(tmp_path))
    clip = make_clip(4)
    for name, value in sdpa.processor(text="<video>\nWhat?", videos=[clip], return_tensors="pt").items():
        assert torch.equal(loaded(text="<video>\nWhat?", videos=[clip], return_tensors="pt")[name], value)
    conversation = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
    assert loaded.apply_chat_template(conversation) == sdpa.processor.apply_chat_template(conversation)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "LlavaOnevisionProcessor"
    assert saved["video_processor"]["video_processor_type"] == "LlavaOnevisionVideoProcessor"


def test_the_published_layout_loads(sdpa, tmp_path):
    """One file for each processor, as the checkpoints on the hub have it."""
    sdpa.processor.tokenizer.save_pretrained(tmp_path)
    sdpa.processor.image_processor.save_pretrained(tmp_path)
    video = {"size": {"height": 42, "width": 42}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    settings = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 9, "video_token": "<video>"}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    loaded = load_processor(str(tmp_path))
    inputs = loaded(text="<video>", videos=[np.full((2, 50, 50, 3), 255, np.uint8)], return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 42, 42)
    assert (inputs["pixel_values_videos"] == 2).all()
    assert loaded.num_image_tokens == 9


def test_all_settings_of_a_checkpoint_are_loaded(sdpa, tmp_path):
    sdpa.processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    config = json.loads(path.read_text())
    settings = {"do_normalize": False, "resample": 2, "rescale_factor": 0.5, "num_frames": 3, "do_sample_frames": True}
    config["video_processor"] |= settings
    path.write_text(json.dumps(config))
    loaded = load_processor(str(tmp_path)).video_processor
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert loaded(make_clip(6), return_tensors="pt")["pixel_values_videos"].shape[1] == 3


def test_another_video_processor_is_refused(sdpa):
    parts = sdpa.processor
    with pytest.raises(InputError, match="video_processor must be a VideoProcessor, got a "):
        TorchOnlyProcessor(parts.image_processor, parts.tokenizer, parts.tokenizer)


# What Hugging Face's pages do


CALL = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}


def ask(**video):
    content = [{"type": "video", **video}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": content}]


def same(ours, theirs):
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def file(pyav, tmp_path_factory):
    """40 frames, 4 a second."""
    path = tmp_path_factory.mktemp("files") / "clip.mp4"
    write_mp4(path, make_clip(40, size=24))
    return str(path)


def expected(processor, clip, **kwargs):
    """The inputs of a call with decoded frames."""
    prompt = processor.apply_chat_template(ask(), add_generation_prompt=True)
    return processor(text=prompt, videos=[clip], return_tensors="pt", **kwargs)


@pytest.mark.parametrize("key", ["video", "path", "url"])
def test_a_conversation_with_a_file(videollm, file, key):
    clip = sample_frames(file, FRAMES)
    inputs = videollm.processor.apply_chat_template(ask(**{key: file}), **CALL)
    same(inputs, expected(videollm.processor, clip.frames))


@pytest.mark.parametrize(("kwargs", "count"), [({"num_frames": 4}, 4), ({"fps": 1}, 10)])
def test_a_conversation_with_a_number_of_frames(videollm, file, kwargs, count):
    inputs = videollm.processor.apply_chat_template(ask(path=file), processor_kwargs=kwargs, **CALL)
    same(inputs, expected(videollm.processor, sample_frames(file, count).frames))


def test_a_conversation_with_decoded_videos(videollm, tmp_path):
    clip = make_clip(4)
    images = [Image.fromarray(frame) for frame in clip]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for video in (clip, torch.as_tensor(clip).permute(0, 3, 1, 2), list(clip), images, tuple(images), paths):
        same(videollm.processor.apply_chat_template(ask(video=video), **CALL), expected(videollm.processor, clip))


def test_a_batch_of_conversations(videollm, file):
    processor = videollm.processor
    both = processor.apply_chat_template(
        [ask(path=file), ask(path=file)], processor_kwargs={"num_frames": 4, "padding": True}, **CALL
    )
    one = processor.apply_chat_template(ask(path=file), processor_kwargs={"num_frames": 4}, **CALL)
    same(both, {name: torch.cat((value, value)) for name, value in one.items()})


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"url": "https://host/clip.mp4"}, "https://host/clip.mp4: is an address.*give its path"),
        ({"path": "no.mp4"}, "no.mp4"),
        ({"video": {"url": "clip.mp4"}}, "videos holds a dict"),
    ],
)
def test_a_conversation_with_what_cannot_be_decoded(videollm, video, message):
    with pytest.raises(InputError, match=message):
        videollm.processor.apply_chat_template(ask(**video), **CALL)


def test_the_metadata_is_handed_on(videollm, file):
    processor = videollm.processor
    inputs = processor(text="<video>", videos=[file], return_metadata=True)
    assert dict(inputs["video_metadata"][0]).items() >= sample_frames(file, FRAMES).metadata.items()
    times = {"fps": 2.0, "total_num_frames": 40, "frames_indices": [0, 9, 20]}
    inputs = processor(text="<video>", videos=make_clip(3), video_metadata=times, return_metadata=True)
    assert dict(inputs["video_metadata"][0]).items() >= times.items()


def test_keywords_reach_the_video_processor(videollm):
    inputs = videollm.processor(
        text="<video>", videos=make_clip(6), do_sample_frames=True, num_frames=2, do_normalize=False
    )
    plain = VideoProcessor(size={"height": 84, "width": 84})(make_clip(6)[::3], do_normalize=False)
    assert torch.equal(inputs["pixel_values_videos"], plain["pixel_values_videos"])
    with pytest.raises(InputError, match="num_frames=2 has no effect"):
        videollm.processor(text="<video>", videos=make_clip(6), num_frames=2)


def test_a_pipeline(videollm, file):
    pipe = pipeline("image-text-to-text", model=videollm.model, processor=videollm.processor)
    inputs = videollm.processor.apply_chat_template(ask(path=file), **CALL)
    output = videollm.model.generate(**inputs, max_new_tokens=4)
    answer = videollm.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    call = {"max_new_tokens": 4, "return_full_text": False}
    assert pipe(text=ask(path=file), **call)[0]["generated_text"] == answer
    prompt = videollm.processor.apply_chat_template(ask(), add_generation_prompt=True)
    assert pipe(text=prompt, videos=[file], **call)[0]["generated_text"] == answer
    with adatp.apply(videollm.model, videollm.processor, "uniform", flops=0.5) as pruned:
        pipe(text=ask(path=file), processor_kwargs={"num_frames": 4}, **call)
    assert pruned.report.pruned
