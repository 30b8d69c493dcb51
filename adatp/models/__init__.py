"""The model families that can be pruned. Each is one module in this folder.

A new module that defines a subclass of `Family` adds a family; nothing else has to be edited.
"""

import importlib
import os
import pkgutil
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from adatp.checks.checkpoints import loading
from adatp.checks.values import name_or_path, require
from adatp.errors import InputTypeError, UnsupportedType
from adatp.models.family import Family

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def families() -> dict[str, type[Family]]:
    """Return every supported family by the `model_type` of its Hugging Face configuration."""
    return {family.model_type: family for family in _below(Family)}


def family_of(model: nn.Module, tokenizer: Any = None) -> Family:
    """Return the family of `model`, for this instance.

    Args:
        model: the model.
        tokenizer: its tokenizer. Some families find no video in a prompt without it, see `Family.needs_tokenizer`.

    Raises:
        UnsupportedType: the model is not of a supported family.
    """
    known = families()
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in known:
        raise UnsupportedType(
            f"cannot prune a {type(model).__name__} (model_type {model_type!r}){_hindrance(model)}; supported are: "
            f"{', '.join(sorted(known))}. A new family is one file in adatp/models/"
        )
    family = known[model_type](model)
    family.tokenizer = tokenizer
    return family


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor, or the processor if it is a tokenizer itself; None for None.

    Raises:
        InputTypeError: it is neither.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    is_tokenizer = isinstance(tokenizer, PreTrainedTokenizerBase | None)
    require(is_tokenizer, "processor", processor, "the model's processor or tokenizer, or None", InputTypeError)
    return tokenizer


def load_processor(checkpoint: str | os.PathLike[str]) -> Any:
    """Load the processor of a checkpoint of a supported family, by name or path, with or without torchvision.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        UnsupportedType: the checkpoint is not of a supported family.
    """
    checkpoint = name_or_path("checkpoint", checkpoint)
    with loading("checkpoint", checkpoint):
        model_type = AutoConfig.from_pretrained(checkpoint).model_type
    known = families()
    if model_type not in known:
        raise UnsupportedType(
            f"cannot load a processor for {checkpoint} (model_type {model_type!r}); supported are: "
            f"{', '.join(sorted(known))}"
        )
    with loading("processor of", checkpoint):
        return known[model_type].load_processor(checkpoint)


def _hindrance(model: nn.Module) -> str:
    """Say why a model of an unknown family is hard to prune, and what it would need; empty if nothing is known."""
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    kinds = set(getattr(text, "layer_types", None) or ())
    if type(model).__module__.startswith("transformers_modules"):
        return ": its code is not that of transformers, and may change; it would need a class in transformers"
    if kinds - {"full_attention", "sliding_attention"}:
        return (
            f": its decoder has {', '.join(sorted(kinds - {'full_attention'}))} layers, which keep no keys of single "
            "tokens; it would need cuts before layers with full attention only, and a cache for both kinds"
        )
    if "sliding_attention" in kinds:
        return (
            ": its decoder has sliding windows, which would span dropped tokens; it would need windows that count the "
            "original positions"
        )
    return ""


def _below(family: Any) -> list[type[Family]]:
    """Return all direct and indirect subclasses of `family`."""
    return [found for direct in family.__subclasses__() for found in (direct, *_below(direct))]
