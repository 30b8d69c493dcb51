"""The cuts of one prompt's prefill as tensor code: before a layer, score -> select -> compact. Knows no model.

The host reads the device once, after the first cut, and from its counts every later size follows: once a spatial
position occurs at most once per segment, a cut keeps exactly its quota, or all there is. Only where the prefill shall
cost a given share of FLOPs, which deduplication has a say in, is the first cut tried, and read, at several settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from adatp.engine.scoring import Scoring
from adatp.flops import linear_ratio
from adatp.layout import PromptLayout, by_layer
from adatp.methods.method import BetweenLayers, Grouping
from adatp.tensors.transfer import send
from adatp_kernels.compact import compact
from adatp_kernels.select import FIXED, select

FLOPS_TOLERANCE = 0.0005  # of a share that was asked for
DEFAULT = Scoring()


@dataclass(frozen=True)
class Places:
    """Where a cut finds what it looks for among W tokens.

    Attributes:
        rows: `[1, T]` int64, on the device: the text rows.
        columns: the range with all prunable tokens in it.
        begin: `[1, n]` int64, on the device: the first token of each frame before the first cut, and of each segment
            after it, when the frames have holes.
    """

    rows: Tensor
    columns: tuple[int, int]
    begin: Tensor

    def to(self, device: torch.device) -> "Places":
        """The same on another device."""
        return Places(self.rows.to(device), self.columns, self.begin.to(device))


@dataclass(frozen=True)
class Tokens:
    """The W tokens of the prompt that enter a layer.

    Attributes:
        hidden: `[1, W, D]`.
        cos, sin: `[1, W, d]` rotary tables of the tokens' original positions.
        position: `[1, W]` int64 index within the frame of a prunable token, `FIXED` for one that always stays.
        origin: `[1, W]` int64 index in the whole prompt.
        places: what a cut looks for.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    position: Tensor
    origin: Tensor
    places: Places

    @property
    def width(self) -> int:
        return self.hidden.shape[1]

    def follow(self, hidden: Tensor) -> "Tokens":
        """The same tokens with the hidden states a layer has put out, on whichever device it did."""
        device = hidden.device
        if device == self.cos.device:
            return replace(self, hidden=hidden)
        return Tokens(
            hidden,
            self.cos.to(device),
            self.sin.to(device),
            self.position.to(device),
            self.origin.to(device),
            self.places.to(device),
        )


@dataclass(frozen=True)
class Plan:
    """What the one host read brings: enough to size every layer. Host values; S slots, as many as frames.

    Attributes:
        method: what is applied, at the `flops` asked for.
        segment_of_frame: `[n]` int64.
        similarity: `[n]` float64 text relevance (eq. 3); NaN where it was not computed.
        significant: `[S]` bool.
        kept: `[K, S]` int64 tokens of every segment after each of the K cuts.
    """

    method: BetweenLayers
    segment_of_frame: Tensor
    similarity: Tensor
    significant: Tensor
    kept: Tensor


class _FirstCut(NamedTuple):
    """What the first cut settles; `quota` `[K, S]` is `Plan.kept` on the device, `keep` `[1, W]` bool."""

    quota: Tensor
    plan: Plan
    keep: Tensor


