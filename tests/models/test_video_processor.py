"""The video processor without torchvision: its values against torchvision's rules, and every keyword of a call."""

from functools import partial

import numpy as np
import pytest
import torch
import torchvision_rules as rules
from transformers.image_utils import SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata
from videollm import make_clip

from adatp import sample_frames
from adatp.errors import InputError
from adatp.models.video_processor import FRAMES, VideoProcessor
from adatp.world.files import write_mp4

SIZE = {"height": 84, "width": 60}
NOISE = np.random.default_rng(0).integers(0, 256, (3, 100, 140, 3), np.uint8)
CLIP = make_clip(3, size=120)
FLOAT = torch.as_tensor(NOISE).permute(0, 3, 1, 2) / 255  # [T, C, H, W]
GREY, CLEAR = NOISE[..., :1], np.concatenate((NOISE, NOISE[..., :1]), -1)
SOLID = np.concatenate((NOISE, np.full_like(NOISE[..., :1], 255)), -1)
LAST = {"input_data_format": "channels_last"}
THIRD = {"total_num_frames": 3, "fps": 1.5}


def first(video):
    """`[T, C, H, W]`, from either layout."""
    video = torch.as_tensor(video)
    return video if video.shape[1] in (1, 3) else video.permute(0, 3, 1, 2).contiguous()


def pixels(video, **kwargs):
    return VideoProcessor(size=SIZE)(video, **kwargs)["pixel_values_videos"]


# what is given, and what torchvision's rules make of it: `r` resizes, as on a CPU or as on a GPU
CASES = {
    "plain": (NOISE, {}, lambda v, r: rules.normalize(r(v))),
    "blocks": (CLIP, {}, lambda v, r: rules.normalize(r(v))),
    "enlarged": (CLIP, {"size": {"height": 384, "width": 384}}, lambda v, r: rules.normalize(r(v, size=(384, 384)))),
    "channels first": (first(NOISE), {}, lambda v, r: rules.normalize(r(v))),
    "floats": (FLOAT, {"do_rescale": False}, lambda v, r: rules.normalize(r(v), factor=None)),
    "floats of levels": (NOISE.astype(np.float64), {}, lambda v, r: rules.normalize(r(v))),
    "half floats": (FLOAT.half(), {}, lambda v, r: rules.normalize(r(v))),
    "integers": (NOISE.astype(np.int32), {}, lambda v, r: rules.normalize(r(v))),
    "same size": (NOISE, {"size": {"height": 100, "width": 140}}, lambda v, r: rules.normalize(v)),
    "a short side": (NOISE, {"size": {"shortest_edge": 50}}, lambda v, r: rules.normalize(r(v, size=(50, 70)))),
    "a number": (NOISE, {"size": 50}, lambda v, r: rules.normalize(r(v, size=(50, 70)))),
    "a square": (NOISE, {"size": 50, "default_to_square": True}, lambda v, r: rules.normalize(r(v, size=(50, 50)))),
    "both sides": (
        NOISE,
        {"size": {"shortest_edge": 50, "longest_edge": 60}},
        lambda v, r: rules.normalize(r(v, size=(43, 60))),
    ),
    "a frame to fit": (
        NOISE,
        {"size": {"max_height": 50, "max_width": 60}},
        lambda v, r: rules.normalize(r(v, size=(42, 60))),
    ),
    "nearest": (NOISE, {"resample": 0}, lambda v, r: rules.normalize(r(v, mode="nearest-exact"))),
    "lanczos": (NOISE, {"resample": 1}, lambda v, r: rules.normalize(r(v, mode="lanczos"))),
    "bilinear": (NOISE, {"resample": 2}, lambda v, r: rules.normalize(r(v, mode="bilinear"))),
    "not resized": (NOISE, {"do_resize": False}, lambda v, r: rules.normalize(v)),
    "cut": (
        NOISE,
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 51, "width": 77}},
        lambda v, r: rules.normalize(rules.center_crop(v, 51, 77)),
    ),
    "cut and bordered": (
        NOISE,
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 151, "width": 77}},
        lambda v, r: rules.normalize(rules.center_crop(v, 151, 77)),
    ),
    "not rescaled": (NOISE, {"do_rescale": False}, lambda v, r: rules.normalize(r(v), factor=None)),
    "another factor": (NOISE, {"rescale_factor": 0.5}, lambda v, r: rules.normalize(r(v), factor=0.5)),
    "not normalised": (NOISE, {"do_normalize": False}, lambda v, r: r(v) * (1 / 255)),
    "neither": (NOISE, {"do_normalize": False, "do_rescale": False}, lambda v, r: r(v)),
    "another mean": (
        NOISE,
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        lambda v, r: rules.normalize(r(v), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ),
    "one mean": (NOISE, {"image_mean": 0.5, "image_std": 0.5}, lambda v, r: rules.normalize(r(v), 0.5, 0.5)),
    "grey": (GREY, {}, lambda v, r: rules.normalize(r(rules.to_rgb(v)))),
    "transparent": (CLEAR, LAST, lambda v, r: rules.normalize(r(rules.to_rgb(v)))),
    "not transparent": (SOLID, LAST, lambda v, r: rules.normalize(r(rules.to_rgb(v)))),
    "left grey": (GREY, {"do_convert_rgb": False, "do_normalize": False}, lambda v, r: r(v) * (1 / 255)),
    "two frames": (NOISE, {"do_sample_frames": True, "num_frames": 2}, lambda v, r: rules.normalize(r(v[:2]))),
    "a frame a second": (
        NOISE,
        {"do_sample_frames": True, "fps": 1, "video_metadata": [THIRD]},
        lambda v, r: rules.normalize(r(v[:2])),
    ),
}
# torchvision rounds uint8 frames once on a GPU, as ours does anywhere, and after each of two passes on a CPU
ON_GPU, ON_CPU = (partial(rules.resize, size=(84, 60), twice=twice) for twice in (False, True))


