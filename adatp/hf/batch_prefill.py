"""The prefill of a batch with videos: each prompt runs alone, and the results are joined to a batch again.

A prompt runs without padding. So nothing is computed for padding, flash attention needs no mask, and a prompt keeps the
same tokens in every batch. Decoding is batched again. Each layer of its cache is as long as the longest prompt in this
layer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from adatp.engine.compression import Compression
from adatp.engine.cuts import Cuts
from adatp.engine.samples import compressed_sample, cut_sample, whole_sample
from adatp.engine.sparse_decoding import SparseVisual
from adatp.errors import Unsupported
from adatp.hf.asked_logits import AskedLogits
from adatp.hf.batch import Batch
from adatp.hf.cache import Shift, fill_layer
from adatp.hf.features import Features, Questions, comparable, read_features
from adatp.hf.prompt_prefill import PromptPrefill
from adatp.hf.setup import Setup
from adatp.hf.side_stream import SideStream
from adatp.hf.support import check_gradients
from adatp.layout import PromptLayout
from adatp.methods.method import BeforeDecoder, BetweenLayers, Method
from adatp.report import PruningReport, Sample
from adatp.tensors.padding import stack_left
from adatp.tensors.transfer import send

NOT_RENUMBERED = (
    "kept tokens keep their positions, though the method renumbers them: the positions of this model have several axes"
)

Pruning = Cuts | Compression | None  # of one prompt; None if it has no video


class BatchPrefill:
    """The prefill of the prompts of one call.

    Args:
        setup: the method on its model.
        batch: the prompts; a prompt without a video is not pruned.
        questions: question of each prompt, None if it has none; or None if frames are not compared with questions.
        asked: the positions whose logits the caller asks for.

    Attributes:
        encoded: output of `get_video_features`; must be set before `run`.
        prompt: the prompt in the decoder, if it has cuts between the layers; else None.

    Raises:
        Unsupported: the method cannot reach `flops` on one of the prompts.
    """

    def __init__(self, setup: Setup, batch: Batch, questions: Questions, asked: AskedLogits) -> None:
        self.encoded: Any = None
        self.prompt: PromptPrefill | None = None
        self._setup = setup
        self._batch = batch
        self._questions = questions
        self._asked = asked
        self._notes = [] if setup.renumbers is setup.method.renumbers else [NOT_RENUMBERED]
        self._samples: list[Sample] = []
        self._methods = [
            setup.method
            if layout is None or setup.flops is None
            else setup.method.at_flops(setup.flops, layout, setup.layers, len(ids) - layout.visual_tokens)
            for ids, layout in zip(batch.ids, batch.layouts, strict=True)
        ]

    def run(self, decoder: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run the language model on each prompt.

        Args:
            decoder: the language model's forward.
            kwargs: the arguments of the call.

        Returns:
            The output for the batch: in every layer hidden states and attentions are padded on the left to the longest
            prompt.
        """
        kwargs = dict(kwargs)
        embeds, cache = kwargs.pop("inputs_embeds"), kwargs.pop("past_key_values", None)
        check_gradients([embeds])  # a hook may have made them need some
        positions = kwargs.pop("position_ids", None)
        kwargs.pop("attention_mask", None)
        length = embeds.shape[1]
        if positions is None:
            positions = torch.arange(length, device=embeds.device)[None]
        elif positions.ndim != 2 and (self._setup.family.scalar_positions or positions.ndim != 3):
            raise Unsupported(f"position_ids must be [B, L] or [1, L] to be pruned, got {tuple(positions.shape)}")
        config = self._setup.family.decoder.config
        use_cache = kwargs.pop("use_cache", None)
        returns_cache = config.use_cache if use_cache is None else use_cache
        use_cache = cache is not None or returns_cache

        outputs, caches, prunings, left = [], [], [], []
        side, family = SideStream(embeds.device), self._setup.family
        parts = family.split_kwargs(kwargs, self._batch.ids, self._batch.padding)
        for b, (pruning, rest) in enumerate(zip(self._prunings(side), parts, strict=True)):
            begin = self._batch.padding[b]
            own = DynamicCache(config=config) if use_cache else None
            tokens, place = embeds[b : b + 1, begin:], positions.select(-2, b if positions.shape[-2] > 1 else 0)
            place = place[..., begin:].unsqueeze(-2)
            if isinstance(pruning, Cuts) and pruning.ratios:
                self.prompt = PromptPrefill(self._setup, pruning, side)
            elif isinstance(pruning, Compression):
                tokens = pruning.apply(tokens)
                assert pruning.left is not None
                renumbers = self._setup.renumbers
                place = place[..., : tokens.shape[1]] if renumbers else family.kept_positions(place, pruning.left)
                rest = family.kept_kwargs(rest, pruning.left)
            output = decoder(
                **rest,
                inputs_embeds=tokens,
                position_ids=place,
                attention_mask=None,
                past_key_values=own,
                use_cache=use_cache,
            )
            self.prompt = None
            outputs.append(output)
            caches.append(own)
            prunings.append(pruning)
            left.append(None if pruning is None else pruning.left)
            self._samples.append(self._sample(b, pruning, length - begin - self._batch.draft))
        self._asked.check(left)
        if use_cache:
            cache = DynamicCache(config=config) if cache is None else cache
            self._fill(cache, caches, length)
            decoding = self._setup.method.decoding
            if decoding is not None:
                self._make_sparse(cache.layers[decoding.layer - 1], decoding.keep, prunings)
        states = [output.last_hidden_state for output in outputs]
        joined = _join(outputs, cache if returns_cache else None)
        placed = self._asked.place(states, left)
        if placed is not None:
            joined.last_hidden_state = placed
        return joined

    def note(self, text: str) -> None:
        """Add a note for the user to the report, if it is not there yet."""
        if text not in self._notes:
            self._notes.append(text)

    def report(self) -> PruningReport:
        """Return the report, after all prompts have run. Reads nothing from the device."""
        decoder = self._setup.family.decoder
        blind = [b for b, sample in enumerate(self._samples) if sample.frames and not sample.kept[-1]]
        notes = [
            *self._notes,
            *(f"sample {b} has no visual token left: the settings are too tight for its video" for b in blind),
        ]
        return PruningReport(
            pruned=True,
            reason=None,
            method=self._setup.method,
            notes=tuple(notes),
            samples=tuple(self._samples),
            _text_config=decoder.config,
            _itemsize=decoder.dtype.itemsize,
        )

    @torch.no_grad()
    def _prunings(self, side: SideStream) -> Iterator[Pruning]:
        """Yield the pruning of each prompt. Its frames are compared and grouped while its first layers run."""
        family = self._setup.family
        if self.encoded is None:
            raise Unsupported(
                f"the prompt holds a video but no features came with it: pass {family.pixels}, or pass the output of "
                f"get_{family.modality}_features as mm_encoder_outputs, and the whole prompt at once (chunked prefill "
                "cannot be pruned). transformers gives an assistant model no video: apply the method to the assisted "
                "model only"
            )
        questions, notes = comparable(self._setup, self._batch, self._questions)
        self._notes += notes
        found = read_features(self._setup, self._batch, self.encoded, questions, side)
        for method, layout, features in zip(self._methods, self._batch.layouts, found, strict=True):
            yield None if layout is None else self._pruning(method, layout, features, side)

    def _pruning(self, method: Method, layout: PromptLayout, features: Features, side: SideStream) -> Pruning:
        if isinstance(method, BeforeDecoder):
            return Compression(method, layout, features.saliency, features.keys)
        assert isinstance(method, BetweenLayers)
        with side.queued():
            return Cuts(
                method,
                self._setup.layers,
                layout,
                frames=features.frames,
                similarity=features.similarity,
                scoring=self._setup.scoring,
                # deduplication depends on the video, so the settings alone do not determine the cost
                flops=self._setup.flops if method.deduplicates else None,
                draft=self._batch.draft,
                may_renumber=self._setup.renumbers,
            )

    def _sample(self, b: int, pruning: Pruning, length: int) -> Sample:
        if pruning is None:
            return whole_sample(self._setup.layers, length)
        if isinstance(pruning, Compression):
            return compressed_sample(pruning, self._setup.layers, length)
        self._notes += pruning.notes
        question = self._questions[b] if pruning.compared and self._questions is not None else None
        return cut_sample(pruning, length, question)

    def _fill(self, cache: Cache, caches: list[Cache], length: int) -> None:
        """Move the keys and values of the prompts from `caches` to the caller's `cache`, layer by layer."""
        first, shifts = self._setup.method.first_pruned(self._setup.layers), self._shifts()
        for index in range(len(caches[0].layers)):
            parts = []
            for own in caches:
                layer = own.layers[index]
                parts.append((layer.keys, layer.values))
                layer.keys = layer.values = None  # so only one layer at a time is in memory twice
            fill_layer(cache, index, parts, length, self._batch.draft, pruned=index >= first, shift=shifts[index])

    def _shifts(self) -> Sequence[Shift | None]:
        """Return for each layer the shift of the tokens after the prompts; None if positions stay unchanged."""
        layers = range(self._setup.layers)
        if not self._setup.renumbers:
            return [None for _ in layers]
        gone = [[sample.visual_tokens - sample.kept[layer] for sample in self._samples] for layer in layers]
        groups = {counts: group for group, counts in enumerate(dict.fromkeys(map(tuple, gone)))}
        tokens = send(torch.tensor(gone), self._setup.family.decoder.device)  # [N, B]
        return [Shift(tokens[layer], groups[tuple(counts)]) for layer, counts in enumerate(gone)]

    def _make_sparse(self, layer: Any, keep: float, prunings: list[Pruning]) -> None:
        """Let a layer of the filled cache choose the visual tokens that the layers after it attend to in decoding.

        The last visual token of a prompt does not count, as in the authors' code.
        """
        device, width = layer.keys.device, layer.kept_length
        visual = torch.zeros(len(prunings), width, dtype=torch.bool, device=device)
        counts = [0] * len(prunings)
        for b, pruning in enumerate(prunings):
            if isinstance(pruning, Compression):
                own = pruning.visual().to(device)
                own = own[: len(own) - self._batch.draft]
                counts[b] = pruning.kept - 1
                visual[b, width - len(own) :] = own & (own.cumsum(0) <= counts[b])
        quota = torch.tensor([int(count * keep) for count in counts])
        layer.sparse = SparseVisual(visual, send(quota, device))


def _join(outputs: list[Any], cache: Cache | None) -> Any:
    """Join the outputs of single prompts to the output of a batch."""
    joined = outputs[0]
    joined.past_key_values = cache
    joined.last_hidden_state = stack_left([output.last_hidden_state for output in outputs])
    for name, square in (("hidden_states", False), ("attentions", True)):
        if getattr(joined, name, None) is not None:
            layers = zip(*(getattr(output, name) for output in outputs), strict=True)
            setattr(joined, name, tuple(stack_left(parts, square=square) for parts in layers))
    return joined
