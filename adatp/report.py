"""The report of a prefill: the tokens that were kept in every layer and segment, and the cost."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adatp.checks.values import integer, require
from adatp.errors import InputError
from adatp.flops import Flops, PrefillCounter
from adatp.layout import Videos, VideoSize
from adatp.methods.method import Method


@dataclass(frozen=True)
class Segment:
    """A segment of frames, `start .. stop - 1`.

    Attributes:
        start: first frame of the segment.
        stop: the frame after the last one of the segment.
        similarity: mean text relevance of its frames (eq. 3); None if it was not computed.
        significant: whether `similarity` exceeds tau_t; a significant segment keeps more tokens.
        kept: number of its visual tokens at every layer's input, N entries.
    """

    start: int
    stop: int
    similarity: float | None
    significant: bool
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Sample(Videos):
    """One prompt of the batch.

    Attributes:
        videos: size of each video; their frames add up to n, `frames`. Empty for a prompt without a video.
        other_tokens: number of prompt tokens that are never pruned.
        question: the question that the relevance was computed with; None if it was not computed.
        kept: number of visual tokens at every layer's input, N entries.
        similarity: text relevance of every frame, n entries; None if it was not computed.
        segments: the segments of the videos, in order.
        method: the method, with the settings that it ran at; None for a prompt without a video.
    """

    videos: tuple[VideoSize, ...]
    other_tokens: int
    question: str | None
    kept: tuple[int, ...]
    similarity: tuple[float, ...] | None
    segments: tuple[Segment, ...]
    method: Method | None
    _visual: Tensor = field(repr=False, compare=False)
    _origins: dict[int, Tensor] = field(repr=False, compare=False)

    @property
    def first_cut(self) -> int:
        """The first layer whose input does not have all visual tokens; 0 if there is no such layer."""
        return next((layer for layer, kept in enumerate(self.kept) if kept < self.visual_tokens), 0)

    def lengths(self) -> list[int]:
        """Return the number of tokens at every layer's input."""
        return [kept + self.other_tokens for kept in self.kept]

    def kept_mask(self, layer: int) -> Tensor:
        """Return `[frames, tokens_per_frame]` bool on the host, True for the visual tokens in the input of `layer`.

        A merged or pooled token counts as the token that it stands for.

        Raises:
            InputError: there is no such layer; or the videos have different grids, see `kept_masks`.
        """
        masks = self.kept_masks(layer)
        return torch.cat(masks).view(self.frames, self.tokens_per_frame) if masks else torch.ones(0, 0).bool()

    def kept_masks(self, layer: int) -> list[Tensor]:
        """Return for each video `[frames, c]` bool on the host, see `kept_mask`; the videos may have different grids.

        Raises:
            InputError: there is no such layer.
        """
        layer = integer("layer", layer)
        require(0 <= layer < len(self.kept), "layer", layer, f"from 0 to {len(self.kept) - 1}")
        cuts = [cut for cut in self._origins if cut <= layer]
        kept = torch.ones(self.visual_tokens, dtype=torch.bool)
        if cuts:
            kept = torch.isin(self._visual, self._origins[max(cuts)].cpu())
        own = kept.split([video.tokens for video in self.videos])
        return [mask.view(video.frames, -1) for mask, video in zip(own, self.videos, strict=True)]


@dataclass(frozen=True)
class PruningReport:
    """The tokens that the last prefill kept, and its cost.

    Attributes:
        pruned: whether the prefill was pruned.
        reason: the reason why it was not pruned; None if it was.
        method: the method that was applied; None if the prefill was not pruned.
        notes: notes for the user, such as a missing text encoder.
        samples: one entry per prompt; empty if the prefill was not pruned.
    """

    pruned: bool
    reason: str | None
    method: Method | None = None
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    _text_config: Any = field(default=None, repr=False, compare=False)
    _itemsize: int = field(default=0, repr=False, compare=False)

    @cached_property
    def flops(self) -> Flops:
        """FLOPs of the language model's prefill, pruned and unpruned, summed over all samples.

        Raises:
            InputError: the prefill was not pruned, so there is nothing to compare.
        """
        if not self.pruned:
            raise InputError(f"the last prefill was not pruned ({self.reason}), so it has no FLOPs ratio")
        count = PrefillCounter(self._text_config)
        total = Flops(0, 0, 0, 0)
        for sample in self.samples:
            total = total + count(sample.lengths(), sample.visual_tokens + sample.other_tokens)
        return total

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in a `DynamicCache` after the prefill: each layer is as long as its longest prompt.

        With tensor parallelism this is the sum over all ranks.
        """
        return self._cache_bytes([max(lengths) for lengths in zip(*(s.lengths() for s in self.samples), strict=True)])

    @property
    def cache_bytes_full(self) -> int:
        """Bytes of keys and values in a `DynamicCache` after the unpruned prefill."""
        longest = max((s.visual_tokens + s.other_tokens for s in self.samples), default=0)
        return self._cache_bytes([longest] * (len(self.samples[0].kept) if self.samples else 0))

    def _cache_bytes(self, lengths: list[int]) -> int:
        config = self._text_config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * len(self.samples) * sum(lengths) * config.num_key_value_heads * head * self._itemsize)

    def __str__(self) -> str:
        if not self.pruned:
            return f"not pruned: {self.reason}"
        assert self.method is not None
        name, ratio = self.method.name, self.flops.ratio
        lines = [f"{name}: prefill FLOPs of the language model: {ratio:.1%} of unpruned", *self.notes]
        for b, sample in enumerate(self.samples):
            before = (sample.visual_tokens, *sample.kept)
            cuts = [kept for kept, earlier in zip(sample.kept, before, strict=False) if kept != earlier]
            significant = sum(segment.significant for segment in sample.segments)
            lines.append(
                f"sample {b}: visual tokens {' -> '.join(map(str, [sample.visual_tokens, *cuts]))}; "
                f"{len(sample.segments)} segments, {significant} significant"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        samples = [
            {
                "frames": s.frames,
                "videos": [_size_to_dict(video) for video in s.videos],
                "visual_tokens": s.visual_tokens,
                "other_tokens": s.other_tokens,
                "question": s.question,
                "kept": list(s.kept),
                "similarity": None if s.similarity is None else list(s.similarity),
                "segments": [{**asdict(g), "kept": list(g.kept)} for g in s.segments],
                "settings": None if s.method is None else s.method.settings(),
            }
            for s in self.samples
        ]
        report: dict[str, Any] = {
            "pruned": self.pruned,
            "reason": self.reason,
            "method": None if self.method is None else self.method.name,
            "notes": list(self.notes),
            "samples": samples,
        }
        if self.pruned:
            report["flops"] = self.flops.to_dict()
            report["cache_bytes"] = {"pruned": self.cache_bytes, "unpruned": self.cache_bytes_full}
        return report


def _size_to_dict(video: VideoSize) -> dict[str, int]:
    grid = video.grid
    return {
        "frames": video.frames,
        "rows": grid.rows,
        "columns": grid.columns,
        "temporal_patch": video.temporal_patch,
    }


def passed_through(reason: str) -> PruningReport:
    """Return the report of a prefill that was not pruned, with the reason."""
    return PruningReport(pruned=False, reason=reason)
