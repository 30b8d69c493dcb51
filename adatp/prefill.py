"""The cuts of one prompt's prefill as tensor code: before a layer, score -> select -> compact. Knows no model.

The host reads the device once, after the first cut, and from its counts every later size follows: once a spatial
position occurs at most once per segment, a cut keeps exactly its quota, or all there is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from adatp import budget, segments
from adatp.config import AdaTPConfig
from adatp_kernels.compact import compact
from adatp_kernels.dispatch import Impl
from adatp_kernels.score import score
from adatp_kernels.select import FIXED, segment_begins, select


class VideoGrid:
    """The videos of a prompt and the grid of their frames' tokens, as what describes a prompt has them."""

    videos: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def frames(self) -> int:
        """Frames of all videos, n."""
        return sum(self.videos)

    @property
    def tokens_per_frame(self) -> int:
        """Prunable tokens of a frame, c."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class PromptLayout(VideoGrid):
    """Where the videos and the text after them stand in a prompt of L tokens. Host tensors.

    Attributes:
        frame: `[L]` int64: the frame of a prunable visual token, counted through all videos, `FIXED` for a token that
            always stays.
        position: `[L]` int64: index within the frame of a prunable token, 0 elsewhere.
        rows: `[T]` int64: the text tokens after the last video, whose attention scores the visual ones.
        videos: frames of each video.
        grid: rows and columns of a frame's tokens; their product is c.
    """

    frame: Tensor
    position: Tensor
    rows: Tensor
    videos: tuple[int, ...]
    grid: tuple[int, int]

    def check(self) -> None:
        """Raise a ValueError where nothing scores the video's tokens."""
        if self.rows.numel() == 0:
            raise ValueError("a prompt has no text after its video, so nothing can score the video's tokens")

    @property
    def length(self) -> int:
        return self.frame.shape[0]

    @property
    def visual(self) -> Tensor:
        """`[N_v]` int64: the prunable tokens."""
        return (self.frame >= 0).nonzero().flatten()


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


class Prefill:
    """The cuts of one prompt, in order.

    Args:
        config: hyperparameters.
        layers: decoder layers of the model.
        layout: the prompt.
        features: `[n, F]` a feature per frame, for the segments.
        similarity: `[n]` text relevance of every frame, or None: then no segment is significant.
        impl: implementation of the three operations.
        average: makes a rank's `[1, C]` mean scores over its heads those over all heads, where heads are split over
            ranks (tensor parallelism).

    Raises:
        ValueError: no text after the last video.
    """

    def __init__(
        self,
        config: AdaTPConfig,
        layers: int,
        layout: PromptLayout,
        features: Tensor,
        similarity: Tensor | None,
        impl: Impl = "auto",
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        layout.check()
        self.config = config
        self.layout = layout
        self.impl = impl
        self.average = average
        self.cuts = budget.schedule(config, layers)
        self.plan: Plan | None = None
        self.origins: dict[int, Tensor] = {}  # by layer of a cut: `Tokens.origin` after it

        # What stands before the first visual token and after the last always stays, and so does its distance
        # from that end.
        visual = layout.visual
        self._before = int(visual[0])
        self._after = layout.length - 1 - int(visual[-1])
        self._fixed = layout.length - visual.numel()

        features = features[None]  # [1, n, F]
        self._segment_of_frame = (
            segments.partition(features, config.tau_s, layout.videos)
            if config.segments
            else torch.zeros(features.shape[:2], dtype=torch.int64, device=features.device)
        )
        self.compared = similarity is not None
        self._similarity = None if similarity is None else similarity[None]
        self._significant = torch.zeros_like(self._segment_of_frame, dtype=torch.bool)
        if self._similarity is not None:
            self._significant = segments.mean_per_segment(self._similarity, self._segment_of_frame) > config.tau_t
        self._quota = budget.quotas(
            list(self.cuts.values()),
            segments.frames_per_segment(self._segment_of_frame),
            self._significant,
            layout.tokens_per_frame,
            config,
        )[0]  # [K, S]
        self._places: list[Places] = []  # after every cut

    def tokens(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tokens:
        """The uncut prompt: `[1, L, D]` hidden states and `[1, L, d]` rotary tables."""
        layout, device = self.layout, hidden.device
        frame = layout.frame.to(device, non_blocking=True)[None]
        segment = torch.where(frame >= 0, self._segment_of_frame.to(device).gather(1, frame.clamp(min=0)), frame)
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

        keep = self._keep(tokens, query, key, scale, self._quota[k].to(tokens.hidden.device))
        if self.plan is None:
            self.plan = self._read(keep, tokens.segment)
            self._places = self._foresee(self.plan, keep.device)
        hidden, cos, sin, segment, position, origin = compact(
            keep,
            [self._widths(self.plan)[k]],
            (tokens.hidden, tokens.cos, tokens.sin, tokens.segment, tokens.position, tokens.origin),
            impl=self.impl,
        )
        self.origins[layer] = origin
        return Tokens(hidden, cos, sin, segment, position, origin, self._places[k])

    @torch.no_grad()
    def _keep(self, tokens: Tokens, query: Tensor, key: Tensor, scale: float, quota: Tensor) -> Tensor:
        """`[1, W]` bool: what stays of `tokens`."""
        places = tokens.places
        scores = score(query, key, places.rows, places.columns, scale=scale, impl=self.impl)
        if self.average is not None:
            scores = self.average(scores)
        return select(
            scores,
            tokens.segment,
            tokens.position,
            quota[None],
            positions=self.layout.tokens_per_frame,
            start=places.columns[0],
            begin=None if places.begin is None else places.begin.to(scores.device),
            # after the first cut no position occurs twice in a segment
            deduplicate=self.config.local_debias and self.plan is None,
            impl=self.impl,
        )

    def _read(self, keep: Tensor, segment: Tensor) -> Plan:
        """The one host read: what the first cut kept, and what the report wants to know of the segments."""
        n = self.layout.frames
        living = torch.zeros(1, n, dtype=torch.int64, device=keep.device)
        living.scatter_add_(1, segment.clamp(min=0), (keep & (segment >= 0)).long())
        self._quota = torch.cat([living, self._quota[1:].to(keep.device)]).cummin(0).values  # [K, S]
        similarity = self._similarity
        if similarity is None:
            similarity = torch.full((1, n), float("nan"), device=keep.device)
        parts = [self._segment_of_frame, similarity, self._significant, self._quota]
        # fp64 holds every count exactly
        host = torch.cat([part.to(keep.device, torch.float64) for part in parts]).cpu()
        segment_of_frame, similar, significant, kept = host.split([1, 1, 1, len(self.cuts)])
        return Plan(segment_of_frame[0].long(), similar[0], significant[0].bool(), kept.long())

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
        rows = torch.tensor(widths)[:, None] - (self.layout.length - self.layout.rows)  # [K, T]
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
