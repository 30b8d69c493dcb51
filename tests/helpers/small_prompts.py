"""What the processors of the newer families would give `generate`, made by hand: they need torchvision."""

from typing import NamedTuple

import torch
from tokenizers import models, pre_tokenizers
from torch import Tensor

from adatp.small.assemble import byte_level, fast_tokenizer

_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_INTERNVL = ("<img>", "</img>", "<IMG_CONTEXT>")
_LLAVA = ("<image>", "<video>")  # added to every tokenizer of this package
_FRAMES, _MERGE, _PATCH, _TILE = 2, 2, 4, 8  # of a patch; patches a side of a token; pixels; patches a side of a tile


class Video(NamedTuple):
    """`t` temporal patches (InternVL: frames) of `h` x `w` patches before merging, `seconds` apart."""

    t: int
    h: int = 8
    w: int = 8
    seconds: float = 1.0


class Image(NamedTuple):
    """`h` x `w` patches before merging. InternVL cuts it into tiles of 8 x 8, and adds a thumbnail to several."""

    h: int = 8
    w: int = 8


Part = str | Video | Image


def make_tokenizer(kind: str):
    """A token a byte, then the special tokens of the family's chat template; pads on the left."""
    special = [*_CHAT, *(_INTERNVL if kind.startswith("internvl") else _QWEN)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *special, *_LLAVA])}
    tokenizer = fast_tokenizer(byte_level(models.BPE(vocab=vocabulary, merges=[])), "left")
    tokenizer.add_tokens(special, special_tokens=True)
    return tokenizer


def user_turn(*parts: Part) -> list[Part]:
    """A prompt that asks for an answer to one message."""
    return ["<|im_start|>user\n", *parts, "<|im_end|>\n<|im_start|>assistant\n"]


def make_inputs(kind: str, model, tokenizer, prompts: list[list[Part]], seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `generate` for a left-padded batch of prompts. Videos have shots of about three temporal patches.

    Raises:
        ValueError: if a video or an image has a size that the model does not take.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = ["".join(write(kind, part) for part in prompt) for prompt in prompts]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    visual = [part for prompt in prompts for part in prompt if not isinstance(part, str)]
    if kind.startswith("internvl"):
        side = _TILE * _PATCH
        inputs["pixel_values"] = torch.cat([_shots(_tiles(p), (3, side, side), generator) for p in visual])
        return inputs

    videos, images = ([p for p in visual if isinstance(p, wanted)] for wanted in (Video, Image))
    for found, pixels, grids in (
        (videos, "pixel_values_videos", "video_grid_thw"),
        (images, "pixel_values", "image_grid_thw"),
    ):
        if found:
            sizes = [(p.t if isinstance(p, Video) else 1, p.h, p.w) for p in found]
            rows = [_shots(t, (h * w, 3 * _FRAMES * _PATCH**2), generator).flatten(0, 1) for t, h, w in sizes]
            inputs |= {pixels: torch.cat(rows), grids: torch.tensor(sizes)}
    if videos and kind == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([video.seconds for video in videos])
    ids, config = inputs["input_ids"], model.config
    inputs["mm_token_type_ids"] = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
    return inputs


def write(kind: str, part: Part) -> str:
    """The text of a part: what the chat template and the processor write around and between placeholders."""
    if isinstance(part, str):
        return part
    if kind.startswith("internvl"):
        return _write_internvl(part)
    return _write_qwen3(part) if kind.startswith("qwen3") else _write_qwen2(part)


def _shots(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """`[count, *shape]` pixels: each three alike, but for a little noise."""
    shots = -(-count // 3)
    scenes = torch.randn(shots, *shape, generator=generator)
    scenes += torch.randn(shots, *(1,) * (len(shape) - 1), shape[-1], generator=generator)  # what a whole shot shares
    each = scenes.repeat_interleave(3, 0)[:count]
    return each + 0.05 * torch.randn(each.shape, generator=generator)


def _tokens(part: Video | Image) -> int:
    """Tokens of an image or of a temporal patch, which Qwen merges from 2 x 2 patches."""
    if part.h % _MERGE or part.w % _MERGE:
        raise ValueError(f"{part}: h and w must be multiples of {_MERGE}")
    return part.h * part.w // _MERGE**2


def _write_qwen2(part: Video | Image) -> str:
    if isinstance(part, Image):
        return f"<|vision_start|>{'<|image_pad|>' * _tokens(part)}<|vision_end|>"
    return f"<|vision_start|>{'<|video_pad|>' * part.t * _tokens(part)}<|vision_end|>"


def _write_qwen3(part: Video | Image) -> str:
    """As Qwen2; a video's placeholder becomes one a temporal patch, and the template's own marks stay around them."""
    if isinstance(part, Image):
        return _write_qwen2(part)
    first, last = (torch.arange(part.t)[:, None] + torch.tensor([0, 0.5])).mul(part.seconds).T.tolist()
    patches = (
        f"<{(a + b) / 2:.1f} seconds><|vision_start|>{'<|video_pad|>' * _tokens(part)}<|vision_end|>"
        for a, b in zip(first, last, strict=True)
    )
    return f"<|vision_start|>{''.join(patches)}<|vision_end|>"


def _tiles(part: Video | Image) -> int:
    if isinstance(part, Video):
        if (part.h, part.w) != (_TILE, _TILE):
            raise ValueError(f"{part}: InternVL's frames have {_TILE} x {_TILE} patches")
        return part.t
    if part.h % _TILE or part.w % _TILE:
        raise ValueError(f"{part}: h and w must be multiples of {_TILE}, the side of InternVL's tiles")
    tiles = part.h * part.w // _TILE**2
    return tiles + (tiles > 1)


def _write_internvl(part: Video | Image) -> str:
    """The frames' names come from the processor; the newline after them from the chat template."""
    context = "<IMG_CONTEXT>" * (_TILE // _MERGE) ** 2
    if isinstance(part, Image):
        return f"<img>{context * _tiles(part)}</img>\n"
    return "\n".join(f"Frame{i + 1}: <img>{context}</img>" for i in range(_tiles(part))) + "\n"
