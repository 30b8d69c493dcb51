"""The torch-only processor against Pillow, and the loading of a checkpoint's settings."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from videollm import make_clip

from adatp.models.processor import VideoProcessor, load_processor


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


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([np.zeros((2, 3, 8, 8), np.uint8)], r"must be \[n, H, W, 3\] uint8, got \(2, 3, 8, 8\)"),
        ([np.zeros((2, 8, 8, 3), np.float32)], "float32"),
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8)], r"same length, got \[2, 3\]"),
    ],
)
def test_bad_videos(videos, message):
    with pytest.raises(ValueError, match=message):
        VideoProcessor()(videos)


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
