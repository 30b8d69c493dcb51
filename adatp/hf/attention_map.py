"""The attention from a prompt's text to every visual token, in every layer of the unpruned model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from adatp.engine.scoring import Scoring
from adatp.errors import Unsupported
from adatp.hf.support import is_applied
from adatp.hf.tensor_parallel import average_over_ranks
from adatp.layout import PromptLayout, Videos, VideoSize
from adatp.models import family_of, tokenizer_of
from adatp.models.family import Family


@dataclass(frozen=True, eq=False)
class AttentionMap(Videos):
    """The scores s^l of section 3.1 for a whole prompt.

    Attributes:
        scores: `[N, n, c]` float32 on the host: the mean, over heads and text rows, of the softmax probability that
            decoder layer l gives to each token of each frame.
        videos: size of each video; all have one grid.
    """

    scores: Tensor
    videos: tuple[VideoSize, ...]


@torch.no_grad()
def visual_attention(model: nn.Module, inputs: Mapping[str, Any], processor: Any = None) -> AttentionMap:
    """Run the prompt once through the unpruned model, and score every visual token in every layer.

    With every attention implementation, no attention matrix is computed for the scores. The keys of a layer are freed
    after the layer.

    Args:
        model: a Hugging Face Video LLM of a supported family. It is not changed; its hooks are removed at the end.
        inputs: output of the model's processor for one prompt with one or several videos, on the model's device.
        processor: the model's processor or tokenizer; only needed for models that see the frames of a video as images.

    Raises:
        TypeError: the model's family is not supported.
        InputError: the videos have different grids.
        Unsupported: `inputs` is not one prompt with a video and without padding; or the model is being pruned, has
            sliding-window layers, or its attention overflows.
    """
    family = family_of(model, tokenizer_of(processor))
    if is_applied(model):
        raise Unsupported("model must be unpruned: call remove() on the handle that apply() returned")
    if family.has_sliding_windows:
        raise Unsupported("model must attend to all tokens in every layer, but has sliding-window layers")
    layout = _layout(family, inputs)
    watch = _Watch(family, layout)
    handles = watch.install()
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    scores = torch.stack(watch.scores).view(-1, layout.frames, layout.tokens_per_frame)
    broken = [layer for layer, finite in enumerate(scores.isfinite().all(2).all(1).tolist()) if not finite]
    if broken:
        raise Unsupported(
            f"the attention of decoder layer {broken[0]} is not finite in {family.decoder.dtype}; "
            "load the model in bfloat16 or float32"
        )
    return AttentionMap(scores, layout.videos)


def _layout(family: Family, inputs: Mapping[str, Any]) -> PromptLayout:
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if len(ids) != 1:
        raise Unsupported(f"inputs must hold one prompt, got a batch of {len(ids)}")
    if mask is not None and not bool(mask.all()):
        raise Unsupported(f"inputs must have no padding, but {int((mask == 0).sum())} tokens are masked out")
    layout = family.layout(ids[0].cpu(), family.sizes(inputs))
    if layout is None:
        raise Unsupported("inputs must hold a prompt with a video, got one without")
    layout.check()
    _ = layout.grid  # raises an error if there are several
    return layout


class _Watch:
    """Scores the visual tokens of a prompt as it passes through the decoder.

    Attributes:
        scores: `[n * c]` float32 on the host, one for each layer that has run.
    """

    def __init__(self, family: Family, layout: PromptLayout) -> None:
        self.scores: list[Tensor] = []
        self._family = family
        self._rows = layout.rows
        visual = layout.visual
        self._columns = (int(visual[0]), int(visual[-1]) + 1)
        self._visual = visual - visual[0]
        self._scoring = Scoring(average=average_over_ranks(family.body))
        self._cache = DynamicCache()
        self._tables: tuple[Tensor, Tensor] | None = None
        self._query: Tensor | None = None

    def install(self) -> list[Any]:
        """Register the hooks, and return their handles."""
        handles = []
        for index, layer in enumerate(self._family.decoder.layers):
            handles.append(layer.register_forward_pre_hook(self._before_layer, with_kwargs=True))
            projection = self._family.query_projection(layer)
            handles.append(projection.register_forward_hook(self._after_projection(layer)))
            handles.append(layer.register_forward_hook(self._after_layer(index)))
        return handles

    def _before_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._tables, self._query = kwargs["position_embeddings"], None
        self._cache = DynamicCache()  # the layer stores its keys here
        return args, {**kwargs, "past_key_values": self._cache}

    def _after_projection(self, layer: nn.Module) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], projected: Tensor) -> None:
            assert self._tables is not None
            cos, sin = (table.index_select(1, self._rows.to(table.device)) for table in self._tables)
            self._query = self._family.queries(layer, projected, cos, sin, rows=self._rows)

        return hook

    def _after_layer(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._query is None:
                raise RuntimeError(f"the query projection of decoder layer {index} did not run as a module")
            key = self._cache.layers[index].keys
            query, rows = self._query.to(key.device), self._rows.to(key.device)[None]
            scores = self._scoring(query, key, rows, self._columns, scale=self._family.scale(module))
            self.scores.append(scores[0].cpu()[self._visual])

        return hook
