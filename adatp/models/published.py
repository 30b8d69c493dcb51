"""The published sizes of the models, for what follows from shapes alone.

`published.json` holds them. A text configuration has what the cost of a decoder layer depends on. All else, such as the
vocabulary, is the default of the class. Two values need a word: the `intermediate_size` of Qwen2.5-VL-72B is 29696 in
the quantized checkpoints, which pad it; that of a mixture of experts belongs to no layer.

`token_side` is the side, in pixels, of the square of a frame that becomes one token. `temporal_patch` is the number of
the video's own frames in a frame of the decoder.
"""

import json
from importlib.resources import files
from typing import Any

from transformers import AutoConfig

from adatp.checks.values import integer, require, text
from adatp.layout import Grid, VideoSize

SIDE = 448  # pixels of a frame whose size is not given: a tile of InternVL's, and whole tokens of the others
_SIZES: dict[str, dict[str, Any]] = json.loads((files(__package__) / "published.json").read_text(encoding="utf-8"))
TEXT_CONFIGS: dict[str, dict[str, Any]] = {name: size["text_config"] for name, size in _SIZES.items()}


def published_text_config(name: str) -> Any:
    """Build the Hugging Face text configuration of a published size, one of `TEXT_CONFIGS`.

    Raises:
        InputError: there is no such size.
    """
    return AutoConfig.for_model(**_size(name)["text_config"])


def published_video(name: str, frames: int) -> VideoSize:
    """Return the size of a video, as a published size of the models sees it.

    Args:
        name: one of `TEXT_CONFIGS`.
        frames: number of the video's own frames, of `SIDE` x `SIDE` pixels.

    Raises:
        InputError: there is no such size, or `frames` is below 1.
    """
    size, frames = _size(name), integer("frames", frames, least=1)
    side, patch = SIDE // size["token_side"], size["temporal_patch"]
    return VideoSize(-(-frames // patch), Grid(side, side), patch)


def _size(name: str) -> dict[str, Any]:
    require(text("name", name) in _SIZES, "name", name, f"one of {', '.join(_SIZES)}")
    return _SIZES[name]
