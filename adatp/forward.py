"""One forward of a batch with videos in its prompts: each prompt by itself, then put together again.

A prompt runs without padding, whatever it is batched with: nothing is computed for padding, no mask is needed that
flash attention could not take, and what it keeps is what it would keep alone. Decoding is batched again, over caches
whose layers are as long as each layer's longest prompt.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from adatp.batch import Batch
from adatp.cache import fill_layer
from adatp.config import AdaTPConfig
from adatp.models.family import Family
from adatp.padding import stack_left
from adatp.prefill import Prefill, PromptLayout
from adatp.prompt import PrunedPrompt
from adatp.relevance import NoRelevanceWarning, Relevance, similarity
from adatp.report import PruningReport, Sample, build_sample, whole_sample
from adatp_kernels.dispatch import Impl


class PrunedForward:
    """The prompts of one forward.

    Args:
        family: the model.
        config: hyperparameters.
        batch: the prompts; one without a video is left alone.
        features: what `get_video_features` returned, or None if the forward will call it itself and set it here.
        questions: one a prompt, None where there is none; or None if there is nothing to compare them with.
        relevance: the aligned SigLIP, or None.
        impl: implementation of the three operations.
        average: see `adatp.prefill.Prefill`.

    Attributes:
        prompt: the prompt that is in the decoder; None outside, and for one without a video.
    """

    def __init__(
        self,
        family: Family,
        config: AdaTPConfig,
        batch: Batch,
        features: Any,
        questions: Sequence[str | None] | None,
        relevance: Relevance | None,
        impl: Impl,
        average: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.features = features
        self.prompt: PrunedPrompt | None = None
        self._family = family
        self._config = config
        self._batch = batch
        self._questions = questions
        self._relevance = relevance
        self._impl = impl
        self._average = average
        self._notes: list[str] = []
        self._samples: list[Sample] = []

    def decode(self, decoder: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run the language model on each prompt.

        Args:
            decoder: the language model's forward.
            kwargs: what it is called with.

        Returns:
            What it would return for the batch: hidden states and attentions are padded on the left to the longest
            prompt of each layer.
        """
        kwargs = dict(kwargs)
        embeds, cache = kwargs.pop("inputs_embeds"), kwargs.pop("past_key_values", None)
        positions = kwargs.pop("position_ids", None)
        kwargs.pop("attention_mask", None)
        length = embeds.shape[1]
        if positions is None:
            positions = torch.arange(length, device=embeds.device)[None]
        elif positions.ndim != 2:
            raise ValueError(f"position_ids must be [B, L] or [1, L] to be pruned, got {tuple(positions.shape)}")
        config = self._family.decoder.config
        use_cache = kwargs.pop("use_cache", None)
        use_cache = cache is not None or (config.use_cache if use_cache is None else use_cache)

        outputs, caches = [], []
        for b, prefill in enumerate(self._prefills()):
            begin = self._batch.padding[b]
            own = DynamicCache(config=config) if use_cache else None
            self.prompt = None if prefill is None else PrunedPrompt(self._family, prefill)
            output = decoder(
                **kwargs,
                inputs_embeds=embeds[b : b + 1, begin:],
                position_ids=positions[b if len(positions) > 1 else 0, begin:][None],
                attention_mask=None,
                past_key_values=own,
                use_cache=use_cache,
            )
            self.prompt = None
            outputs.append(output)
            caches.append(own)
            self._samples.append(self._sample(b, prefill, length - begin - self._batch.draft))
        if use_cache:
            cache = DynamicCache(config=config) if cache is None else cache
            self._fill(cache, caches, length)
        return _join(outputs, cache)

    def _fill(self, cache: Cache, caches: list[Cache], length: int) -> None:
        """Move what the prompts have left in `caches` into the caller's `cache`, a layer at a time."""
        for index in range(len(caches[0].layers)):
            parts = []
            for own in caches:
                layer = own.layers[index]
                parts.append((layer.keys, layer.values))
                layer.keys = layer.values = None  # so that at no time all layers are there twice
            fill_layer(cache, index, parts, length, self._batch.draft, pruned=index >= self._config.first)

    @torch.no_grad()
    def _prefills(self) -> Iterator[Prefill | None]:
        """The cuts of each prompt: segments and relevance, from the vision tower's hidden states."""
        if self.features is None:
            raise ValueError(
                "the prompt holds a video but no video features came with it: pass pixel_values_videos, or what "
                "get_video_features returned as mm_encoder_outputs, and the whole prompt at once (chunked prefill "
                "cannot be pruned). An assistant model is handed no video by transformers: apply AdaTP to the assisted "
                "model only"
            )
        states = self._family.tower_states(self.features)  # [frames of all videos, patches, D]
        questions = self._comparable()
        text = None
        if self._relevance is None:
            frames = states.float().mean(1)
        else:
            relevance = self._relevance.to(states.device)
            asked = None if questions is None else [question or "" for question in questions]
            frames, text = relevance(states, asked)  # [frames, F], [B, F]
        layers = len(self._family.decoder.layers)
        for b, (layout, place) in enumerate(
            zip(self._batch.layouts, _owners(len(frames), self._batch.layouts), strict=True)
        ):
            if layout is None:
                yield None
                continue
            features, similar = frames[place : place + layout.frames], None
            if text is not None and questions is not None and questions[b]:
                similar = similarity(features[None], text[b : b + 1])[0]
            yield Prefill(self._config, layers, layout, features, similar, self._impl, self._average)

    def _comparable(self) -> Sequence[str | None] | None:
        """The questions that frames can be compared with; notes where there is none."""
        if not self._config.global_debias:
            return None
        if self._relevance is None or self._questions is None:
            self._notes.append("no aligned text encoder: every segment gets the same ratio (no global debiasing)")
            return None
        for b, (question, layout) in enumerate(zip(self._questions, self._batch.layouts, strict=True)):
            if layout is not None and not question:
                note = f"sample {b} has no question: each of its segments gets the same ratio; pass question=..."
                self._notes.append(note)
                warnings.warn(note, NoRelevanceWarning, stacklevel=2)
        return self._questions if any(self._questions) else None

    def _sample(self, b: int, prefill: Prefill | None, length: int) -> Sample:
        layers = len(self._family.decoder.layers)
        if prefill is None:
            return whole_sample(layers, length)
        question = self._questions[b] if prefill.compared and self._questions is not None else None
        return build_sample(prefill, layers, length, question)

    def report(self) -> PruningReport:
        """What was kept, once all prompts have run. Reads nothing from the device."""
        decoder = self._family.decoder
        blind = [b for b, sample in enumerate(self._samples) if sample.frames and not sample.kept[-1]]
        notes = [*self._notes, *(f"sample {b} has no visual token left: p is too small for its video" for b in blind)]
        return PruningReport(True, None, tuple(notes), tuple(self._samples), decoder.config, decoder.dtype.itemsize)


def _owners(frames: int, layouts: Sequence[PromptLayout | None]) -> list[int]:
    """Where each prompt's frames begin among those that were encoded.

    Copies of a prompt, as beams are, lie side by side, and may share what was encoded once.
    """
    wanted = [0 if layout is None else layout.frames for layout in layouts]
    copies, rest = divmod(sum(wanted), frames)
    if rest or copies == 0:
        raise ValueError(f"the prompts hold videos of {sum(wanted)} frames, but {frames} frames were encoded")
    begins, begin = [], 0
    for b, count in enumerate(wanted):
        begins.append(begin)
        begin += count if b % copies == copies - 1 else 0
    return begins


def _join(outputs: list[Any], cache: Cache | None) -> Any:
    """The outputs of single prompts as that of a batch."""
    joined = outputs[0]
    joined.past_key_values = cache
    joined.last_hidden_state = stack_left([output.last_hidden_state for output in outputs])
    for name, square in (("hidden_states", False), ("attentions", True)):
        if getattr(joined, name, None) is not None:
            layers = zip(*(getattr(output, name) for output in outputs), strict=True)
            setattr(joined, name, tuple(stack_left(parts, square=square) for parts in layers))
    return joined
