"""The cuts of one prompt's prefill as tensor code, for any model. A cut before a layer is score -> select -> compact.

The host reads the device once, after the first cut. All later sizes follow from that read: after the first cut a
spatial position occurs at most once per segment, so a cut keeps exactly its quota, or all tokens if there are fewer.
There is one exception. With `flops`, the cost depends on deduplication, and so on the video. Then the first cut is
tried at several settings, and the host reads the device once for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adatp.engine.scoring import Scoring
from adatp.engine.tokens import Places, Tokens
from adatp.flops import linear_ratio
from adatp.layout import PromptLayout, by_layer
from adatp.methods.method import BetweenLayers, Grouping
from adatp.tensors.transfer import send
from adatp_kernels.compact import compact
from adatp_kernels.select import FIXED, select

FLOPS_TOLERANCE = 0.0005  # of a share that was asked for
DEFAULT = Scoring()


@dataclass(frozen=True)
class Plan:
    """The result of the one host read. It gives the size of every layer. Host values; S slots, as many as frames.

    Attributes:
        method: the method that is applied; with `flops`, at the setting that was found.
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
    """The result of the first cut; `quota` `[K, S]` is `Plan.kept` on the device, `keep` is `[1, W]` bool."""

    quota: Tensor
    plan: Plan
    keep: Tensor


