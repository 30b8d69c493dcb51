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

from adatp.engine.compression import Compression
from adatp.engine.cuts import Prefill
from adatp.engine.samples import compressed_sample, cut_sample, whole_sample
from adatp.engine.sparse_decoding import SparseVisual
from adatp.hf.batch import Batch
from adatp.hf.cache import Shift, fill_layer
from adatp.hf.prompt_prefill import PrunedPrompt
from adatp.hf.side_stream import Beside
from adatp.methods.method import BeforeDecoder, BetweenLayers, Method
from adatp.models.family import Family
from adatp.relevance import NoRelevanceWarning, Questions, Relevance, similarity
from adatp.report import PruningReport, Sample
from adatp.tensors.padding import stack_left
from adatp.tensors.transfer import send
from adatp_kernels.dispatch import Impl
from adatp_kernels.score import score

Thinning = Prefill | Compression | None  # what happens to a prompt's videos


class PrunedForward:
    """The prompts of one forward.

    Args:
        family: the model.
        method: which tokens go, and where.
        flops: share of the unpruned prefill's FLOPs that each prompt's shall cost; None for the method's own settings.
        batch: the prompts; one without a video is left alone.
        features: what `get_video_features` returned, or None if the forward will call it itself and set it here.
        questions: one a prompt, None where there is none; or None if there is nothing to compare them with.
        asked_before: the questions' text features; None where nothing is compared.
        relevance: the aligned SigLIP, or None.
        impl: implementation of the three operations.
        average: see `adatp.engine.cuts.Prefill`.

    Attributes:
        prompt: the prompt that is in the decoder, if it is cut between the layers; else None.

    Raises:
        ValueError: `flops` is out of the method's reach on one of the prompts.
    """

    def __init__(
        self,
        family: Family,
        method: Method,
        flops: float | None,
        batch: Batch,
        features: Any,
        questions: Sequence[str | None] | None,
        asked_before: Questions | None,
        relevance: Relevance | None,
        impl: Impl,
        average: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.features = features
        self.prompt: PrunedPrompt | None = None
        self._family = family
        self._method = method
        self._flops = flops
        self._batch = batch
        self._questions = questions
        self._asked_before = asked_before
        self._relevance = relevance
        self._impl = impl
        self._average = average
        self._notes: list[str] = []
        self._samples: list[Sample] = []
        self._layers = len(family.decoder.layers)
        self._methods = [
            method
            if layout is None or flops is None
            else method.at_flops(flops, layout, self._layers, len(ids) - layout.visual_tokens)
            for ids, layout in zip(batch.ids, batch.layouts, strict=True)
        ]

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

        outputs, caches, slots = [], [], []
        beside = Beside(embeds.device)
        for b, thinning in enumerate(self._thinnings(beside)):
            begin = self._batch.padding[b]
            own = DynamicCache(config=config) if use_cache else None
            tokens = embeds[b : b + 1, begin:]
            if isinstance(thinning, Prefill) and thinning.cuts:
                self.prompt = PrunedPrompt(self._family, thinning, beside)
            elif isinstance(thinning, Compression):
                tokens = thinning.apply(tokens)
            output = decoder(
                **kwargs,
                inputs_embeds=tokens,
                position_ids=positions[b if len(positions) > 1 else 0, begin:][None, : tokens.shape[1]],
                attention_mask=None,
                past_key_values=own,
                use_cache=use_cache,
            )
            self.prompt = None
            outputs.append(output)
            caches.append(own)
            slots.append(thinning.slots() if isinstance(thinning, Compression) else torch.zeros(0, dtype=torch.bool))
            self._samples.append(self._sample(b, thinning, length - begin - self._batch.draft))
        if use_cache:
            cache = DynamicCache(config=config) if cache is None else cache
            self._fill(cache, caches, length)
            if self._method.decoding is not None:
                self._make_sparse(cache.layers[self._method.decoding.layer - 1], self._method.decoding.keep, slots)
        return _join(outputs, cache)

    def _fill(self, cache: Cache, caches: list[Cache], length: int) -> None:
        """Move what the prompts have left in `caches` into the caller's `cache`, a layer at a time."""
        first, shifts = self._method.first_pruned(self._layers), self._shifts()
        for index in range(len(caches[0].layers)):
            parts = []
            for own in caches:
                layer = own.layers[index]
                parts.append((layer.keys, layer.values))
                layer.keys = layer.values = None  # so that at no time all layers are there twice
            fill_layer(cache, index, parts, length, self._batch.draft, pruned=index >= first, shift=shifts[index])

    def _shifts(self) -> Sequence[Shift | None]:
        """How each layer shifts what follows the prompts; None where positions stay."""
        if not self._method.renumbers:
            return [None] * self._layers
        gone = [
            [sample.visual_tokens - sample.kept[layer] for sample in self._samples] for layer in range(self._layers)
        ]
        groups = {counts: group for group, counts in enumerate(dict.fromkeys(map(tuple, gone)))}
        device = self._family.decoder.device
        tokens = send(torch.tensor(gone), device)  # [N, B]
        return [Shift(tokens[layer], groups[tuple(counts)]) for layer, counts in enumerate(gone)]

    def _make_sparse(self, layer: Any, keep: float, slots: list[Tensor]) -> None:
        """Let a layer of the filled cache choose what the layers behind it attend to in decoding.

        As the authors count them, a prompt's visual tokens are all but the last.
        """
        device, width = layer.keys.device, layer.kept_length
        visual = torch.zeros(len(slots), width, dtype=torch.bool)
        for b, own in enumerate(slots):
            own = own[: len(own) - self._batch.draft]
            places = own.nonzero().flatten()[:-1] + width - len(own)
            visual[b, places] = True
        quota = torch.tensor([int(count * keep) for count in visual.sum(1).tolist()])
        layer.sparse = SparseVisual(send(visual, device), send(quota, device))

    @torch.no_grad()
    def _thinnings(self, beside: Beside) -> Iterator[Thinning]:
        """What happens to each prompt. The frames are compared and grouped `beside` its first layers."""
        if self.features is None:
            raise ValueError(
                "the prompt holds a video but no video features came with it: pass pixel_values_videos, or what "
                "get_video_features returned as mm_encoder_outputs, and the whole prompt at once (chunked prefill "
                "cannot be pruned). An assistant model is handed no video by transformers: apply the method to the "
                "assisted model only"
            )
        frames = self._frames(beside)
        questions, text = self._comparable(), None
        if questions is not None:
            assert self._asked_before is not None
            text = self._asked_before.features([question or "" for question in questions])
        saliency, keys = self._tower()
        encoded = frames if saliency is None else saliency
        places = [0] * len(self._methods) if encoded is None else self._places(len(encoded))
        for b, (method, layout, place) in enumerate(zip(self._methods, self._batch.layouts, places, strict=True)):
            if layout is None:
                yield None
                continue
            own = slice(place, place + layout.frames)
            if isinstance(method, BeforeDecoder):
                yield Compression(
                    method,
                    layout,
                    None if saliency is None else saliency[own],
                    None if keys is None else keys[own],
                )
                continue
            assert isinstance(method, BetweenLayers)
            # what deduplication will leave, the settings alone do not say
            flops = self._flops if method.deduplicates else None
            with beside.queued(*(() if text is None else (text,))):
                features, similar = None if frames is None else frames[own], None
                if features is not None and text is not None and questions is not None and questions[b]:
                    similar = similarity(features[None], text[b : b + 1].to(features.device))[0]
                thinning = Prefill(
                    method, self._layers, layout, features, similar, self._impl, self._average, flops, self._batch.draft
                )
            yield thinning

    def _frames(self, beside: Beside) -> Tensor | None:
        """`[F, D]` a feature of every frame of all videos."""
        if not self._method.wants_frames:
            return None
        states = self._family.tower_states(self.features)  # [F, patches, D]
        with beside.queued(states):
            if self._relevance is None:
                return states.float().mean(1)
            frames: Tensor = self._relevance.to(states.device)(states)
            return frames

    def _tower(self) -> tuple[Tensor | None, Tensor | None]:
        """`[F, P]` attention that the tower's patches receive, and `[F, P, d]` their keys, pooled."""
        if not (isinstance(self._method, BeforeDecoder) and self._method.wants_tower):
            return None, None
        query, key = self._family.tower_attention(self.features)  # [F, heads, patches, d]
        patches = key.shape[2]
        rows = torch.full((len(key), patches), patches - 1, device=key.device)  # everyone sees everyone
        received = score(query, key, rows, (0, patches), scale=key.shape[-1] ** -0.5, impl=self._impl)
        return self._family.pool(received[..., None])[..., 0], self._family.pool(key.mean(1))

    def _places(self, frames: int) -> list[int]:
        """Where each prompt's frames begin among the `frames` that were encoded.

        Copies of a prompt, as beams are, lie side by side, and may share what was encoded once.
        """
        wanted = [0 if layout is None else layout.frames for layout in self._batch.layouts]
        copies, rest = divmod(sum(wanted), frames)
        if rest or copies == 0:
            raise ValueError(f"the prompts hold videos of {sum(wanted)} frames, but {frames} frames were encoded")
        begins, begin = [], 0
        for b, count in enumerate(wanted):
            begins.append(begin)
            begin += count if b % copies == copies - 1 else 0
        return begins

    def _comparable(self) -> Sequence[str | None] | None:
        """The questions that frames can be compared with; notes where there is none."""
        if not self._method.wants_question:
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

    def note(self, text: str) -> None:
        """Put what the user should know into the report, once."""
        if text not in self._notes:
            self._notes.append(text)

    def _sample(self, b: int, thinning: Thinning, length: int) -> Sample:
        if thinning is None:
            return whole_sample(self._layers, length)
        if isinstance(thinning, Compression):
            return compressed_sample(thinning, self._layers, length)
        self._notes += thinning.notes
        question = self._questions[b] if thinning.compared and self._questions is not None else None
        return cut_sample(thinning, length, question)

    def report(self) -> PruningReport:
        """What was kept, once all prompts have run. Reads nothing from the device."""
        decoder = self._family.decoder
        blind = [b for b, sample in enumerate(self._samples) if sample.frames and not sample.kept[-1]]
        notes = [
            *self._notes,
            *(f"sample {b} has no visual token left: the settings are too tight for its video" for b in blind),
        ]
        return PruningReport(
            True, None, self._method, tuple(notes), tuple(self._samples), decoder.config, decoder.dtype.itemsize
        )


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
