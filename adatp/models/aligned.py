"""Finds the aligned SigLIP for a model, and loads it."""

import os
from typing import Any

import torch

from adatp.checks.values import name_or_path
from adatp.errors import CheckpointError, InputError, Unsupported
from adatp.models.family import Family
from adatp.relevance import Aligned, Relevance, SecondTower


def load_aligned(
    relevance: Aligned | str | os.PathLike[str] | None,
    family: Family,
    processor: Any,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Aligned | None, str]:
    """Load the SigLIP that compares a model's frames with the question.

    Args:
        relevance: see `adatp.apply`.
        family: the model, as its family.
        processor: the model's processor; only a second tower reads it.
        device, dtype: those of the model.

    Returns:
        The SigLIP and ""; or None and the reason why there is none.

    Raises:
        CheckpointError: the checkpoint that `relevance` names cannot be loaded.
        Unsupported: the SigLIP does not fit the model's vision tower.
    """
    if relevance is None:
        return None, "relevance=None"
    if family.tower_layers is None:
        return _second_tower(relevance, family, processor, device, dtype)
    if isinstance(relevance, SecondTower):
        raise Unsupported(
            "relevance is a SecondTower, but the model's own tower is a SigLIP: pass its checkpoint's name"
        )
    if isinstance(relevance, Relevance):
        loaded = relevance
    else:
        checkpoint = family.siglip if relevance == "auto" else name_or_path("relevance", relevance)
        if checkpoint is None:
            return None, "no SigLIP is known for this vision tower"
        try:
            loaded = Relevance.from_pretrained(checkpoint, family.tower_layers, device=device, dtype=dtype)
        except InputError as error:
            if relevance != "auto":
                raise CheckpointError(f"relevance: {error}") from error
            return None, str(error)
    if loaded.width != family.tower_width:
        raise Unsupported(
            f"relevance must continue the model's vision tower of width {family.tower_width}; "
            f"this SigLIP's width is {loaded.width}"
        )
    return loaded, ""


def _second_tower(
    relevance: Aligned | str | os.PathLike[str],
    family: Family,
    processor: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[SecondTower | None, str]:
    """Return a whole SigLIP for a model whose tower is none, and ""; or None and the reason why there is none."""
    if isinstance(relevance, SecondTower):
        return relevance, ""
    if isinstance(relevance, Relevance):
        raise Unsupported(
            f"relevance is a Relevance, which continues a SigLIP tower, but a {family.model_type} model has another: "
            "pass a SecondTower, or a SigLIP checkpoint's name or path"
        )
    if relevance == "auto":
        return None, f"the vision tower of a {family.model_type} model has no aligned text tower"
    checkpoint = name_or_path("relevance", relevance)
    try:
        return SecondTower.from_pretrained(checkpoint, processor, device=device, dtype=dtype), ""
    except CheckpointError as error:
        raise CheckpointError(f"relevance: {error}") from error