def close(ours, theirs):
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # of one division instead of two


@pytest.mark.parametrize("case", CASES)
def test_the_values_are_those_of_torchvisions_rules(case):
    video, kwargs, expected = CASES[case]
    close(pixels(video, **kwargs), expected(first(video), ON_GPU)[None])


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
@pytest.mark.parametrize("case", CASES)
def test_the_rules_are_those_of_the_real_processor(case):
    from transformers import LlavaOnevisionVideoProcessor

    video, kwargs, expected = CASES[case]
    theirs = LlavaOnevisionVideoProcessor(size=SIZE)(video, return_tensors="pt", **kwargs)["pixel_values_videos"]
    close(expected(first(video), ON_CPU)[None], theirs)


def test_all_is_done_on_the_device_that_is_given():
    assert pixels(NOISE, device="meta").device.type == "meta"


def test_without_a_filter_frames_are_resized_bilinearly():
    resized = VideoProcessor().resize(first(NOISE), SizeDict(height=84, width=60))
    assert torch.equal(resized, ON_GPU(first(NOISE), mode="bilinear"))


def test_what_rounding_once_or_twice_changes(bikes):
    """As docs/processors.md says: 14 % of the values, by one level of 255; a few in a million by up to four."""
    frames = first(sample_frames(bikes, 8).frames)
    ours = pixels(frames, size={"height": 384, "width": 384}, do_rescale=False, do_normalize=False)[0]
    steps = (ours.int() - ON_CPU(frames, size=(384, 384)).int()).abs()
    assert 0.13 < (steps > 0).double().mean() < 0.15
    assert 0 < (steps > 1).double().mean() < 1e-5
    assert steps.max() <= 4


def test_results_are_those_of_earlier_versions_to_the_bit():
    mean, std = (torch.tensor(values)[:, None, None] for values in (rules.CLIP_MEAN, rules.CLIP_STD))
    for video in (NOISE, CLIP):
        frames = [rules.resize(frame[None].float(), (84, 60))[0] for frame in first(video)]
        before = torch.stack([(frame.round().clamp(0, 255) / 255 - mean) / std for frame in frames])
        assert torch.equal(pixels(video), before[None])
        assert torch.equal(pixels(torch.as_tensor(video)), before[None])
        assert torch.equal(pixels([video, video]), torch.stack((before, before)))


# Keywords


