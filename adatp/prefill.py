"""The cuts of one prompt's prefill as tensor code: before a layer, score -> select -> compact. Knows no model.

The host reads the device once, after the first cut, and from its counts every later size follows: once a spatial
position occurs at most once per segment, a cut keeps exactly its quota, or all there is. Only where the prefill shall
cost a given share of FLOPs, which deduplication has a say in, is the first cut tried, and read, at several settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from adatp.flops import linear_ratio
from adatp.layout import PromptLayout, by_layer
from adatp.methods.method import BetweenLayers, Grouping
from adatp_kernels.compact import compact
from adatp_kernels.dispatch import Impl
from adatp_kernels.score import score
from adatp_kernels.select import FIXED, segment_begins, select

FLOPS_TOLERANCE = 0.0005  # of a share that was asked for


@dataclass(frozen=True)
class Places:
    """Where a cut finds what it looks for among W tokens.

    Attributes:
        rows: `[1, T]` int64, on the device: the text rows.
        columns: the range with all prunable tokens in it.
        begin: `[1, S]` int64, on the device: where each segment begins; None as long as the host does not know.
    """

    rows: Tensor
    columns: tuple[int, int]
    begin: Tensor | None


@dataclass(frozen=True)
class Tokens:
    """The W tokens of the prompt that enter a layer.

    Attributes:
        hidden: `[1, W, D]`.
        cos, sin: `[1, W, d]` rotary tables of the tokens' original positions.
        segment: `[1, W]` int64, `FIXED` as in `PromptLayout.frame`.
        position: `[1, W]` int64 spatial position.
        origin: `[1, W]` int64 index in the whole prompt.
        places: what a cut looks for.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    segment: Tensor
    position: Tensor
    origin: Tensor
    places: Places

    @property
    def width(self) -> int:
        return self.hidden.shape[1]

    def follow(self, hidden: Tensor) -> "Tokens":
        """The same tokens with the hidden states a layer has put out, on whichever device it did."""
        if hidden.device == self.cos.device:
            return replace(self, hidden=hidden)
        tensors = {f.name: getattr(self, f.name).to(hidden.device) for f in fields(self) if f.name != "places"}
        places = replace(self.places, rows=self.places.rows.to(hidden.device))
        return Tokens(**{**tensors, "hidden": hidden}, places=places)


@dataclass(frozen=True)
class Plan:
    """What the one host read brings: enough to size every layer. Host values; S slots, as many as frames.

    Attributes:
        segment_of_frame: `[n]` int64.
        similarity: `[n]` float64 text relevance (eq. 3); NaN where it was not computed.
        significant: `[S]` bool.
        kept: `[K, S]` int64 tokens of every segment after each of the K cuts.
    """

    segment_of_frame: Tensor
    similarity: Tensor
    significant: Tensor
    kept: Tensor


class _FirstCut(NamedTuple):
    """What the first cut settles; `quota` `[K, S]` is `Plan.kept` on the device, `keep` `[1, W]` bool."""

    method: BetweenLayers
    grouping: Grouping
    quota: Tensor
    plan: Plan
    keep: Tensor


