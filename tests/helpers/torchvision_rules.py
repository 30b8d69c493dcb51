"""What transformers' video processor does with torchvision, written out in torch from their code.

From transformers 5.23 `video_processing_utils.py` and `image_processing_backends.py`, and torchvision 0.28
`transforms/v2/functional` (`resize_image`, `normalize_image`, `center_crop`, `grayscale_to_rgb_image`).
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize(video: Tensor, size: tuple[int, int], mode: str = "bicubic", twice: bool = True) -> Tensor:
    """`[T, C, H, W]` as `resize_image`; uint8 rounded after each pass (`twice`, on a CPU) or at the end (on a GPU)."""
    if video.shape[-2:] == size:
        return video
    smooth = mode != "nearest-exact"
    known = [torch.float32, torch.float64, *([torch.uint8] if twice or not smooth else [])]
    cast = video.dtype not in known
    pixels = video.to(torch.float32) if cast else video
    pixels = interpolate(pixels, size=size, mode=mode, align_corners=False if smooth else None, antialias=smooth)
    if cast:
        if mode in ("bicubic", "lanczos") and video.dtype == torch.uint8:
            pixels = pixels.clamp(min=0, max=255)
        if not video.dtype.is_floating_point:
            pixels = pixels.round()
        pixels = pixels.to(video.dtype)
    return pixels


def center_crop(video: Tensor, height: int, width: int) -> Tensor:
    """`[T, C, H, W]` with a border of zeros where it is too small, then cut, as `TorchvisionBackend.center_crop`."""
    h, w = video.shape[-2:]
    left, top = max(0, (width - w) // 2), max(0, (height - h) // 2)
    right, bottom = max(0, (width - w + 1) // 2), max(0, (height - h + 1) // 2)
    padded = video.new_zeros(*video.shape[:-2], h + top + bottom, w + left + right)
    padded[..., top : top + h, left : left + w] = video
    h, w = padded.shape[-2:]
    y, x = int((h - height) / 2.0), int((w - width) / 2.0)
    return padded[..., y : y + height, x : x + width]


def to_rgb(video: Tensor) -> Tensor:
    """`[T, C, H, W]` as `BaseVideoProcessor.convert_to_rgb`."""
    if video.shape[1] == 1:
        return video.repeat(1, 3, 1, 1)
    if video.shape[1] == 3 or not (video[:, 3] < 255).any():
        return video[:, :3]
    alpha = video[:, 3] / 255.0
    return (1 - alpha[:, None]) * 255 + alpha[:, None] * video[:, :3]


def normalize(video: Tensor, mean=CLIP_MEAN, std=CLIP_STD, factor: float | None = 1 / 255) -> Tensor:
    """`[T, 3, H, W]` fp32 as `rescale_and_normalize`: the factor goes into mean and deviation; None is no factor."""
    scale = 1.0 if factor is None else 1.0 / factor
    mean, std = (torch.as_tensor(values) * scale for values in (mean, std))
    return (video.to(torch.float32) - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
