"""AdaTP: attention-debiased token pruning (arXiv 2505.20100)."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adatp.checks.values import require
from adatp.errors import InputError
from adatp.layout import PromptLayout
from adatp.methods.budget import quotas, round_half_up
from adatp.methods.method import BetweenLayers, Grouping
from adatp.methods.segments import mean_per_segment, partition, total_per_segment
from adatp.tensors.transfer import send


@dataclass(frozen=True, kw_only=True)
class AdaTP(BetweenLayers):
    """AdaTP and its settings. The defaults are those of the paper (section 4.1).

    Layers are counted from 0; the input of layer l is the set of tokens that enter decoder layer l. Ratios are shares
    of the video's visual tokens.

    Attributes:
        p: Compression setting, > 0, a factor of every ratio; the paper uses 2.0, 1.5 and 1.0.
        first: First layer with a pruned input, >= 1. Layer `first - 1` scores the first cut (section 4.1: 2).
        last: Last layer of the gradual schedule, >= `first`; inputs of the layers after it stay at `p * end_ratio`.
            None means N - 12 in a model with N layers (section 4.1; Tab. 3 varies it).
        start_ratio: Ratio at the input of layer `first` for p = 1, in (0, 1] (section 4.1: 0.40).
        end_ratio: Ratio at the inputs of the layers after `last` for p = 1, in (0, start_ratio] (section 4.1: 0.12).
        tau_s: Cosine similarity from which adjacent frames share a segment, in [-1, 1] (section 3.3; 0.95).
        tau_t: Mean text relevance that a significant segment exceeds, in [-1, 1] (section 3.3; 0.05).
        alpha: Boost of the ratio of significant segments, >= 1 and finite (eq. 4; 2.2).
        gamma: Largest share of the budget that significant segments take, in (0, 1] (eq. 4; 0.75).
        segments: Whether frames are grouped into segments; if not, the whole video is one segment (Tab. 2, "Seg.").
        global_debias: Whether significant segments keep more tokens (Tab. 2, "Global.D").
        local_debias: Whether only one token stays per spatial position and segment (Tab. 2, "Local.D").

    Raises:
        InputError: a setting is outside its range.
    """

    name: ClassVar[str] = "adatp"
    source: ClassVar[str] = "arXiv 2505.20100"
    knob: ClassVar[str] = "p"

    p: float = 1.0
    first: int = 2
    last: int | None = None
    start_ratio: float = 0.40
    end_ratio: float = 0.12
    tau_s: float = 0.95
    tau_t: float = 0.05
    alpha: float = 2.2
    gamma: float = 0.75
    segments: bool = True
    global_debias: bool = True
    local_debias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.start_ratio <= 1, "start_ratio", self.start_ratio, "in (0, 1]")
        require(0 < self.end_ratio <= self.start_ratio, "end_ratio", self.end_ratio, "in (0, start_ratio]")
        limit = min(1 / self.start_ratio, sys.float_info.max)
        require(0 < self.p <= limit, "p", self.p, f"in (0, {limit:g}], so that p * start_ratio is at most 1")
        require(self.first >= 1, "first", self.first, "at least 1: layer first - 1 scores the first cut")
        require(self.last is None or self.last >= self.first, "last", self.last, f"at least first = {self.first}")
        require(-1 <= self.tau_s <= 1, "tau_s", self.tau_s, "a cosine, in [-1, 1]")
        require(-1 <= self.tau_t <= 1, "tau_t", self.tau_t, "a cosine, in [-1, 1]")
        require(1 <= self.alpha < math.inf, "alpha", self.alpha, "a finite number, at least 1")
        require(0 < self.gamma <= 1, "gamma", self.gamma, "in (0, 1]")

    @property
    def knob_range(self) -> tuple[float, float]:
        return 0.0, 1 / self.start_ratio

    @property
    def wants_frames(self) -> bool:
        return self.segments or self.global_debias

    @property
    def wants_question(self) -> bool:
        return self.global_debias

    @property
    def deduplicates(self) -> bool:
        return self.local_debias

    def check(self, layers: int) -> None:
        self.last_of(layers)

    def last_of(self, layers: int) -> int:
        """Return the last layer of the gradual schedule in a model with `layers` decoder layers.

        Raises:
            InputError: the model has too few layers for the schedule.
        """
        last = layers - 12 if self.last is None else self.last
        if self.last is None and (layers <= 14 or last < self.first):
            raise InputError(
                f"the model has {layers} decoder layers, too few for the default schedule (layers {self.first} to "
                f"N - 12); set AdaTP(last=...) to a layer from {self.first} to {layers - 1}"
            )
        if last >= layers:
            raise InputError(f"last must be a layer of the model, at most {layers - 1}, got {last}")
        return last

    def cuts(self, layers: int) -> dict[int, float]:
        """Compute the retention ratio of every layer with a cut before it, by layer (section 4.1).

        The cuts lie before layers `first .. last + 1`. After the first one, each cut lowers the ratio by the same
        amount. The tokens that enter layer `last + 1` stay to the end.
        """
        first, last = self.first, self.last_of(layers)
        step = (self.start_ratio - self.end_ratio) / (last - first + 1)
        cuts = {layer: self.p * (self.start_ratio - step * (layer - first)) for layer in range(first, last + 1)}
        if last + 1 < layers:
            cuts[last + 1] = self.p * self.end_ratio
        return cuts

    def tokens(self, ratio: float, visual_tokens: int) -> int:
        return int(round_half_up(torch.tensor(ratio * visual_tokens, dtype=torch.float64)))

    def group(
        self, ratios: Sequence[float], layout: PromptLayout, frames: Tensor | None, similarity: Tensor | None
    ) -> Grouping:
        """Compute the segments (section 3.3), which of them are significant (eq. 3), and their quotas (eq. 4 and 5)."""
        if self.segments:
            assert frames is not None
            segment_of_frame = partition(frames, self.tau_s, [video.frames for video in layout.videos])
        else:
            device = None if frames is None else frames.device
            segment_of_frame = torch.zeros(layout.frames, dtype=torch.int64, device=device)
        significant = torch.zeros_like(segment_of_frame, dtype=torch.bool)
        if similarity is not None:
            significant = mean_per_segment(similarity, segment_of_frame) > self.tau_t
        unit = layout.unit
        sizes = send(torch.tensor(layout.frame_tokens) // unit, segment_of_frame.device)
        quota = quotas(
            ratios,
            total_per_segment(sizes, segment_of_frame),
            significant,
            unit,
            alpha=self.alpha,
            gamma=self.gamma,
        )
        return Grouping(segment_of_frame, significant, quota)