class Cuts:
    """The cuts of one prompt, in order.

    Args:
        method: which tokens go, and where.
        layers: decoder layers of the model, N.
        layout: the prompt.
        frames: `[n, F]` a feature per frame, or None where the method wants none.
        similarity: `[n]` text relevance of every frame, or None: then no segment is significant.
        scoring: how scores are computed, and by which implementation the three operations run.
        flops: share of the unpruned prefill's FLOPs (linear layers) that the prefill shall cost, where the method
            does not already say.
        draft: tokens at the end of `layout` that follow the prompt, and are no part of its cost.

    Attributes:
        method, layers, layout: the same.
        ratios: by layer with a cut in front of it, in order: the share of the visual tokens that may enter it.
        plan: what the first cut settles; None before it.
        origins: by layer with a cut in front of it: `Tokens.origin` after the cut.
        notes: what the user should know.

    Raises:
        ValueError: no text after the last video.
    """

    def __init__(
        self,
        method: BetweenLayers,
        layers: int,
        layout: PromptLayout,
        *,
        frames: Tensor | None = None,
        similarity: Tensor | None = None,
        scoring: Scoring = DEFAULT,
        flops: float | None = None,
        draft: int = 0,
    ) -> None:
        layout.check()
        self.method = method
        self.layers = layers
        self.layout = layout
        self.ratios = method.cuts(layers)
        self.plan: Plan | None = None
        self.origins: dict[int, Tensor] = {}
        self.notes: list[str] = []
        self._scoring = scoring
        self._flops = flops
        self._draft = draft
        self._frames = frames
        self._similarity = similarity
        self._fixed = layout.length - layout.visual_tokens
        self._grouping = self._group(method)
        # of every cut, once the first one is made
        self._widths: list[int] = []
        self._quotas: Sequence[Tensor] = ()
        self._places: list[Places] = []
        if not self.ratios:
            unknown = torch.full((layout.frames,), float("nan"), dtype=torch.float64)
            grouping = self._grouping
            self.plan = Plan(method, grouping.segment_of_frame, unknown, grouping.significant, grouping.quota)

    @property
    def compared(self) -> bool:
        """Whether the frames were compared with a question."""
        return self._similarity is not None

    @property
    def awaited(self) -> list[Tensor]:
        """What the first cut reads and no layer before it."""
        return [part for part in (self._frames, self._similarity, *self._grouping) if part is not None]

    def _group(self, method: BetweenLayers) -> Grouping:
        ratios = list(method.cuts(self.layers).values())
        return method.group(ratios, self.layout, self._frames, self._similarity)

    def tokens(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tokens:
        """The uncut prompt: `[1, L, D]` hidden states and `[1, L, d]` rotary tables."""
        layout, device = self.layout, hidden.device
        begin = send(torch.tensor([layout.begins]), device)  # [1, n]
        within = torch.arange(layout.tokens_per_frame, device=device)
        visual = (begin[..., None] + within).flatten(1)  # [1, N_v]
        position = torch.full((1, layout.length), FIXED, device=device)
        position.scatter_(1, visual, within.repeat(layout.frames)[None])
        return Tokens(
            hidden=hidden,
            cos=cos,
            sin=sin,
            position=position,
            origin=torch.arange(layout.length, device=device)[None],
            places=Places(send(self.method.rows(layout), device)[None], self._columns(layout.length), begin),
        )

    def cut(self, layer: int, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tokens:
        """What enters `layer`, given what the layer before it has put out.

        Args:
            layer: one of `ratios`, each once and in order.
            tokens: the output of layer `layer - 1`.
            query: `[1, H, T, d]` post-rotary queries of `tokens.places.rows` in layer `layer - 1`.
            key: `[1, G, W, d]` its post-rotary keys.
            scale: its attention's scaling.
        """
        k = list(self.ratios).index(layer)
        if k and self._widths[k] == self._widths[k - 1]:
            self.origins[layer] = tokens.origin
            return tokens  # every quota is above what lives: nothing goes

        scores = self._scores(tokens, query, key, scale)
        if k:
            keep, _ = self._keep(tokens, scores, self._quotas[k].to(scores.device))
        else:
            keep = self._make_first_cut(tokens, scores)
        width = self._widths[k]
        tables = () if self.method.renumbers else (tokens.cos, tokens.sin)
        hidden, position, origin, *moved = compact(
            keep, [width], (tokens.hidden, tokens.position, tokens.origin, *tables), impl=self._scoring.impl
        )
        if not k:  # the device has the compaction to do meanwhile
            self._places = self._foresee(tokens.places.rows)
        cos, sin = moved or (tokens.cos[:, :width], tokens.sin[:, :width])
        self.origins[layer] = origin
        return Tokens(hidden, cos, sin, position, origin, self._places[k].to(hidden.device))

    @torch.no_grad()
    def _scores(self, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """`[1, C]` float32 scores of the tokens in `tokens.places.columns`."""
        return self._scoring(query, key, tokens.places.rows, tokens.places.columns, scale=scale)

    def _keep(
        self, tokens: Tokens, scores: Tensor, quota: Tensor, segment: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What stays of `tokens`, `[1, W]` bool, and how many of each segment, `[1, S]` int64.

        Args:
            tokens: before the cut.
            scores: `[1, C]`.
            quota: `[1, S]` tokens that each segment may keep.
            segment: `[1, n]` of each frame, before the first cut.
        """
        return select(
            scores,
            tokens.position,
            tokens.places.begin,
            quota,
            positions=self.layout.tokens_per_frame,
            start=tokens.places.columns[0],
            segment=segment,
            # after the first cut no position occurs twice in a segment
            deduplicate=self.method.deduplicates and segment is not None,
            impl=self._scoring.impl,
        )

    def _make_first_cut(self, tokens: Tokens, scores: Tensor) -> Tensor:
        """`[1, W]` bool: what the first cut keeps; and settle how many tokens of each segment all later cuts keep."""
        first = self._first_cut(self.method, tokens, scores) if self._flops is None else self._fit(tokens, scores)
        self.plan = first.plan
        self._widths, self._quotas = self._widths_of(self.plan), first.quota.split(1)
        return first.keep

    def _first_cut(self, method: BetweenLayers, tokens: Tokens, scores: Tensor) -> _FirstCut:
        """What a method's first cut keeps, and so how many tokens all that follows will have."""
        grouping = self._grouping if method is self.method else self._group(method)
        device = scores.device
        quota = send(grouping.quota, device)
        keep, kept = self._keep(tokens, scores, quota[:1], send(grouping.segment_of_frame, device)[None])
        quota = torch.cat([kept, quota[1:]]).cummin(0).values  # [K, S]
        return _FirstCut(quota, self._read(method, grouping, quota), keep)

    def _read(self, method: BetweenLayers, grouping: Grouping, quota: Tensor) -> Plan:
        """The one host read: what the first cut kept, and what the report wants to know of the segments."""
        if self._similarity is None:
            similarity = quota.new_full((1, self.layout.frames), float("nan"), dtype=torch.float64)
        else:
            similarity = self._similarity[None].to(quota.device, torch.float64)
        parts = [send(part, quota.device)[None] for part in (grouping.segment_of_frame, grouping.significant)]
        host = torch.cat([similarity, *parts, quota]).cpu()  # all in fp64, which holds every count exactly
        similar, segment_of_frame, significant, kept = host.split([1, 1, 1, len(self.ratios)])
        return Plan(method, segment_of_frame[0].long(), similar[0], significant[0].bool(), kept.long())

    def _fit(self, tokens: Tokens, scores: Tensor) -> _FirstCut:
        """The first cut with the method's knob turned so that the prefill costs `flops`."""
        assert self._flops is not None
        low, high = self.method.knob_range
        best = self._first_cut(self.method.with_knob(high), tokens, scores)
        cost = self._cost(best.plan)
        if cost < self._flops - FLOPS_TOLERANCE:
            self.notes.append(
                f"flops={self._flops:g} is out of reach: what deduplication leaves costs {cost:.4f} at most"
            )
            return best
        while abs(cost - self._flops) > FLOPS_TOLERANCE and high - low > 1e-4:
            middle = (low + high) / 2
            tried = self._first_cut(self.method.with_knob(middle), tokens, scores)
            tried_cost = self._cost(tried.plan)
            low, high = (middle, high) if tried_cost < self._flops else (low, middle)
            if abs(tried_cost - self._flops) < abs(cost - self._flops):
                best, cost = tried, tried_cost
        return best

    def _cost(self, plan: Plan) -> float:
        """FLOPs of the prefill's linear layers over the unpruned one's."""
        prompt, widths = self.layout.length - self._draft, (width - self._draft for width in self._widths_of(plan))
        return linear_ratio(by_layer(self.layers, prompt, dict(zip(self.ratios, widths, strict=True))), prompt)

    def _widths_of(self, plan: Plan) -> list[int]:
        """Tokens of the prompt after each cut."""
        return [int(kept) + self._fixed for kept in plan.kept.sum(1).tolist()]

    def _columns(self, width: int) -> tuple[int, int]:
        """Where the prunable tokens are among `width`: the text before the first and after the last always stays."""
        return self.layout.begins[0], width - (self.layout.length - self.layout.end)

    def _foresee(self, rows: Tensor) -> list[Places]:
        """Where everything stands after every cut: computed on the host, and sent in one transfer nothing waits for.

        Args:
            rows: `[1, T]` the text rows of the uncut prompt, on the device.
        """
        assert self.plan is not None
        fixed = [self._fixed] * self.layout.frames  # before each segment; behind the last one there is nothing
        segment_of_frame = self.plan.segment_of_frame.tolist()
        for frame in reversed(range(self.layout.frames)):
            fixed[segment_of_frame[frame]] = self.layout.begins[frame] - frame * self.layout.tokens_per_frame
        kept = self.plan.kept
        begin = torch.tensor(fixed) + kept.cumsum(1) - kept  # [K, S]
        moved = torch.tensor([[width - self.layout.length] for width in self._widths])  # [K, 1]
        sent = send(torch.cat([moved, begin], 1), rows.device)
        parts = zip((rows + sent[:, :1]).split(1), sent[:, 1:].split(1), self._widths, strict=True)
        return [Places(own, self._columns(width), begins) for own, begins, width in parts]
