"""LLaVA-OneVision's video processor for machines without torchvision, which Hugging Face's own needs.

Hugging Face's class does the work. Only what it leaves to torchvision is done here in torch: reading files and frames,
channels, resize, crop and normalisation.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import BatchFeature
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor
from transformers.video_utils import VideoMetadata, make_batched_videos

from adatp.errors import InputError
from adatp.models.video_input import as_array, check_metadata, check_videos, layout_of
from adatp.video import SHORTEST_EDGE, sample_frames

FRAMES = 32  # of a file, unless `do_sample_frames` asks for others

# what a keyword belongs to: it has no effect while the other is off
_SWITCHES = {
    "num_frames": "do_sample_frames",
    "fps": "do_sample_frames",
    "size": "do_resize",
    "resample": "do_resize",
    "crop_size": "do_center_crop",
    "rescale_factor": "do_rescale",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}
_MODES = {
    PILImageResampling.NEAREST: "nearest-exact",
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
    PILImageResampling.LANCZOS: "lanczos",
}


class VideoProcessor(LlavaOnevisionVideoProcessor):
    """LLaVA-OneVision's video processor in torch, with the arguments and the defaults of Hugging Face's.

    It resizes as torchvision does on a GPU: in fp32, rounded once. On a CPU torchvision rounds uint8 frames after each
    of the two passes, across and down: about one value in seven is then another by one of 255 levels.
    """

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Convert videos to `pixel_values_videos`, `[V, T, C, H, W]` float32.

        Args:
            videos: one video or a list of videos. A video is a path, an array or tensor `[T, H, W, C]` or
                `[T, C, H, W]`, or a list of frames: PIL images, arrays, or paths (in a list of lists of lists).
            **kwargs: those of Hugging Face's `VideosKwargs`. `return_tensors` is "pt" by default. Of a file, 32
                frames are decoded, uniform in time; with `do_sample_frames=True` as many as `num_frames` or `fps` say.

        Raises:
            InputError: a video is none of these, or the videos have different lengths; a keyword has no effect.
            VideoError: a file cannot be decoded.
        """
        self._refuse_what_has_no_effect(kwargs)
        kwargs.setdefault("return_tensors", "pt")
        batch = make_batched_videos(check_videos(videos))
        files = [isinstance(video, str) for video in batch]
        if any(files):
            if not all(files):
                raise InputError("videos mixes paths with decoded videos: give all of a call as paths, or none")
            return super().preprocess(**self._decode(batch, kwargs))
        batch = [as_array(video) for video in batch]
        kwargs["input_data_format"] = layout_of(batch, kwargs.get("input_data_format"))
        check_metadata(batch, kwargs.get("video_metadata"), self._setting("do_sample_frames", kwargs))
        return super().preprocess(batch, **kwargs)

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **_: Any
    ) -> np.ndarray:
        """Choose frames of a decoded video: the indices `i * total // n`, `[n]` int, as Hugging Face's class does.

        Args:
            metadata: the video's total number of frames and, for `fps`, its own rate.
            num_frames: n.
            fps: frames a second, instead of `num_frames`.

        Raises:
            InputError: both or neither is given, the video's rate is not known, or n is 0 or more than there are.
        """
        if (num_frames is None) == (fps is None):
            raise InputError(
                f"do_sample_frames=True needs either num_frames or fps; got num_frames={num_frames} and fps={fps}"
            )
        total = metadata.total_num_frames
        if num_frames is None:
            if metadata.fps is None:
                raise InputError(f"fps={fps} needs the video's own rate: give video_metadata with fps, or num_frames")
            num_frames = max(1, int(total / metadata.fps * fps))
        if not 1 <= num_frames <= total:
            raise InputError(f"num_frames={num_frames} (given, or as fps={fps} makes it) is not in 1 ... {total}")
        indices: np.ndarray = np.arange(num_frames) * total // num_frames
        return indices

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in a form that Hugging Face's own video processor of this model can read."""
        return {**super().to_dict(), "video_processor_type": "LlavaOnevisionVideoProcessor"}

    def convert_to_rgb(self, video: Tensor) -> Tensor:
        """Convert `[..., C, H, W]` to three channels: repeat grey, put a transparent picture on white."""
        if video.shape[-3] == 1:
            return video.expand(*video.shape[:-3], 3, *video.shape[-2:])
        if video.shape[-3] == 3 or bool((video[..., 3, :, :] == 255).all()):
            return video[..., :3, :, :]
        alpha = video[..., 3:4, :, :] / 255.0
        return (1 - alpha) * 255 + alpha * video[..., :3, :, :]

    def resize(self, image: Tensor, size: SizeDict, resample: int | None = None, **_: Any) -> Tensor:
        """Convert frames `[..., C, H, W]` of any dtype to another size, with antialiasing; bilinear by default.

        Raises:
            InputError: `size` does not give a size, or `resample` is a filter that tensors cannot be resized with.
        """
        mode = _MODES.get(PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample))
        if mode is None:
            known = ", ".join(f"{int(known)} ({known.name})" for known in _MODES)
            raise InputError(f"resample={resample} cannot be done on tensors; use one of {known}")
        shape, target = image.shape, _target(image, size)
        if shape[-2:] == target:
            return image
        # one by one: full-size frames in fp32 are large
        frames = [_resize(frame, target, mode) for frame in image.reshape(-1, 1, *shape[-3:])]
        return torch.cat(frames).reshape(*shape[:-2], *target)

    def center_crop(self, image: Tensor, size: SizeDict, **_: Any) -> Tensor:
        """Keep the middle of frames `[..., C, H, W]`, with zeros around frames that are smaller.

        Raises:
            InputError: `size` has no height and width.
        """
        if not (size.height and size.width):
            raise InputError(f"crop_size must have height and width, got {size}")
        borders = []
        for length, wanted in ((image.shape[-1], size.width), (image.shape[-2], size.height)):
            before = int((wanted - length) / 2)  # negative where pixels are cut off
            borders += [before, wanted - length - before]
        return pad(image, borders)

    def normalize(self, image: Tensor, mean: Any, std: Any, **_: Any) -> Tensor:
        """Compute `(image - mean) / std` of float frames `[..., C, H, W]`; both are a number, or one per channel.

        Raises:
            InputError: `std` holds a zero.
        """
        if 0 in np.ravel(std):
            raise InputError(f"image_std must have no zeros, got {std}")
        mean, std = (
            torch.as_tensor(values, dtype=image.dtype, device=image.device).reshape(-1, 1, 1) for values in (mean, std)
        )
        return image.sub(mean).div_(std)

    def rescale_and_normalize(
        self,
        images: Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
    ) -> Tensor:
        """Apply the factor to frames `[..., C, H, W]`, then the mean; Hugging Face's class does both at once.

        The two differ by rounding, near 1e-7. The results in `bench/results` were made in this order.
        """
        if do_rescale and do_normalize:
            images, do_rescale = images.to(torch.float32) / (1 / rescale_factor), False
        pixels: Tensor = super().rescale_and_normalize(
            images,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=image_mean,
            image_std=image_std,
        )
        return pixels

    def _preprocess(self, videos: list[Tensor], **kwargs: Any) -> BatchFeature:
        lengths = [len(video) for video in videos]
        if kwargs.get("return_tensors") is not None and len(set(lengths)) > 1:
            raise InputError(f"all videos of a batch must have the same length, got {lengths} frames")
        return super()._preprocess(videos, **kwargs)

    def _setting(self, name: str, kwargs: Mapping[str, Any]) -> Any:
        return kwargs.get(name, getattr(self, name, None))

    def _refuse_what_has_no_effect(self, kwargs: Mapping[str, Any]) -> None:
        """Raise InputError for a keyword of a call that Hugging Face's class takes and leaves aside."""
        for name, switch in _SWITCHES.items():
            if kwargs.get(name) is not None and not self._setting(switch, kwargs):
                raise InputError(f"{name}={kwargs[name]!r} has no effect without {switch}=True: give both, or neither")
        if kwargs.get("do_pad"):
            raise InputError("do_pad=True: videos are not padded; for images, give images_kwargs={'do_pad': True}")
        layout = kwargs.get("data_format")
        if layout is not None and layout != ChannelDimension.FIRST:
            raise InputError(f"data_format={layout!r}: videos are returned as 'channels_first' only")

    def _decode(self, paths: list[str], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Decode files, and return the arguments for their frames."""
        for name in ("video_metadata", "input_data_format"):
            if kwargs.get(name) is not None:
                raise InputError(f"{name} is for decoded videos: of files it is read from the file, leave it out")
        edge = _edge(self._setting("size", kwargs)) if self._setting("do_resize", kwargs) else None
        clips = []
        for path in paths:
            count = FRAMES
            if self._setting("do_sample_frames", kwargs):
                whole = VideoMetadata(**sample_frames(path, 1, shortest_edge=edge).metadata)
                rates = {name: self._setting(name, kwargs) for name in ("num_frames", "fps")}
                count = len(self.sample_frames(whole, **rates))
            clip = sample_frames(path, count, shortest_edge=edge)
            if clip.note:
                warnings.warn(f"{path}: {clip.note}", stacklevel=2)
            clips.append(clip)
        return {
            **kwargs,
            "videos": [clip.frames for clip in clips],
            "video_metadata": [VideoMetadata(**clip.metadata, video_backend="pyav") for clip in clips],
            "input_data_format": ChannelDimension.LAST,
            "do_sample_frames": False,
        }


def _edge(size: Any) -> int:
    """Return the pixels a side to decode, at least, for a size in any of Hugging Face's forms."""
    edges = vars(size) if isinstance(size, SizeDict) else size if isinstance(size, Mapping) else {"side": size}
    return max([SHORTEST_EDGE, *(int(edge) for edge in edges.values() if edge)])


def _target(image: Tensor, size: SizeDict) -> tuple[int, int]:
    """Return height and width that `size` gives to frames `[..., C, H, W]`, by Hugging Face's rules."""
    shape = tuple(image.shape[-2:])
    if size.shortest_edge and size.longest_edge:
        found = get_size_with_aspect_ratio(shape, size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        found = get_resize_output_image_size(
            image, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    elif size.max_height and size.max_width:
        found = get_image_size_for_max_height_width(shape, size.max_height, size.max_width)
    elif size.height and size.width:
        found = (size.height, size.width)
    else:
        raise InputError(f"size must have height and width, max_height and max_width, or shortest_edge; got {size}")
    height, width = found
    return int(height), int(width)


def _resize(frame: Tensor, target: tuple[int, int], mode: str) -> Tensor:
    """Resize `[1, C, H, W]` as torchvision does what it has no kernel of its own for."""
    smooth = mode != "nearest-exact"
    pixels = frame if frame.dtype in (torch.float32, torch.float64) else frame.float()
    pixels = interpolate(pixels, size=target, mode=mode, antialias=smooth, align_corners=False if smooth else None)
    if not frame.is_floating_point():
        pixels = pixels.round()
    return (pixels.clamp(0, 255) if frame.dtype == torch.uint8 else pixels).to(frame.dtype)