def test_every_keyword_of_hugging_face_is_tried_here():
    tried = {name for _, kwargs, _ in CASES.values() for name in kwargs}
    tried |= {"device", "do_pad", "data_format", "return_metadata", "return_tensors"}
    assert set(VideosKwargs.__annotations__) == tried


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_frames": 2}, "num_frames=2 has no effect without do_sample_frames=True: give both, or neither"),
        ({"fps": 2, "do_sample_frames": False}, "fps=2 has no effect without do_sample_frames"),
        ({"size": SIZE, "do_resize": False}, "size={'height': 84, 'width': 60} has no effect without do_resize"),
        ({"resample": 2, "do_resize": False}, "resample=2 has no effect without do_resize"),
        ({"crop_size": SIZE}, "crop_size=.* has no effect without do_center_crop"),
        ({"rescale_factor": 1, "do_rescale": False}, "rescale_factor=1 has no effect without do_rescale"),
        ({"image_mean": 0.5, "do_normalize": False}, "image_mean=0.5 has no effect without do_normalize"),
        ({"image_std": 0.5, "do_normalize": None}, "image_std=0.5 has no effect without do_normalize"),
        ({"do_pad": True}, "do_pad=True: videos are not padded"),
        ({"data_format": "channels_last"}, "data_format='channels_last': videos are returned as 'channels_first' only"),
        ({"resample": 4}, r"resample=4 cannot be done on tensors; use one of 0 \(NEAREST\), "),
        ({"size": {"longest_edge": 3}}, "size must have height and width, .* longest_edge=3"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size must have height and width"),
        ({"image_std": [1.0, 0.0, 1.0]}, r"image_std must have no zeros, got \(1.0, 0.0, 1.0\)"),
        ({"do_sample_frames": True}, "needs either num_frames or fps; got num_frames=None and fps=None"),
        ({"do_sample_frames": True, "num_frames": 2, "fps": 1}, "got num_frames=2 and fps=1"),
        ({"do_sample_frames": True, "num_frames": 0}, "num_frames=0 .* is not in 1 ... 3"),
        ({"do_sample_frames": True, "num_frames": 4}, "num_frames=4 .* is not in 1 ... 3"),
        ({"do_sample_frames": True, "fps": 1}, "fps=1 needs the video's own rate"),
        (
            {"do_sample_frames": True, "fps": 2, "video_metadata": [THIRD]},
            r"num_frames=4 \(given, or as fps=2 makes it\) is not in 1 ... 3",
        ),
        (
            {"do_sample_frames": True, "num_frames": 2, "video_metadata": [{"total_num_frames": 9}]},
            "needs whole videos: video_metadata says 9 frames of one that has 3",
        ),
        ({"video_metadata": [THIRD, THIRD]}, "video_metadata has 2 entries for 1 videos: give one per video"),
        ({"video_metadata": [[THIRD], [THIRD]]}, "video_metadata has 2 entries for 1 videos"),
    ],
)
def test_a_keyword_that_cannot_be_followed_is_refused(kwargs, message):
    with pytest.raises(InputError, match=message):
        pixels(NOISE, **kwargs)


def test_unknown_keywords_and_wrong_types_are_refused_by_hugging_face():
    with pytest.raises(TypeError, match="unexpected keyword argument 'frames'"):
        pixels(NOISE, frames=3)
    with pytest.raises(Exception, match="field 'do_resize'"):
        pixels(NOISE, do_resize="no")


def test_settings_of_the_processor_are_the_defaults_of_a_call():
    processor = VideoProcessor(size=SIZE, do_normalize=False, do_sample_frames=True, num_frames=2, do_pad=True)
    ours = processor(NOISE, data_format="channels_first", do_pad=False)["pixel_values_videos"]
    assert torch.equal(ours, pixels(NOISE[:2], do_normalize=False))


def test_what_is_returned():
    assert isinstance(pixels(NOISE), torch.Tensor)
    assert isinstance(pixels(NOISE, return_tensors="np"), np.ndarray)
    videos = pixels([NOISE, NOISE[:2]], return_tensors=None)
    assert [len(video) for video in videos] == [3, 2]
    with pytest.raises(InputError, match=r"must have the same length, got \[3, 2\] frames"):
        pixels([NOISE, NOISE[:2]])
    inputs = VideoProcessor()(NOISE, video_metadata=THIRD, return_metadata=True)
    assert dict(inputs["video_metadata"][0]).items() >= THIRD.items()
    assert "video_metadata" not in VideoProcessor()(NOISE)


