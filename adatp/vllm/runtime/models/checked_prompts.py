"""Refuses prompts that cannot be pruned while vLLM processes them: the client is told, and the server goes on."""

from typing import Any

import torch
from vllm.multimodal.processing import ProcessorInputs

from adatp.errors import Unsupported
from adatp.layout import NO_TEXT
from adatp.models import families


class _WarmUp(ProcessorInputs):
    """vLLM's own prompt of nothing but placeholders, by which it measures its memory."""


class CheckedPrompts:
    """What a multimodal processor checks; it stands before one of vLLM's classes."""

    info: Any

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """Build the inputs by which vLLM measures its memory; they are not checked."""
        return _WarmUp(**vars(super().get_dummy_inputs(*args, **kwargs)))  # type: ignore[misc]

    def apply(self, inputs: ProcessorInputs, *args: Any, **kwargs: Any) -> Any:
        """Read a prompt and its videos; see vLLM.

        Raises:
            Unsupported: the prompt cannot be pruned.
        """
        processed = super().apply(inputs, *args, **kwargs)  # type: ignore[misc]
        if not isinstance(inputs, _WarmUp):
            self._check(processed)
        return processed

    def _check(self, processed: Any) -> None:
        config = self.info.ctx.model_config.hf_config
        family = families()[config.model_type].of_config(config)
        ids, videos = processed["prompt_token_ids"], processed["mm_placeholders"].get("video", ())
        if videos and max(place.offset + place.length for place in videos) == len(ids):
            raise Unsupported(NO_TEXT)
        # a video that vLLM remembers comes without its size
        layout = None if family.size_arguments else family.layout(torch.tensor(ids))
        if layout is not None:
            layout.check()
