"""One forward of a model with a video in its prompt, from the prompt's layout to the last cut."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from adatp.cache import PrunedLayer, put_layer
from adatp.config import AdaTPConfig
from adatp.masks import prefill_mask
from adatp.models.family import Family
from adatp.prefill import Prefill, PromptLayout, Tokens
from adatp.relevance import NoRelevanceWarning, Relevance, similarity
from adatp.report import PruningReport, build_report
from adatp_kernels.dispatch import Impl


class PrunedForward:
    """Carries the tokens from layer to layer.

    Args:
        family: the model.
        config: hyperparameters.
        layout: the prompts.
        features: what `get_video_features` returned, or None if the forward will call it itself and set it here.
        questions: one a sample, or None if there is nothing to compare them with.
        impl: implementation of the three operations.
    """

    def __init__(
        self,
        family: Family,
        config: AdaTPConfig,
        layout: PromptLayout,
        features: Any,
        questions: list[str] | None,
        impl: Impl,
    ) -> None:
        self.features = features
        self._family = family
        self._config = config
        self._layout = layout
        self._impl = impl
        self._questions = questions
        self._notes: list[str] = []
        self._prefill: Prefill | None = None
        self._tokens: Tokens | None = None
        self._kept: Tensor | None = None  # [B, W] bool, False in padding; None where no sample is padded
        self._mask: Tensor | None = None
        self._query: Tensor | None = None  # of the layer that has just run ...
        self._cache: Any = None  # ... and where its keys are

    @torch.no_grad()
    def begin(self, relevance: Relevance | None) -> None:
        """Before the language model: segments and relevance, from the vision tower's hidden states."""
        if self.features is None:
            raise ValueError(
                "the prompt holds a video but no video features came with it: pass pixel_values_videos, and the whole "
                "prompt at once (chunked prefill cannot be pruned)"
            )
        states = self._family.tower_states(self.features)  # [videos * n, patches, D]
        if not self._comparable(relevance):
            self._questions = None
        if relevance is None:
            frames, text = states.float().mean(1), None
        else:
            frames, text = relevance.to(states.device)(states, self._questions)
        features = _per_sample(frames.unflatten(0, (-1, self._layout.frames)), self._layout)
        similar = None if text is None else similarity(features, text)
        if similar is not None and self._questions is not None:
            unasked = torch.tensor([not question for question in self._questions])
            # a segment whose relevance is not a number is not significant
            similar = similar.masked_fill(unasked.to(similar.device, non_blocking=True)[:, None], float("nan"))
        layers = len(self._family.decoder.layers)
        self._prefill = Prefill(self._config, layers, self._layout, features, similar, self._impl)

    def _comparable(self, relevance: Relevance | None) -> bool:
        """Whether any sample's frames can be compared with a question; notes where not."""
        if not self._config.global_debias:
            return False
        if relevance is None or self._questions is None:
            self._notes.append("no aligned text encoder: every segment gets the same ratio (no global debiasing)")
            return False
        has_video = self._layout.has_video().tolist()
        for b, (question, video) in enumerate(zip(self._questions, has_video, strict=True)):
            if video and not question:
                note = f"sample {b} has no question: each of its segments gets the same ratio; pass question=..."
                self._notes.append(note)
                warnings.warn(note, NoRelevanceWarning, stacklevel=2)
        return any(self._questions)

    def enter(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Before decoder layer `index`: cut its input, and give it what belongs to the tokens that are left.

        Args:
            index: of a layer from `config.first - 1` on, each once and in order.
            hidden: `[B, W, D]` what the layer before it has put out.
            kwargs: what the model would call the layer with.

        Returns:
            What to call it with instead.
        """
        prefill, cache = self._prefill, kwargs.get("past_key_values")
        assert prefill is not None
        if self._tokens is None:
            self._tokens = prefill.tokens(hidden, *kwargs["position_embeddings"])
        self._tokens.hidden = hidden
        if index in prefill.cuts:
            self._cut(index, prefill)
        tokens = self._tokens
        if index >= self._config.first:
            kwargs = {
                **kwargs,
                "position_embeddings": (tokens.cos, tokens.sin),
                "position_ids": None,  # flash attention takes gaps in them for packed sequences
                "attention_mask": self._mask,
            }
            if cache is not None:
                put_layer(cache, index, PrunedLayer(self._layout.frame.shape[1], tokens.width, self._kept))
        if index + 1 in prefill.cuts:
            self._query = self._text_queries(index, prefill, tokens)
            # without a cache of the caller's, the layer leaves its keys in one of ours
            self._cache = cache if cache is not None else DynamicCache()
            kwargs = {**kwargs, "past_key_values": self._cache}
        return tokens.hidden, kwargs

    def _cut(self, index: int, prefill: Prefill) -> None:
        assert self._tokens is not None
        assert self._query is not None
        scorer = index - 1
        key = self._cache.layers[scorer].keys
        scale = self._family.scale(self._family.decoder.layers[scorer])
        self._tokens = prefill.cut(index, self._tokens, self._query, key, scale)
        self._kept = _kept(self._tokens)
        attention = self._family.decoder.config._attn_implementation
        self._mask = prefill_mask(self._kept, self._tokens.hidden, attention)

    @torch.no_grad()
    def _text_queries(self, index: int, prefill: Prefill, tokens: Tokens) -> Tensor:
        rows = tokens.places.rows.clamp(min=0)  # [B, T]
        hidden, cos, sin = (
            t.gather(1, rows[:, :, None].expand(-1, -1, t.shape[2])) for t in (tokens.hidden, tokens.cos, tokens.sin)
        )
        return self._family.queries(self._family.decoder.layers[index], hidden, cos, sin)

    def report(self) -> PruningReport:
        """What was kept, once all layers have run."""
        assert self._prefill is not None
        decoder = self._family.decoder
        report = build_report(self._prefill, len(decoder.layers), self._questions, tuple(self._notes), decoder.config)
        blind = [b for b, sample in enumerate(report.samples) if sample.frames and not sample.kept[-1]]
        notes = tuple(f"sample {b} has no visual token left: p is too small for its video" for b in blind)
        return replace(report, notes=report.notes + notes)


def _kept(tokens: Tokens) -> Tensor | None:
    """`[B, W]` bool, False in padding; None where no sample is padded."""
    first_token = tokens.places.first_token
    if first_token is None:
        return None
    return torch.arange(tokens.width, device=tokens.hidden.device) >= first_token[:, None]


def _per_sample(features: Tensor, layout: PromptLayout) -> Tensor:
    """`[videos, n, F]` in prompt order to `[B, n, F]`; a sample without a video gets the first one's, unused."""
    has_video = layout.has_video()
    owners = has_video.nonzero().flatten()
    copies, rest = divmod(len(owners), features.shape[0])
    if rest or copies == 0:
        raise ValueError(f"{len(owners)} prompts hold a video, but {features.shape[0]} videos were encoded")
    index = torch.zeros(len(has_video), dtype=torch.int64)
    index[owners] = torch.arange(len(owners)) // copies  # beams are copies, side by side
    return features[index.to(features.device, non_blocking=True)]