@pytest.mark.parametrize("total", [1, 7, 32, 75])
def test_frames_of_a_decoded_video_are_chosen_as_by_hugging_face(total):
    metadata = VideoMetadata(total_num_frames=total, fps=10)
    for count in range(1, total + 1):
        chosen = [i * total // count for i in range(count)]
        assert VideoProcessor().sample_frames(metadata, num_frames=count).tolist() == chosen
    for fps in (0.5, 1, 3, 10):
        count = max(1, int(total / 10 * fps))
        assert VideoProcessor().sample_frames(metadata, fps=fps).tolist() == [i * total // count for i in range(count)]


# Files


@pytest.fixture(scope="module")
def file(pyav, tmp_path_factory):
    """40 frames, 4 a second."""
    path = tmp_path_factory.mktemp("files") / "clip.mp4"
    write_mp4(path, make_clip(40, size=24))
    return str(path)


@pytest.mark.parametrize(
    ("kwargs", "count"),
    [
        ({}, FRAMES),
        ({"do_sample_frames": True, "num_frames": 5}, 5),
        ({"do_sample_frames": True, "num_frames": 40}, 40),
        ({"do_sample_frames": True, "fps": 2}, 20),
        ({"do_sample_frames": True, "fps": 0.01}, 1),
    ],
)
def test_a_file_is_decoded_by_our_sampler(file, kwargs, count):
    clip = sample_frames(file, count)
    ours = VideoProcessor(size=SIZE)(file, return_metadata=True, **kwargs)
    assert torch.equal(ours["pixel_values_videos"], pixels(clip.frames))
    (metadata,) = ours["video_metadata"]
    assert dict(metadata).items() >= {**clip.metadata, "video_backend": "pyav"}.items()


def test_files_may_have_frames_of_different_sizes(file, tmp_path):
    write_mp4(tmp_path / "large.mp4", make_clip(40, size=48))
    both = pixels([file, tmp_path / "large.mp4"])
    assert both.shape == (2, FRAMES, 3, 84, 60)
    assert torch.equal(both[1:], pixels(tmp_path / "large.mp4"))


def test_a_short_file_gives_all_its_frames_and_says_so(tmp_path, pyav):
    write_mp4(tmp_path / "short.mp4", make_clip(5, size=24))
    with pytest.warns(UserWarning, match=r"short.mp4: the video has 5 frames, fewer than the 32 asked for"):
        assert pixels(tmp_path / "short.mp4").shape[1] == 5


@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        ("https://host/clip.mp4", {}, "https://host/clip.mp4: is an address.*download the file and give its path"),
        ("file:///clip.mp4", {}, "is an address"),
        ("no.mp4", {}, "no.mp4"),
        (None, {"do_sample_frames": True, "num_frames": 41}, "num_frames=41 .* is not in 1 ... 40"),
        (None, {"do_sample_frames": True}, "needs either num_frames or fps"),
        (None, {"num_frames": 4}, "num_frames=4 has no effect without do_sample_frames"),
        (None, {"video_metadata": [THIRD]}, "video_metadata is for decoded videos"),
        (None, {"input_data_format": "channels_last"}, "input_data_format is for decoded videos"),
    ],
)
def test_what_cannot_be_done_with_a_file(file, path, kwargs, message):
    with pytest.raises(InputError, match=message):
        pixels(path or file, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "edge"),
    [
        ({}, 384),
        ({"size": {"height": 96, "width": 128}}, 384),
        ({"size": {"height": 96, "width": 512}}, 512),
        ({"size": {"shortest_edge": 700}}, 700),
        ({"do_resize": False}, None),
    ],
)
def test_a_file_is_decoded_to_as_many_pixels_as_resizing_needs(bikes, monkeypatch, kwargs, edge):
    edges = []

    def sample(path, count, shortest_edge):
        edges.append(shortest_edge)
        return sample_frames(path, 2)

    monkeypatch.setattr("adatp.models.video_processor.sample_frames", sample)
    VideoProcessor()(str(bikes), **kwargs)
    assert edges == [edge]