class Cuts:
    """The cuts of one prompt, in order.

    Args:
        method: chooses the tokens that are kept, and the layers with a cut before them.
        layers: number of decoder layers of the model, N.
        layout: the layout of the prompt.
        frames: `[n, F]` one feature per frame; None if the method wants none.
        similarity: `[n]` text relevance of every frame. With None no segment is significant.
        scoring: how scores are computed, and the implementation of the three operations.
        flops: target cost of the prefill, as a share of the unpruned prefill's FLOPs (linear layers); None if the
            settings of `method` already give the cost.
        draft: number of tokens at the end of `layout` that follow the prompt; they do not count in its cost.
        may_renumber: whether the model's positions can be renumbered, if the method does that.

    Attributes:
        method, layers, layout: the arguments.
        renumbers: whether the kept tokens get consecutive positions.
        ratios: for every layer with a cut before it, in order: the share of the visual tokens that may enter it.
        plan: the result of the first cut; None before it.
        origins: for every layer with a cut before it: `Tokens.origin` after the cut.
        notes: notes for the user.

    Raises:
        Unsupported: there is no text after the last video.
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
        may_renumber: bool = True,
    ) -> None:
        layout.check()
        self.method = method
        self.renumbers = method.renumbers and may_renumber
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
        # one entry per cut, known after the first cut
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
    def left(self) -> Tensor | None:
        """`[W]` int64 index in the whole prompt of each token after the last cut made; None before the first one."""
        return self.origins[max(self.origins)][0] if self.origins else None

    @property
    def awaited(self) -> list[Tensor]:
        """The tensors that only the first cut reads: no layer before it needs them."""
        return [part for part in (self._frames, self._similarity, *self._grouping) if part is not None]

    def _group(self, method: BetweenLayers) -> Grouping:
        ratios = list(method.cuts(self.layers).values())
        return method.group(ratios, self.layout, self._frames, self._similarity)

    def tokens(self, hidden: Tensor, *tables: Tensor) -> Tokens:
        """Return the tokens of the uncut prompt.

        Args:
            hidden: `[1, L, D]` hidden states, or `[1, L]` their indices.
            tables: rotary tables, cos and sin `[1, L, d]`; none with indices.
        """
        layout, device = self.layout, hidden.device
        begin = send(torch.tensor([layout.begins]), device)  # [1, n]
        position = torch.full((1, layout.length), FIXED, device=device)
        own = begin.split([video.frames for video in layout.videos], 1)
        for begins, video in zip(own, layout.videos, strict=True):
            within = torch.arange(video.grid.tokens, device=device)
            position.scatter_(1, (begins[..., None] + within).flatten(1), within.repeat(video.frames)[None])
        return Tokens(
            hidden=hidden,
            tables=tables,
            position=position,
            origin=torch.arange(layout.length, device=device)[None],
            places=Places(send(self.method.rows(layout), device)[None], self._columns(layout.length), begin),
        )

    def cut(self, layer: int, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tokens:
        """Make the cut before `layer`, and return the tokens that enter it.

        Args:
            layer: a key of `ratios`; every one is called once, in order.
            tokens: the output of layer `layer - 1`.
            query: `[1, H, T, d]` post-rotary queries of `tokens.places.rows` in layer `layer - 1`.
            key: `[1, G, W, d]` post-rotary keys of that layer.
            scale: factor of that layer's attention logits.
        """
        k = list(self.ratios).index(layer)
        if k and self._widths[k] == self._widths[k - 1]:
            self.origins[layer] = tokens.origin
            return tokens  # no segment has more tokens than its quota: the cut drops nothing

        scores = self._scores(tokens, query, key, scale)
        if k:
            keep, _ = self._keep(tokens, scores, self._quotas[k].to(scores.device))
        else:
            keep = self._make_first_cut(tokens, scores)
        width = self._widths[k]
        tables = () if self.renumbers else tokens.tables
        hidden, position, origin, *moved = compact(
            keep, [width], (tokens.hidden, tokens.position, tokens.origin, *tables), impl=self._scoring.impl
        )
        if not k:  # the host works while the device compacts
            self._places = self._foresee(tokens.places.rows)
        self.origins[layer] = origin
        tables = tuple(moved) if moved else tuple(table[:, :width] for table in tokens.tables)
        return Tokens(hidden, tables, position, origin, self._places[k].to(hidden.device))

    @torch.no_grad()
    def _scores(self, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """Return `[1, C]` float32 scores of the tokens in `tokens.places.columns`."""
        return self._scoring(query, key, tokens.places.rows, tokens.places.columns, scale=scale)

    def _keep(
        self, tokens: Tokens, scores: Tensor, quota: Tensor, segment: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return which of `tokens` are kept, `[1, W]` bool, and how many of each segment, `[1, S]` int64.

        Args:
            tokens: the tokens before the cut.
            scores: `[1, C]` their scores.
            quota: `[1, S]` tokens that each segment may keep.
            segment: `[1, n]` segment of each frame, for the first cut; None for later cuts.
        """
        return select(
            scores,
            tokens.position,
            tokens.places.begin,
            quota,
            positions=max(self.layout.frame_tokens),
            start=tokens.places.columns[0],
            segment=segment,
            # after the first cut no position occurs twice in a segment
            deduplicate=self.method.deduplicates and segment is not None,
            impl=self._scoring.impl,
        )

    def _make_first_cut(self, tokens: Tokens, scores: Tensor) -> Tensor:
        """Return `[1, W]` bool, the tokens that the first cut keeps; set `plan` and the quotas of all later cuts."""
        first = self._first_cut(self.method, tokens, scores) if self._flops is None else self._fit(tokens, scores)
        self.plan = first.plan
        self._widths, self._quotas = self._widths_of(self.plan), first.quota.split(1)
        return first.keep

    def _first_cut(self, method: BetweenLayers, tokens: Tokens, scores: Tensor) -> _FirstCut:
        """Make the first cut of `method`; its counts give the number of tokens in every later layer."""
        grouping = self._grouping if method is self.method else self._group(method)
        device = scores.device
        quota = send(grouping.quota, device)
        keep, kept = self._keep(tokens, scores, quota[:1], send(grouping.segment_of_frame, device)[None])
        quota = torch.cat([kept, quota[1:]]).cummin(0).values  # [K, S]
        return _FirstCut(quota, self._read(method, grouping, quota), keep)

    def _read(self, method: BetweenLayers, grouping: Grouping, quota: Tensor) -> Plan:
        """Read the device once: the counts of the first cut, and the values of the segments for the report."""
        if self._similarity is None:
            similarity = quota.new_full((1, self.layout.frames), float("nan"), dtype=torch.float64)
        else:
            similarity = self._similarity[None].to(quota.device, torch.float64)
        parts = [send(part, quota.device)[None] for part in (grouping.segment_of_frame, grouping.significant)]
        host = torch.cat([similarity, *parts, quota]).cpu()  # all in fp64, which holds every count exactly
        similar, segment_of_frame, significant, kept = host.split([1, 1, 1, len(self.ratios)])
        return Plan(method, segment_of_frame[0].long(), similar[0], significant[0].bool(), kept.long())

    def _fit(self, tokens: Tokens, scores: Tensor) -> _FirstCut:
        """Make the first cut at the value of the method's knob for which the prefill costs `flops`."""
        assert self._flops is not None
        low, high = self.method.knob_range
        best = self._first_cut(self.method.with_knob(high), tokens, scores)
        cost = self._cost(best.plan)
        if cost < self._flops - FLOPS_TOLERANCE:
            self.notes.append(
                f"flops={self._flops:g} is out of reach: after deduplication this video costs {cost:.4f} at most"
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
        """Return the FLOPs of the prefill's linear layers, divided by those of the unpruned prefill."""
        prompt, widths = self.layout.length - self._draft, (width - self._draft for width in self._widths_of(plan))
        return linear_ratio(by_layer(self.layers, prompt, dict(zip(self.ratios, widths, strict=True))), prompt)

    def _widths_of(self, plan: Plan) -> list[int]:
        """Return the number of tokens of the prompt after each cut."""
        return [int(kept) + self._fixed for kept in plan.kept.sum(1).tolist()]

    def _columns(self, width: int) -> tuple[int, int]:
        """Return the range of the prunable tokens among `width`; no cut drops the text before and after them."""
        return self.layout.begins[0], width - (self.layout.length - self.layout.end)

    def _foresee(self, rows: Tensor) -> list[Places]:
        """Compute the places after every cut on the host, and send them in one transfer that nothing waits for.

        Args:
            rows: `[1, T]` the text rows of the uncut prompt, on the device.
        """
        assert self.plan is not None
        fixed = [self._fixed] * self.layout.frames  # fixed tokens before each segment; all of them in empty slots
        frames = zip(self.plan.segment_of_frame.tolist(), self.layout.begins, self.layout.tokens_before, strict=True)
        for segment, begin, prunable in reversed(list(frames)):
            fixed[segment] = begin - prunable
        kept = self.plan.kept
        begins = torch.tensor(fixed) + kept.cumsum(1) - kept  # [K, S]
        moved = torch.tensor([[width - self.layout.length] for width in self._widths])  # [K, 1]
        sent = send(torch.cat([moved, begins], 1), rows.device)
        parts = zip((rows + sent[:, :1]).split(1), sent[:, 1:].split(1), self._widths, strict=True)
        return [Places(own, self._columns(width), begin) for own, begin, width in parts]
