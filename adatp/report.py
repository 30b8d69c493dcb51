"""What a prefill kept, layer by layer and segment by segment."""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adatp.flops import Flops, PrefillCounter
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
class Sample:
    """One prompt of the batch.

    Attributes:
        frames, tokens_per_frame: n and c; their product is the prunable tokens N_v. 0 frames: no video.
        other_tokens: prompt tokens that are never pruned.
        question: what the relevance was computed with; None where it was not.
        kept: visual tokens at every layer's input, N entries.
        similarity: text relevance of every frame, n entries; None where it was not computed.
    """

    frames: int
    tokens_per_frame: int
    other_tokens: int
    question: str | None
    kept: tuple[int, ...]
    similarity: tuple[float, ...] | None
    segments: tuple[Segment, ...]
    _begin: int = field(repr=False)
    _origins: dict[int, Tensor] = field(repr=False, compare=False)

    @property
    def visual_tokens(self) -> int:
        return self.frames * self.tokens_per_frame

    @property
    def first_cut(self) -> int:
        """The first layer whose input lacks visual tokens; 0 if there is none."""
        return next((layer for layer, kept in enumerate(self.kept) if kept < self.kept[0]), 0)

    def lengths(self) -> list[int]:
        """Tokens at every layer's input."""
        return [kept + self.other_tokens for kept in self.kept]

    def kept_mask(self, layer: int) -> Tensor:
        """`[frames, tokens_per_frame]` bool on the host: the visual tokens in the input of `layer`."""
        if not 0 <= layer < len(self.kept):
            raise ValueError(f"layer must be from 0 to {len(self.kept) - 1}, got {layer}")
        cuts = [cut for cut in self._origins if cut <= layer]
        if not cuts:
            return torch.ones(self.frames, self.tokens_per_frame, dtype=torch.bool)
        index = self._origins[max(cuts)].cpu() - self._begin
        mask = torch.zeros(self.visual_tokens, dtype=torch.bool)
        mask[index[(index >= 0) & (index < self.visual_tokens)]] = True
        return mask.view(self.frames, self.tokens_per_frame)


@dataclass(frozen=True)
class PruningReport:
    """What the last prefill kept, and what it cost.

    Attributes:
        pruned: whether anything was subject to pruning.
        reason: why not, if not; else None.
        notes: what the user should know, such as a missing text encoder.
        samples: one entry a prompt; empty if nothing was pruned.
    """

    pruned: bool
    reason: str | None
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    _text_config: Any = field(default=None, repr=False, compare=False)

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

    def __str__(self) -> str:
        if not self.pruned:
            return f"not pruned: {self.reason}"
        lines = [f"prefill FLOPs of the language model: {self.flops.ratio:.1%} of unpruned", *self.notes]
        for b, sample in enumerate(self.samples):
            cuts = [kept for kept, before in zip(sample.kept[1:], sample.kept, strict=False) if kept != before]
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
                "tokens_per_frame": s.tokens_per_frame,
                "visual_tokens": s.visual_tokens,
                "other_tokens": s.other_tokens,
                "question": s.question,
                "kept": list(s.kept),
                "similarity": None if s.similarity is None else list(s.similarity),
                "segments": [{**asdict(g), "kept": list(g.kept)} for g in s.segments],
            }
            for s in self.samples
        ]
        report: dict[str, Any] = {
            "pruned": self.pruned,
            "reason": self.reason,
            "notes": list(self.notes),
            "samples": samples,
        }
        if self.pruned:
            report["flops"] = self.flops.to_dict()
        return report


def passed_through(reason: str) -> PruningReport:
    """The report of a prefill that was left alone."""
    return PruningReport(pruned=False, reason=reason)


def build_report(
    prefill: Prefill, layers: int, questions: list[str] | None, notes: tuple[str, ...], text_config: Any
) -> PruningReport:
    """The report of a finished prefill. Reads nothing from the device."""
    plan, layout = prefill.plan, prefill.layout
    assert plan is not None, "a finished prefill has made its first cut"
    cuts = list(prefill.cuts)
    samples = []
    for b, (visual, fixed) in enumerate(zip(layout.visual_tokens(), layout.fixed_tokens(), strict=True)):
        frames = visual // layout.tokens_per_frame
        home = plan.segment_of_frame[b, :frames].tolist()
        similar = plan.similarity[b, :frames].tolist()
        known = bool(questions) and not any(math.isnan(value) for value in similar)
        segments = []
        for s in sorted(set(home)):
            members = [i for i, value in enumerate(home) if value == s]
            segments.append(
                Segment(
                    start=members[0],
                    stop=members[-1] + 1,
                    similarity=sum(similar[i] for i in members) / len(members) if known else None,
                    significant=bool(plan.significant[b, s]),
                    kept=_by_layer(layers, len(members) * layout.tokens_per_frame, cuts, plan.kept[b, :, s].tolist()),
                )
            )
        samples.append(
            Sample(
                frames=frames,
                tokens_per_frame=layout.tokens_per_frame,
                other_tokens=fixed,
                question=questions[b] if known and questions else None,
                kept=_by_layer(layers, visual, cuts, plan.kept[b].sum(1).tolist()),
                similarity=tuple(similar) if known else None,
                segments=tuple(segments),
                _begin=int((layout.frame[b] >= 0).int().argmax()),
                _origins={layer: origin[b] for layer, origin in prefill.origins.items()},
            )
        )
    return PruningReport(pruned=True, reason=None, notes=notes, samples=tuple(samples), _text_config=text_config)


def _by_layer(layers: int, whole: int, cuts: list[int], kept: list[int]) -> tuple[int, ...]:
    """Tokens at every layer's input, from those after each cut."""
    counts, current = [], whole
    after = dict(zip(cuts, kept, strict=True))
    for layer in range(layers):
        current = after.get(layer, current)
        counts.append(current)
    return tuple(counts)
