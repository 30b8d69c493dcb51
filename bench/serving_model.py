"""A LLaVA-OneVision with random weights, on disk, for a server."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipModel

from adatp.small.untrained import byte_tokenizer, load_untrained


def save_untrained(folder: Path, **sizes: Any) -> tuple[str, str]:
    """Save a model of these sizes (see `load_untrained`) and a SigLIP that continues its tower; return their paths."""
    model, siglip = folder / "model", folder / "siglip"
    untrained = load_untrained(**sizes)
    untrained.model.generation_config.suppress_tokens = None  # vLLM does not know it
    untrained.model.save_pretrained(model)
    _name_as_published(model / "model.safetensors")
    untrained.processor.save_pretrained(model)
    tower = untrained.model.config.vision_config
    vision = {**tower.to_dict(), "num_hidden_layers": tower.num_hidden_layers + 1, "vision_use_head": True}
    text = untrained.relevance.text_model.config.to_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).save_pretrained(siglip)
    byte_tokenizer("right").save_pretrained(siglip)
    return str(model), str(siglip)


def _name_as_published(weights: Path) -> None:
    """Give the weights of the tower the names that they have in the published checkpoints.

    transformers saves others from version 5 on, which vLLM's own model does not know.
    """
    tower = "vision_tower."
    renamed = {
        f"{tower}vision_model.{name.removeprefix(tower)}" if name.startswith(tower) else name: value
        for name, value in load_file(weights).items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})