class Prefill:
    """The cuts of one prompt, in order.

    Args:
        method: which tokens go, and where. As an attribute, the method at the `flops` asked for, once it is known.
        layers: decoder layers of the model, N.
        layout: the prompt.
        frames: `[n, F]` a feature per frame, or None where the method wants none.
        similarity: `[n]` text relevance of every frame, or None: then no segment is significant.
        impl: implementation of the three operations.
        average: makes a rank's `[1, C]` mean scores over its heads those over all heads, where heads are split over
            ranks (tensor parallelism).
        flops: share of the unpruned prefill's FLOPs (linear layers) that the prefill shall cost, where the method
            does not already say.
        draft: tokens at the end of `layout` that follow the prompt, and are no part of its cost.

    Attributes:
        notes: what the user should know.

    Raises:
        ValueError: no text after the last video.
    """

    def __init__(
        self,
        method: BetweenLayers,
        layers: int,
        layout: PromptLayout,
        frames: Tensor | None = None,
        similarity: Tensor | None = None,
        impl: Impl = "auto",
        average: Callable[[Tensor], Tensor] | None = None,
        flops: float | None = None,
        draft: int = 0,
    ) -> None:
        layout.check()
        self.method = method
        self.layers = layers
        self.layout = layout
        self.impl = impl
        self.average = average
        self.flops = flops
        self.draft = draft
        self.cuts = method.cuts(layers)
        self.plan: Plan | None = None
        self.origins: dict[int, Tensor] = {}  # by layer of a cut: `Tokens.origin` after it
        self.notes: list[str] = []
        self._frames = frames
        self._similarity = similarity
        self._rows = method.rows(layout)

        # What stands before the first visual token and after the last always stays, and so does its distance
        # from that end.
        visual = layout.visual
        self._before = int(visual[0])
        self._after = layout.length - 1 - int(visual[-1])
        self._fixed = layout.length - visual.numel()

        self._grouping = self._group(method)
        self._quota = self._grouping.quota  # once the first cut is made, on the device and what stays
        self._places: list[Places] = []  # after every cut
        if not self.cuts:
            unknown = torch.full((layout.frames,), float("nan"), dtype=torch.float64)
            self.plan = Plan(self._grouping.segment_of_frame, unknown, self._grouping.significant, self._grouping.quota)

    @property
    def compared(self) -> bool:
        """Whether the frames were compared with a question."""
        return self._similarity is not None

    def _group(self, method: BetweenLayers) -> Grouping:
        ratios = list(method.cuts(self.layers).values())
        return method.group(ratios, self.layout, self._frames, self._similarity)

    def tokens(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tokens:
        """The uncut prompt: `[1, L, D]` hidden states and `[1, L, d]` rotary tables."""
        layout, device = self.layout, hidden.device
        frame = layout.frame.to(device, non_blocking=True)[None]
        segment_of_frame = self._grouping.segment_of_frame.to(device, non_blocking=True)[None]
        segment = torch.where(frame >= 0, segment_of_frame.gather(1, frame.clamp(min=0)), frame)
        (places,) = self._places_of([layout.length], None, device)
        return Tokens(
            hidden=hidden,
            cos=cos,
            sin=sin,
            segment=segment,
            position=layout.position.to(device, non_blocking=True)[None],
            origin=torch.arange(layout.length, device=device)[None],
            places=places,
        )

    def cut(self, layer: int, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tokens:
        """What enters `layer`, given what the layer before it has put out.

        Args:
            layer: one of `self.cuts`, each once and in order.
            tokens: the output of layer `layer - 1`.
            query: `[1, H, T, d]` post-rotary queries of `tokens.places.rows` in layer `layer - 1`.
            key: `[1, G, W, d]` its post-rotary keys.
            scale: its attention's scaling.
        """
        k = list(self.cuts).index(layer)
        if self.plan is not None and torch.equal(self.plan.kept[k], self.plan.kept[k - 1]):
            self.origins[layer] = tokens.origin
            return tokens  # every quota is above what lives: nothing goes

        scores = self._scores(tokens, query, key, scale)
        if self.plan is None:
            first = self._first_cut(self.method, tokens, scores) if self.flops is None else self._fit(tokens, scores)
            self.method, self._grouping, self._quota, self.plan, keep = first
            self._places = self._foresee(self.plan, keep.device)
        else:
            keep = self._keep(tokens, scores, self._quota[k])
        width = self._widths(self.plan)[k]
        tables = () if self.method.renumbers else (tokens.cos, tokens.sin)
        hidden, segment, position, origin, *moved = compact(
            keep, [width], (tokens.hidden, tokens.segment, tokens.position, tokens.origin, *tables), impl=self.impl
        )
        cos, sin = moved or (tokens.cos[:, :width], tokens.sin[:, :width])
        self.origins[layer] = origin
        return Tokens(hidden, cos, sin, segment, position, origin, self._places[k])

    @torch.no_grad()
    def _scores(self, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """`[1, C]` float32 scores of the tokens in `tokens.places.columns`."""
        scores = score(query, key, tokens.places.rows, tokens.places.columns, scale=scale, impl=self.impl)
        return scores if self.average is None else self.average(scores)

    def _keep(self, tokens: Tokens, scores: Tensor, quota: Tensor) -> Tensor:
        """`[1, W]` bool: what stays of `tokens`, where segments may keep `[S]` tokens each."""
        places = tokens.places
        return select(
            scores,
            tokens.segment,
            tokens.position,
            quota.to(scores.device, non_blocking=True)[None],
            positions=self.layout.tokens_per_frame,
            start=places.columns[0],
            begin=None if places.begin is None else places.begin.to(scores.device),
            # after the first cut no position occurs twice in a segment
            deduplicate=self.method.deduplicates and self.plan is None,
            impl=self.impl,
        )

    def _first_cut(self, method: BetweenLayers, tokens: Tokens, scores: Tensor) -> _FirstCut:
        """What a method's first cut keeps, and so how many tokens all that follows will have."""
        grouping = self._grouping if method is self.method else self._group(method)
        keep = self._keep(tokens, scores, grouping.quota[0])
        n, device = self.layout.frames, keep.device
        living = torch.zeros(1, n, dtype=torch.int64, device=device)
        living.scatter_add_(1, tokens.segment.clamp(min=0), (keep & (tokens.segment >= 0)).long())
        quota = torch.cat([living, grouping.quota[1:].to(device, non_blocking=True)]).cummin(0).values  # [K, S]
        return _FirstCut(method, grouping, quota, self._read(grouping, quota), keep)

    def _read(self, grouping: Grouping, quota: Tensor) -> Plan:
        """The one host read: what the first cut kept, and what the report wants to know of the segments."""
        similarity = self._similarity
        if similarity is None:
            similarity = torch.full((self.layout.frames,), float("nan"), device=quota.device)
        parts = [grouping.segment_of_frame[None], similarity[None], grouping.significant[None], quota]
        # fp64 holds every count exactly
        host = torch.cat([part.to(quota.device, torch.float64, non_blocking=True) for part in parts]).cpu()
        segment_of_frame, similar, significant, kept = host.split([1, 1, 1, len(self.cuts)])
        return Plan(segment_of_frame[0].long(), similar[0], significant[0].bool(), kept.long())

    def _fit(self, tokens: Tokens, scores: Tensor) -> _FirstCut:
        """The first cut with the method's knob turned so that the prefill costs `flops`."""
        assert self.flops is not None
        low, high = self.method.knob_range
        best = self._first_cut(self.method.with_knob(high), tokens, scores)
        cost = self._cost(best.plan)
        if cost < self.flops - FLOPS_TOLERANCE:
            self.notes.append(
                f"flops={self.flops:g} is out of reach: what deduplication leaves costs {cost:.4f} at most"
            )
            return best
        while abs(cost - self.flops) > FLOPS_TOLERANCE and high - low > 1e-4:
            middle = (low + high) / 2
            tried = self._first_cut(self.method.with_knob(middle), tokens, scores)
            tried_cost = self._cost(tried.plan)
            low, high = (middle, high) if tried_cost < self.flops else (low, middle)
            if abs(tried_cost - self.flops) < abs(cost - self.flops):
                best, cost = tried, tried_cost
        return best

    def _cost(self, plan: Plan) -> float:
        """FLOPs of the prefill's linear layers over the unpruned one's."""
        prompt, widths = self.layout.length - self.draft, (width - self.draft for width in self._widths(plan))
        return linear_ratio(by_layer(self.layers, prompt, dict(zip(self.cuts, widths, strict=True))), prompt)

    def _foresee(self, plan: Plan, device: torch.device) -> list[Places]:
        """Where everything stands after every cut, computed on the host and sent in one go."""
        # fixed tokens before each segment, and the survivors of those before it
        n = self.layout.frames
        fixed = (self.layout.frame == FIXED).long()
        before_token = torch.nn.functional.pad(fixed.cumsum(0), (1, 0))  # [L + 1]
        before_frame = before_token[segment_begins(self.layout.frame[None], n + 1)[0]]  # [n + 1]
        before = before_frame[segment_begins(plan.segment_of_frame[None], n)[0]]  # [S]
        return self._places_of(self._widths(plan), before + plan.kept.cumsum(1) - plan.kept, device)

    def _widths(self, plan: Plan) -> list[int]:
        """Tokens of the prompt after each cut."""
        return [int(kept) + self._fixed for kept in plan.kept.sum(1)]

    def _places_of(self, widths: Sequence[int], begin: Tensor | None, device: torch.device) -> list[Places]:
        """`Places` for each of K widths, with `[K, S]` begins from the host, in one transfer nothing waits for."""
        rows = torch.tensor(widths)[:, None] - (self.layout.length - self._rows)  # [K, T]
        sent = (rows if begin is None else torch.cat([rows, begin], 1)).to(device, non_blocking=True)
        split = sent.split([rows.shape[1], sent.shape[1] - rows.shape[1]], 1)
        return [
            Places(
                rows=split[0][k][None],
                columns=(self._before, width - self._after),
                begin=None if begin is None else split[1][k][None],
            )
            for k, width in enumerate(widths)
        ]
