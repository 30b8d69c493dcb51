"""The forms in which videos are given, all with the same result, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from videollm import make_clip

from adatp.errors import InputError
from adatp.models.video_processor import VideoProcessor

A, B = make_clip(3, size=24), make_clip(3, size=24, seed=1)
SIZE = {"height": 28, "width": 28}


def first(video):
    return torch.as_tensor(video).permute(0, 3, 1, 2)


def images(video):
    return [Image.fromarray(frame) for frame in video]


def pixels(videos, **kwargs):
    return VideoProcessor(size=SIZE)(videos, **kwargs)["pixel_values_videos"]


ONE = {
    "array": A,
    "tensor": torch.as_tensor(A),
    "channels first": first(A),
    "channels first, array": first(A).numpy(),
    "flipped twice": A[::-1].copy()[::-1],
    "images": images(A),
    "frames": list(A),
    "tensors": list(first(A)),
    "a tuple": tuple(images(A)),
    "a batch of one": A[None],
    "a list": [A],
    "a list of images": [images(A)],
    "nested": [[A]],
    "beside a prompt without": [[], [A]],
}
TWO = {
    "list": [A, B],
    "tuple": (A, B),
    "batch": np.stack((A, B)),
    "tensors": torch.stack((first(A), first(B))),
    "images": [images(A), images(B)],
    "a list a prompt": [[A], [B]],
    "images in a list a prompt": [[images(A), images(B)]],
    "arrays and images": [[A], [images(B)]],
}


@pytest.mark.parametrize("form", ONE)
def test_one_video(form):
    assert torch.equal(pixels(ONE[form]), pixels(A))


@pytest.mark.parametrize("form", TWO)
def test_two_videos(form):
    assert torch.equal(pixels(TWO[form]), torch.cat((pixels(A), pixels(B))))


def test_paths_of_frames(tmp_path):
    for i, image in enumerate(images(A)):
        image.save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    assert torch.equal(pixels([[paths]]), pixels(A))
    assert torch.equal(pixels([[[str(path) for path in paths]] * 2]), torch.cat((pixels(A), pixels(A))))
    sampled = pixels([[paths]], do_sample_frames=True, num_frames=1)
    assert torch.equal(sampled, pixels(A[:1]))


def test_one_image_is_a_video_of_one_frame():
    for frame in (A[0], images(A)[0]):
        assert torch.equal(pixels(frame), pixels(A[:1]))


def test_a_layout_may_be_given():
    narrow = A[:, :3]  # [3, 3, 24, 3]: either layout
    assert torch.equal(pixels(narrow, input_data_format="channels_last"), pixels(first(narrow), do_resize=True))


@pytest.mark.parametrize(
    ("videos", "kwargs", "message"),
    [
        (None, {}, "videos holds a NoneType, None; a video is a path, an array or tensor"),
        ([A, None], {}, "videos holds a NoneType"),
        ({"video": A}, {}, "videos holds a dict"),
        ([], {}, "videos is an empty list|videos holds an empty list"),
        ([[], []], {}, "videos holds an empty list"),
        ([A[0, :, :, 0]], {}, r"videos holds an array of shape \(24, 24\) and dtype uint8"),
        ([A[None]], {}, "videos holds a list with a 5-D array"),
        (A[:0], {}, r"videos holds an array of shape \(0, 24, 24, 3\)"),
        (A.astype(str), {}, "and dtype <U"),
        (A > 9, {}, "and dtype bool"),
        ([A, A[0]], {}, "videos mixes frame and video in one list"),
        (["a.mp4", A], {}, "videos mixes path and video in one list"),
        ([["a.mp4"], [A]], {}, "videos mixes paths with decoded videos"),
        ([A[0], A[0, :9]], {}, r"the frames of a video must have one size, got \[\(9, 24, 3\), \(24, 24, 3\)\]"),
        ([images(A)[0].convert("L")], {}, "PIL image of mode 'L'"),
        ([A[..., :2]], {}, r"videos of shape \[\(3, 24, 24, 2\)\]: 1 or 3 channels"),
        ([A, first(B)], {}, r"videos mixes \[T, C, H, W\] and \[T, H, W, C\]"),
        (A, {"input_data_format": "channels_first"}, "input_data_format='channels_first' does not fit videos of shape"),
    ],
)
def test_what_is_no_video_is_refused(videos, kwargs, message):
    with pytest.raises(InputError, match=message):
        pixels(videos, **kwargs)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="channels_middle"):
        pixels(A, input_data_format="channels_middle")


def test_frames_of_different_sizes_in_files_are_refused(tmp_path):
    for i, image in enumerate((images(A)[0], images(A)[0].resize((9, 9)))):
        image.save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="must have one size"):
        pixels([[[tmp_path / "0.png", tmp_path / "1.png"]]])
