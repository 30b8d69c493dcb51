"""Reads prompts in vLLM's processes, where no model of transformers is."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from adatp.layout import PromptLayout
from adatp.models import families
from adatp.models.family import Family


def family_of_config(vllm_config: Any, tokenizer: Any = None) -> Family:
    """Return the family of the model that a server was started with."""
    config = vllm_config.model_config.hf_config
    return families()[config.model_type].of_config(config, tokenizer)


def layout_of(family: Family, request: Any) -> PromptLayout | None:
    """Find the videos in the prompt of a request; return None if there is none.

    Args:
        family: the family of the model.
        request: vLLM's request, or its state in a worker.

    Raises:
        Unsupported: the prompt cannot be pruned.
    """
    features = [feature.data for feature in request.mm_features]
    told = {
        name: torch.stack([data[name].data for data in features if name in data])
        for name in family.size_arguments
        if any(name in data for data in features)
    }
    layout = family.layout(torch.tensor(request.prompt_token_ids), family.sizes(told))
    if layout is not None:
        layout.check()
    return layout


class Layouts:
    """Remembers the layouts of prompts for as long as their requests live.

    Args:
        family: the family of the model.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._known: WeakKeyDictionary[Any, PromptLayout | None] = WeakKeyDictionary()

    def __getitem__(self, request: Any) -> PromptLayout | None:
        """Return the layout of a request's prompt; None if it has no video."""
        if request not in self._known:
            self._known[request] = layout_of(self._family, request) if request.mm_features else None
        return self._known[request]
