"""Convert original LLaVA-Video checkpoints, as the authors publish them, to the layout of Hugging Face.

The original has the layout of LLaVA-NeXT: Qwen2 under `model.`, and also `model.vision_tower`, `model.mm_projector`
and `model.image_newline`. All settings are in one flat config.json.
"""

import json
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    SiglipVisionConfig,
)

from adatp.checks.checkpoints import loading
from adatp.checks.values import shown
from adatp.errors import InputError
from adatp.models.llava_video import LlavaVideoConfig, LlavaVideoForConditionalGeneration, LlavaVideoProcessor
from adatp.models.siglip import NAME, VISION
from adatp.models.video_processor import VideoProcessor

Pool = Literal["average", "bilinear"]

CHAT_TEMPLATE = (  # the authors' "qwen_1_5"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# prefixes of tensor names: in the converted checkpoint, and in the original
_PREFIXES = {
    "model.language_model.": "model.",
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "model.image_newline": "model.image_newline",
    "lm_head.": "lm_head.",
}
# for each field: the value that it must have, and the value that the authors' code takes if it is missing or null
_FIXED: dict[str, tuple[Any, Any]] = {
    "architectures": (["LlavaQwenForCausalLM"], None),
    "mm_projector_type": ("mlp2x_gelu", "linear"),
    "mm_patch_merge_type": ("spatial_unpad", "flat"),
    "mm_newline_position": ("grid", "one_token"),
    "mm_spatial_pool_stride": (2, 2),
    "mm_resampler_type": (None, None),
    "mm_vision_select_layer": (-2, -2),
    "mm_vision_select_feature": ("patch", "patch"),
    "mm_use_im_start_end": (False, False),
    "mm_use_im_patch_token": (False, True),
    "add_faster_video": (False, False),
    "rope_scaling": (None, None),
}
_QWEN2 = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
_SHOWN = 10  # most tensor names in an error message


class _Tensor(NamedTuple):
    path: Path
    original: str
    name: str
    dtype: torch.dtype
    nbytes: int


def convert(
    source: Path | str,
    target: Path | str,
    *,
    pool: Pool | None = None,
    shard_bytes: int = 2 * 10**9,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Convert an original LLaVA-Video checkpoint for `AutoModelForImageTextToText.from_pretrained(target)`.

    Weights keep their dtype. They are converted shard by shard, and only one shard is in memory at a time. The target
    folder appears when it is complete; until then everything is in a hidden folder beside it.

    Args:
        source: folder of the original: config.json, safetensors and tokenizer. Its `mm_vision_tower` must be
            `google/siglip-so400m-patch14-384` or the path of a folder with another SigLIP's config.json.
        target: folder to write; it must be absent or empty.
        pool: how 2 x 2 features of a frame become one; None for the mode of config.json, usually
            "bilinear"; the authors' evaluation and demo overwrite it with "average".
        shard_bytes: most bytes in a shard, unless one tensor is larger.
        tell: called with the number of bytes of weights written so far, and the number of all bytes.

    Raises:
        FileNotFoundError: a file of `source` is missing.
        FileExistsError: `target` exists and is not an empty folder.
        InputError: the model does not support a setting; tensors are missing, unknown or of the wrong shape; a file is
            not a safetensors file; or the vocabulary has no room for `<image>` and `<video>`. All of these are found
            before any weight is written.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; name another target")
    original = _read_config(source)
    config = _config(source, original, pool)
    tensors = _tensors(source, config)
    config.dtype = tensors[0].dtype
    processor = _processor(source, original, config)
    generation = _generation_config(processor.tokenizer)

    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
        folder = Path(staging) / target.name
        folder.mkdir()
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        generation.save_pretrained(folder)
        _write(folder, tensors, shard_bytes, tell)
        folder.replace(target)


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{source} holds no config.json; give the folder of a downloaded LLaVA-Video checkpoint"
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object, got {shown(found)}")
    return found


def _config(source: Path, original: dict[str, Any], pool: Pool | None) -> LlavaVideoConfig:
    for field, (right, missing) in _FIXED.items():
        value = original.get(field)
        if (missing if value is None else value) != right:
            raise _wrong(original, field, json.dumps(right))
    aspect = original.get("image_aspect_ratio", "square")
    if not re.fullmatch(r"anyres_max_\d+", str(aspect)):
        raise _wrong(original, "image_aspect_ratio", '"anyres_max_N"')
    pinpoints = original.get("image_grid_pinpoints")
    if not isinstance(pinpoints, list) or not all(map(_is_size, pinpoints)):
        raise _wrong(original, "image_grid_pinpoints", "a list of [width, height]")
    mode = pool or original.get("mm_spatial_pool_mode")
    if pool is None and mode not in ("average", "bilinear"):
        raise _wrong(original, "mm_spatial_pool_mode", '"average" or "bilinear", unless pool is given')
    with loading("config.json of", str(source)):
        text = Qwen2Config(
            **{field: original[field] for field in _QWEN2 if field in original},
            rope_parameters={"rope_type": "default", "rope_theta": original.get("rope_theta", 10000.0)},
        )
    return LlavaVideoConfig(
        architectures=[LlavaVideoForConditionalGeneration.__name__],
        text_config=text,
        vision_config=_tower(original),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        image_grid_pinpoints=[[height, width] for width, height in pinpoints],
        projector_hidden_act="gelu",
        tie_word_embeddings=text.tie_word_embeddings,
        spatial_pool_mode=mode,
    )


def _is_size(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)


def _wrong(original: dict[str, Any], field: str, right: str) -> InputError:
    found = json.dumps(original[field]) if field in original else "missing"
    return InputError(f"config.json: {field} is {found}, which cannot be converted; it must be {right}")


def _tower(original: dict[str, Any]) -> SiglipVisionConfig:
    name = original.get("mm_vision_tower")
    if name == NAME:
        tower = SiglipVisionConfig(**VISION)
    elif isinstance(name, str) and name and Path(name).is_dir():
        with loading("configuration of mm_vision_tower", name):
            tower = SiglipVisionConfig.from_pretrained(name)
    else:
        raise _wrong(original, "mm_vision_tower", f"{json.dumps(NAME)} or the folder of another SigLIP")
    tower.num_hidden_layers -= 1  # the authors drop the last layer and the head, whatever mm_vision_select_layer says
    tower.vision_use_head = False
    return tower


def _weight_files(source: Path) -> list[Path]:
    index = source / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        files = _read_json(index).get("weight_map")
        if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
            raise InputError(f"{index} must hold a weight_map with the file of every tensor, got {shown(files)}")
        names = sorted(set(files.values()))
    absent = [name for name in names if not (source / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{source} lacks weights: {', '.join(absent)}")
    return [source / name for name in names]


def _tensors(source: Path, config: LlavaVideoConfig) -> list[_Tensor]:
    """Return the tensors that the weights' headers list, in their order; refuse them unless they fit the model."""
    files = _weight_files(source)
    with loading("config.json of", str(source)), torch.device("meta"):
        needed = LlavaVideoForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        del needed["lm_head.weight"]
    names = {_original_name(name): name for name in needed}
    tensors: list[_Tensor] = []
    unknown, misfits = [], []
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for original in file.keys():  # noqa: SIM118  it is not a dict
                    if original not in names:
                        unknown.append(original)
                        continue
                    name, part = names.pop(original), file.get_slice(original)
                    shape = needed[name].shape
                    if tuple(part.get_shape()) != shape:
                        misfits.append(f"{original} {part.get_shape()} instead of {list(shape)}")
                        continue
                    dtype = part[:0].dtype
                    tensors.append(_Tensor(path, original, name, dtype, shape.numel() * dtype.itemsize))
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    if config.tie_word_embeddings:
        unknown = [name for name in unknown if name != "lm_head.weight"]  # a copy of the embedding
    problems = {"missing": list(names), "unknown": unknown, "of the wrong shape": misfits}
    if any(problems.values()):
        told = (f"{len(some)} {what}: {_some(some)}" for what, some in problems.items() if some)
        raise InputError(f"the tensors do not fit config.json; {'; '.join(told)}")
    return tensors


def _original_name(name: str) -> str:
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix] + name.removeprefix(prefix)


def _some(names: list[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join(names[:_SHOWN] + more)


def _processor(source: Path, original: dict[str, Any], config: LlavaVideoConfig) -> LlavaVideoProcessor:
    """Build the processor of the checkpoint, and set the token ids of `config` to those of its tokenizer."""
    with loading("tokenizer of", str(source)):
        tokenizer = AutoTokenizer.from_pretrained(source, config=config.text_config, padding_side="left")
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise InputError(
            f"config.json: vocab_size is {rows}; the tokenizer needs {len(tokenizer)} with <image> and <video>"
        )
    config.image_token_index, config.video_token_index = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    vision = config.vision_config
    pixels: dict[str, Any] = {
        "size": {"height": vision.image_size, "width": vision.image_size},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return LlavaVideoProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(image_grid_pinpoints=config.image_grid_pinpoints, **pixels),
        tokenizer=tokenizer,
        video_processor=VideoProcessor(**pixels),
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        vision_aspect_ratio=config.vision_aspect_ratio,
        chat_template=CHAT_TEMPLATE,
        spatial_pool_mode=config.spatial_pool_mode,
        add_time_instruction=original.get("add_time_instruction", False),
    )


def _generation_config(tokenizer: Any) -> GenerationConfig:
    vocabulary = tokenizer.get_vocab()
    absent = [token for token in ("<|im_end|>", "<|endoftext|>") if token not in vocabulary]
    if absent:
        raise InputError(f"the tokenizer must be that of Qwen2; it has no {' and no '.join(absent)}")
    end, pad = vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]
    return GenerationConfig(eos_token_id=[end, pad], pad_token_id=pad)


def _write(folder: Path, tensors: list[_Tensor], shard_bytes: int, tell: Callable[[int, int], None]) -> None:
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        tell(done, total)
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(_read(shard), folder / file, metadata={"format": "pt"})
        where |= {tensor.name: file for tensor in shard}
        done += sum(tensor.nbytes for tensor in shard)
    tell(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _read(shard: list[_Tensor]) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}
    for path, tensors in groupby(shard, key=lambda tensor: tensor.path):
        with safe_open(path, "pt") as file:
            values |= {tensor.name: file.get_tensor(tensor.original) for tensor in tensors}
    return values
