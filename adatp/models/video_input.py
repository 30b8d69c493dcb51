"""What may be given to a processor as videos, and what is refused before Hugging Face's functions see it."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, load_image

from adatp.errors import InputError

_TAKEN = (
    "a video is a path, an array or tensor [T, H, W, C] or [T, C, H, W], or a list of frames (PIL images, arrays, or "
    "paths of images)"
)


def check_videos(videos: Any) -> Any:
    """Check what is given as videos, and return it as lists, strings, arrays, tensors and PIL images.

    Hugging Face's functions leave aside, without a word, what they do not know in a list. Lists that are empty hold no
    video and are left out.

    Raises:
        InputError: something is not a video, or a list mixes videos of several kinds or frames of several sizes.
    """
    if isinstance(videos, os.PathLike):
        return os.fspath(videos)
    if not isinstance(videos, list | tuple):
        _kind(videos)
        return videos
    checked = [check_videos(video) for video in videos if not (isinstance(video, list | tuple) and not video)]
    kinds = {_kind(video) for video in checked}
    if not kinds or "batch" in kinds:
        raise InputError(f"videos holds {'a list with a 5-D array' if kinds else 'an empty list'}; {_TAKEN}")
    if len(kinds) > 1:
        raise InputError(f"videos mixes {' and '.join(sorted(kinds))} in one list; {_TAKEN}")
    if kinds == {"frame"}:
        _check_sizes(checked)
    return checked


def _kind(video: Any) -> str:
    """Name what one entry of `videos` is."""
    if isinstance(video, str):
        return "path"
    if isinstance(video, list):
        return "list"
    if isinstance(video, Image.Image):
        if video.mode != "RGB":
            raise InputError(f"videos holds a PIL image of mode {video.mode!r}: give image.convert('RGB')")
        return "frame"
    if not isinstance(video, np.ndarray | Tensor):
        raise InputError(f"videos holds a {type(video).__name__}, {video!r}; {_TAKEN}")
    kind = {3: "frame", 4: "video", 5: "batch"}.get(video.ndim)
    if kind is None or 0 in video.shape or (isinstance(video, np.ndarray) and video.dtype.kind not in "uif"):
        raise InputError(f"videos holds an array of shape {tuple(video.shape)} and dtype {video.dtype}; {_TAKEN}")
    return kind


def _check_sizes(frames: list[Any]) -> None:
    """Raise InputError if the frames of a video, PIL images or arrays, have several shapes."""
    shapes = {tuple(np.shape(frame)) for frame in frames}
    if len(shapes) > 1:
        raise InputError(f"the frames of a video must have one size, got {sorted(shapes)}")


def as_array(video: Any) -> Any:
    """Return a video, also a list of frames or of paths of images, as an array that torch can read, or a tensor."""
    if isinstance(video, list):
        frames = [load_image(frame) if isinstance(frame, str) else frame for frame in video]
        _check_sizes(frames)
        video = np.stack(frames)
    return np.ascontiguousarray(video) if isinstance(video, np.ndarray) else video


def layout_of(videos: list[Any], given: str | None) -> ChannelDimension:
    """Return the layout of the videos, `[T, C, H, W]` or `[T, H, W, C]`: the given one, or what their shapes say.

    Raises:
        InputError: the shapes say nothing, or differ, or are not those of the given layout.
    """
    if given is not None:
        layout = ChannelDimension(given)
        if any(video.shape[1 if layout is ChannelDimension.FIRST else -1] not in (1, 3, 4) for video in videos):
            raise InputError(
                f"input_data_format={layout.value!r} does not fit videos of shape {[tuple(v.shape) for v in videos]}: "
                "they have 1, 3 or 4 channels"
            )
        return layout
    try:
        layouts = {infer_channel_dimension_format(video) for video in videos}
    except ValueError as error:
        shapes = [tuple(video.shape) for video in videos]
        raise InputError(f"videos of shape {shapes}: 1 or 3 channels, or input_data_format with 4; {_TAKEN}") from error
    if len(layouts) > 1:
        raise InputError("videos mixes [T, C, H, W] and [T, H, W, C]: give all of a call in one layout")
    return layouts.pop()


def check_metadata(videos: list[Any], metadata: Any, sampled: bool) -> None:
    """Raise InputError if there is not one entry of `video_metadata` per video, or sampled videos are not whole."""
    if metadata is None:
        return
    nested = [metadata] if isinstance(metadata, Mapping) else metadata
    entries = [entry for given in nested for entry in (given if isinstance(given, list) else [given])]
    if len(entries) != len(videos):
        raise InputError(f"video_metadata has {len(entries)} entries for {len(videos)} videos: give one per video")
    for video, entry in zip(videos, entries, strict=True):
        if sampled and entry["total_num_frames"] != len(video):
            raise InputError(
                f"do_sample_frames=True needs whole videos: video_metadata says {entry['total_num_frames']} frames of "
                f"one that has {len(video)}"
            )
