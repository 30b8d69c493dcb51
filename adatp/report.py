"""What a prefill kept, layer by layer and segment by segment."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adatp.compression import Compression
from adatp.flops import Flops, PrefillCounter
from adatp.layout import VideoGrid, by_layer
from adatp.methods.method import Method
from adatp.prefill import Prefill


@dataclass(frozen=True)
class Segment:
    """Frames `start .. stop - 1`.

    Attributes:
        similarity: mean text relevance of its frames (eq. 3); None where it was not computed.
        significant: whether it exceeds tau_t, and so keeps more.
        kept: visual tokens at every layer's input, N entries.
    """

    start: int
    stop: int
    similarity: float | None
    significant: bool
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Sample(VideoGrid):
    """One prompt of the batch.

    Attributes:
        videos: frames of each video; n, `frames`, is their sum. Empty for a prompt without a video.
        grid: rows and columns of a frame's tokens; c, `tokens_per_frame`, is their product.
        other_tokens: prompt tokens that are never pruned.
        question: what the relevance was computed with; None where it was not.
        kept: visual tokens at every layer's input, N entries.
        similarity: text relevance of every frame, n entries; None where it was not computed.
        method: what was applied, with the settings that it ran at; None for a prompt without a video.
    """

    videos: tuple[int, ...]
    grid: tuple[int, int]
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
        """The first layer whose input lacks visual tokens; 0 if there is none."""
        return next((layer for layer, kept in enumerate(self.kept) if kept < self.visual_tokens), 0)

    def lengths(self) -> list[int]:
        """Tokens at every layer's input."""
        return [kept + self.other_tokens for kept in self.kept]

    def kept_mask(self, layer: int) -> Tensor:
        """`[frames, tokens_per_frame]` bool on the host: the visual tokens in the input of `layer`.

        A merged or pooled token counts as the one it stands for.
        """
        if not 0 <= layer < len(self.kept):
            raise ValueError(f"layer must be from 0 to {len(self.kept) - 1}, got {layer}")
        cuts = [cut for cut in self._origins if cut <= layer]
        if not cuts:
            return torch.ones(self.frames, self.tokens_per_frame, dtype=torch.bool)
        return torch.isin(self._visual, self._origins[max(cuts)].cpu()).view(self.frames, self.tokens_per_frame)


@dataclass(frozen=True)
class PruningReport:
    """What the last prefill kept, and what it cost.

    Attributes:
        pruned: whether anything was subject to pruning.
        reason: why not, if not; else None.
        method: what was applied; None if nothing was.
        notes: what the user should know, such as a missing text encoder.
        samples: one entry a prompt; empty if nothing was pruned.
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
        """FLOPs of the language model's prefill, pruned and not, over all samples.

        Raises:
            ValueError: nothing was pruned, so there is nothing to compare.
        """
        if not self.pruned:
            raise ValueError(f"the last prefill was not pruned ({self.reason}), so it has no FLOPs ratio")
        count = PrefillCounter(self._text_config)
        total = Flops(0, 0, 0, 0)
        for sample in self.samples:
            total = total + count(sample.lengths(), sample.visual_tokens + sample.other_tokens)
        return total

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in a `DynamicCache` after the prefill: each layer is as long as its longest prompt.

        Of all ranks together, where heads are split over ranks.
        """
        return self._cache_bytes([max(lengths) for lengths in zip(*(s.lengths() for s in self.samples), strict=True)])

    @property
    def cache_bytes_full(self) -> int:
        """The same without pruning."""
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
        """Everything as JSON-ready values."""
        samples = [
            {
                "frames": s.frames,
                "videos": list(s.videos),
                "tokens_per_frame": s.tokens_per_frame,
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


def passed_through(reason: str) -> PruningReport:
    """The report of a prefill that was left alone."""
    return PruningReport(pruned=False, reason=reason)


def whole_sample(layers: int, length: int) -> Sample:
    """A prompt of `length` tokens without a video, which every layer sees whole."""
    return Sample((), (0, 0), length, None, (0,) * layers, None, (), None, torch.zeros(0, dtype=torch.int64), {})


def cut_sample(prefill: Prefill, length: int, question: str | None) -> Sample:
    """A prompt of `length` tokens whose prefill is finished. Reads nothing from the device.

    Args:
        prefill: its cuts.
        length: tokens of the prompt.
        question: what the frames were compared with, None if they were not.
    """
    plan, layout = prefill.plan, prefill.layout
    assert plan is not None, "a finished prefill has made its first cut"

    def kept(whole: int, after: Tensor) -> tuple[int, ...]:
        return tuple(by_layer(prefill.layers, whole, dict(zip(prefill.cuts, after.tolist(), strict=True))))

    home, similar = plan.segment_of_frame.tolist(), plan.similarity.tolist()
    segments = []
    for s in sorted(set(home)):
        members = [i for i, value in enumerate(home) if value == s]
        segments.append(
            Segment(
                start=members[0],
                stop=members[-1] + 1,
                similarity=None if question is None else sum(similar[i] for i in members) / len(members),
                significant=bool(plan.significant[s]),
                kept=kept(len(members) * layout.tokens_per_frame, plan.kept[:, s]),
            )
        )
    return Sample(
        videos=layout.videos,
        grid=layout.grid,
        other_tokens=length - layout.visual_tokens,
        question=question,
        kept=kept(layout.visual_tokens, plan.kept.sum(1)),
        similarity=None if question is None else tuple(similar),
        segments=tuple(segments),
        method=prefill.method,
        _visual=layout.visual,
        _origins={layer: origin[0] for layer, origin in prefill.origins.items()},
    )


def compressed_sample(compression: Compression, layers: int, length: int) -> Sample:
    """A prompt of `length` tokens whose videos were thinned out before the decoder's `layers`."""
    layout, kept = compression.layout, (compression.kept,) * layers
    assert compression.origin is not None, "a finished prefill has been compressed"
    return Sample(
        videos=layout.videos,
        grid=layout.grid,
        other_tokens=length - layout.visual_tokens,
        question=None,
        kept=kept,
        similarity=None,
        segments=(Segment(0, layout.frames, None, False, kept),),
        method=compression.method,
        _visual=layout.visual,
        _origins={0: compression.origin},
    )
