"""One pruned prefill as tensor code: before a layer, score -> select -> compact. Knows nothing of any model.

The host reads the device once, after the first cut, and from its counts every later size follows: once a spatial
position occurs at most once per segment, a cut keeps exactly its quota, or all there is.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatp import budget, segments
from adatp.config import AdaTPConfig
from adatp_kernels.compact import compact
from adatp_kernels.dispatch import Impl
from adatp_kernels.score import score
from adatp_kernels.select import FIXED, PADDING, segment_begins, select


@dataclass(frozen=True)
class PromptLayout:
    """Where the video, the text after it and the padding stand in a batch of B prompts of L tokens. Host tensors.

    Attributes:
        frame: `[B, L]` int64: the frame of a prunable visual token, `FIXED` for a token that always stays, `PADDING`
            for none.
        position: `[B, L]` int64: index within the frame of a prunable token, 0 elsewhere.
        text: `[B, L]` bool: the prompt's text tokens that follow the video, whose attention scores it.
        frames: n of the longest video.
        tokens_per_frame: c.
    """

    frame: Tensor
    position: Tensor
    text: Tensor
    frames: int
    tokens_per_frame: int

    def has_video(self) -> Tensor:
        """`[B]` bool: the samples with a video."""
        return (self.frame >= 0).any(1)

    def visual_tokens(self) -> list[int]:
        """Prunable tokens N_v of each sample."""
        return _ints((self.frame >= 0).sum(1))

    def fixed_tokens(self) -> list[int]:
        """Tokens of each sample that always stay."""
        return _ints((self.frame == FIXED).sum(1))


@dataclass
class Tokens:
    """What enters a layer: B samples of W tokens, padded on the left.

    Attributes:
        hidden: `[B, W, D]`.
        cos, sin: `[B, W, d]` rotary tables of the tokens' original positions.
        segment: `[B, W]` int64, `FIXED` and `PADDING` as in `PromptLayout.frame`.
        position: `[B, W]` int64 spatial position.
        origin: `[B, W]` int64 index in the whole prompt, `PADDING` in padding.
        counts: tokens of each sample, padding not counted.
        places: where to find what a cut looks for among them.
    """

    hidden: Tensor
    cos: Tensor
    sin: Tensor
    segment: Tensor
    position: Tensor
    origin: Tensor
    counts: list[int]
    places: "Places"

    @property
    def width(self) -> int:
        return self.hidden.shape[1]

    @property
    def padding(self) -> list[int]:
        """Left padding of each sample."""
        return [self.width - count for count in self.counts]


@dataclass(frozen=True)
class Places:
    """Slots of a batch, on the device.

    Attributes:
        rows: `[B, T]` int64: the text rows, -1 for a row not in use.
        first_token: `[B]` int64: each sample's first token; None where no sample is padded.
        begin: `[B, S]` int64: where each segment begins, as `select` takes it; None as long as the host does not know.
    """

    rows: Tensor
    first_token: Tensor | None
    begin: Tensor | None


@dataclass(frozen=True)
class Plan:
    """What the one host read brings: enough to size every layer. Host values; S slots, as many as frames.

    Attributes:
        segment_of_frame: `[B, n]` int64.
        similarity: `[B, n]` float64 text relevance (eq. 3); NaN where it was not computed.
        significant: `[B, S]` bool.
        kept: `[B, K, S]` int64 tokens of every segment after each of the K cuts.
    """

    segment_of_frame: Tensor
    similarity: Tensor
    significant: Tensor
    kept: Tensor


class Prefill:
    """The cuts of one prefill, in order.

    Args:
        config: hyperparameters.
        layers: decoder layers of the model.
        layout: the prompts.
        features: `[B, n, F]` a feature per frame, for the segments.
        similarity: `[B, n]` text relevance of every frame, or None: then no segment is significant.
        impl: implementation of the three operations.

    Raises:
        ValueError: a sample with a video but without text after it.
    """

    def __init__(
        self,
        config: AdaTPConfig,
        layers: int,
        layout: PromptLayout,
        features: Tensor,
        similarity: Tensor | None,
        impl: Impl = "auto",
    ) -> None:
        self.config = config
        self.layout = layout
        self.impl = impl
        self.cuts = budget.schedule(config, layers)
        self.plan: Plan | None = None
        self.origins: dict[int, Tensor] = {}  # by layer of a cut: `Tokens.origin` after it

        device = features.device
        visual, text = layout.frame >= 0, layout.text
        has_video = layout.has_video()
        if bool((has_video & ~text.any(1)).any()):
            raise ValueError("a prompt has no text after its video, so nothing can score the video's tokens")
        length = layout.frame.shape[1]
        # Everything after the video stays to the end, so its distance from the end never changes.
        present = layout.frame != PADDING
        last_visual = torch.where(visual, torch.arange(length), -1).amax(1, keepdim=True)
        self._before = _ints((present & (visual.cumsum(1) == 0)).sum(1))
        self._after = _ints((present & (torch.arange(length) > last_visual)).sum(1))
        self._fixed = layout.fixed_tokens()
        self._has_video = has_video.tolist()
        self._rows_from_end = _rows_from_end(text)
        self._device = device

        n = features.shape[1]
        self._segment_of_frame = (
            segments.partition(features, config.tau_s)
            if config.segments
            else torch.zeros(features.shape[:2], dtype=torch.int64, device=device)
        )
        self._similarity = similarity
        self._significant = torch.zeros(features.shape[0], n, dtype=torch.bool, device=device)
        if similarity is not None:
            self._significant = segments.mean_per_segment(similarity, self._segment_of_frame) > config.tau_t
        self._quota = _by_cut(
            budget.quotas(
                list(self.cuts.values()),
                segments.frames_per_segment(self._segment_of_frame),
                self._significant,
                layout.tokens_per_frame,
                config,
            )
        )
        self._places: list[Places] = []  # after every cut

    def tokens(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tokens:
        """The uncut prompt: `[B, L, D]` hidden states and `[B or 1, L, d]` rotary tables."""
        batch, length = hidden.shape[:2]
        frame = self.layout.frame.to(hidden.device, non_blocking=True)
        segment = torch.where(frame >= 0, self._segment_of_frame.gather(1, frame.clamp(min=0)), frame)
        counts = _ints((self.layout.frame != PADDING).sum(1))
        padding = torch.tensor([length - count for count in counts])
        (places,) = self._on_device([self._rows(length)], [padding], None)
        return Tokens(
            hidden=hidden,
            cos=cos.expand(batch, -1, -1),
            sin=sin.expand(batch, -1, -1),
            segment=segment,
            position=self.layout.position.to(hidden.device, non_blocking=True),
            origin=torch.arange(length, device=hidden.device).expand(batch, -1),
            counts=counts,
            places=places,
        )

    def cut(self, layer: int, tokens: Tokens, query: Tensor, key: Tensor, scale: float) -> Tokens:
        """What enters `layer`, given what the layer before it has put out.

        Args:
            layer: one of `self.cuts`, each once and in order.
            tokens: the output of layer `layer - 1`.
            query: `[B, H, T, d]` post-rotary queries of `tokens.places.rows` in layer `layer - 1`.
            key: `[B, G, W, d]` its post-rotary keys.
            scale: its attention's scaling.
        """
        k = list(self.cuts).index(layer)
        if self.plan is not None and bool((self.plan.kept[:, k] == self.plan.kept[:, k - 1]).all()):
            self.origins[layer] = tokens.origin
            return tokens  # every quota is above what lives: nothing goes

        keep = self._keep(tokens, query, key, scale, self._quota[k])
        if self.plan is None:
            self.plan = self._read(keep, tokens.segment)
            self._places = self._foresee(self.plan)
        counts = _ints(self._counts(self.plan)[:, k])
        moved = compact(
            keep,
            counts,
            (tokens.hidden, tokens.cos, tokens.sin, tokens.segment, tokens.position, tokens.origin),
            impl=self.impl,
        )
        hidden, cos, sin, segment, position, origin = moved
        self.origins[layer] = origin
        return replace(
            tokens,
            hidden=hidden, cos=cos, sin=sin, segment=segment, position=position, origin=origin,
            counts=counts, places=self._places[k],
        )  # fmt: skip

    @torch.no_grad()
    def _keep(self, tokens: Tokens, query: Tensor, key: Tensor, scale: float, quota: Tensor) -> Tensor:
        """`[B, W]` bool: what stays of `tokens`."""
        columns, places = self._columns(tokens), tokens.places
        scores = score(query, key, places.rows, columns, scale=scale, first_key=places.first_token, impl=self.impl)
        return select(
            scores,
            tokens.segment,
            tokens.position,
            quota,
            positions=self.layout.tokens_per_frame,
            start=columns[0],
            begin=places.begin,
            # after the first cut no position occurs twice in a segment
            deduplicate=self.config.local_debias and self.plan is None,
            impl=self.impl,
        )

    def _columns(self, tokens: Tokens) -> tuple[int, int]:
        """The smallest range of `tokens` with every sample's prunable tokens in it."""
        starts, stops = [], []
        for video, pad, before, after in zip(self._has_video, tokens.padding, self._before, self._after, strict=True):
            if video:
                starts.append(pad + before)
                stops.append(tokens.width - after)
        return (min(starts), max(stops)) if starts else (0, 0)

    def _read(self, keep: Tensor, segment: Tensor) -> Plan:
        """The one host read: what the first cut kept, and what the report wants to know of the segments."""
        batch, n = self._segment_of_frame.shape
        living = torch.zeros(batch, n, dtype=torch.int64, device=keep.device)
        living.scatter_add_(1, segment.clamp(min=0), (keep & (segment >= 0)).long())
        kept = torch.cat([living[None], self._quota[1:]]).cummin(0).values  # [K, B, S]
        self._quota = kept
        kept = _by_cut(kept)  # [B, K, S]
        similarity = self._similarity
        if similarity is None:
            similarity = torch.full((batch, n), float("nan"), device=keep.device)
        parts = [self._segment_of_frame, similarity, self._significant, kept.flatten(1)]
        # fp64 holds every count exactly
        host = torch.cat([part.double() for part in parts], 1).cpu()
        segment_of_frame, similar, significant, counts = host.split([n, n, n, kept.shape[1] * n], 1)
        return Plan(segment_of_frame.long(), similar, significant.bool(), counts.long().view(kept.shape))

    def _foresee(self, plan: Plan) -> list[Places]:
        """Where everything stands after every cut, computed on the host and sent in one go."""
        counts = self._counts(plan)
        width = counts.amax(0)  # [K]
        padding = (width - counts).T  # [K, B]
        # fixed tokens before each segment, and the survivors of those before it
        n = plan.segment_of_frame.shape[1]
        fixed = (self.layout.frame == FIXED).long()
        before_token = torch.nn.functional.pad(fixed.cumsum(1), (1, 0))  # [B, L + 1]
        before_frame = before_token.gather(1, segment_begins(self.layout.frame, n + 1))  # [B, n + 1]
        before = before_frame.gather(1, segment_begins(plan.segment_of_frame, n))  # [B, S]
        begin = padding[:, :, None] + before + _by_cut(plan.kept.cumsum(2) - plan.kept)  # [K, B, S]
        return self._on_device([self._rows(int(w)) for w in width], list(padding), list(begin))

    def _counts(self, plan: Plan) -> Tensor:
        """`[B, K]` on the host: tokens of each sample after each cut."""
        return plan.kept.sum(2) + torch.tensor(self._fixed)[:, None]

    def _rows(self, width: int) -> Tensor:
        """`[B, T]` on the host: where the text rows stand among `width` slots."""
        return torch.where(self._rows_from_end > 0, width - self._rows_from_end, -1)

    def _on_device(self, rows: list[Tensor], padding: list[Tensor], begin: list[Tensor] | None) -> list[Places]:
        """`Places` for each of several widths, from host tensors, in one transfer that nothing waits for."""
        parts = [torch.stack(rows), torch.stack(padding)[:, :, None]] + ([] if begin is None else [torch.stack(begin)])
        # every part contiguous for itself
        sent = torch.cat([part.flatten() for part in parts]).to(self._device, non_blocking=True)
        split = [t.view(p.shape) for t, p in zip(sent.split([p.numel() for p in parts]), parts, strict=True)]
        return [
            Places(
                rows=split[0][k],
                first_token=split[1][k, :, 0] if bool(padding[k].any()) else None,
                begin=None if begin is None else split[2][k],
            )
            for k in range(len(rows))
        ]


def _by_cut(values: Tensor) -> Tensor:
    """`[B, K, S]` to `[K, B, S]` and back, each cut contiguous for itself."""
    return values.transpose(0, 1).contiguous()


def _rows_from_end(text: Tensor) -> Tensor:
    """`[B, L]` bool to `[B, T]` int64 distances from the end (1 is the last token), 0 where a sample has fewer."""
    length = text.shape[1]
    width = max(1, int(text.sum(1).max()))
    distance = torch.where(text, length - torch.arange(length), 0)
    return distance.sort(1, descending=True).values[:, :width]


def _ints(values: Tensor) -> list[int]:
    return [int(value) for value in values]
