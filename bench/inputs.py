"""Inputs of the operations with published shapes: random tensors, and scores with the biases of attention."""

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor

from adatp.evaluation.paper.shapes import MODEL_SHAPES
from adatp_kernels.compact import compact
from adatp_kernels.dispatch import Impl
from adatp_kernels.score import score
from adatp_kernels.select import FIXED, select

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32  # the usual data types
NAMES = {"onevision-0.5b": "OneVision-0.5B", "onevision-7b": "OneVision-7B", "llava-video-7b": "LLaVA-Video-7B"}
# The model for which the numbers of frames and of text rows vary.
BASE = "onevision-7b" if DEVICE.type == "cuda" else "onevision-0.5b"
FRAMES_PER_SEGMENT = 4


@dataclass(frozen=True)
class Case:
    """A prompt: all visual tokens, then all text tokens; `frames` and `text` are the model's own unless given.

    Attributes:
        scores: distribution of the scores: "biased", "uniform" or "equal".
        one_segment: whether the whole video is one segment; else each has four frames.
    """

    model: str
    frames: int = 0
    text: int = 0
    scores: str = "biased"
    one_segment: bool = False

    def __post_init__(self) -> None:
        shape = MODEL_SHAPES[self.model]
        object.__setattr__(self, "frames", self.frames or shape.frames)
        object.__setattr__(self, "text", self.text or shape.text_tokens)

    @property
    def heads(self) -> int:
        return MODEL_SHAPES[self.model].text_config["num_attention_heads"]

    @property
    def key_heads(self) -> int:
        return MODEL_SHAPES[self.model].text_config["num_key_value_heads"]

    @property
    def hidden(self) -> int:
        return MODEL_SHAPES[self.model].text_config["hidden_size"]

    @property
    def dim(self) -> int:
        return self.hidden // self.heads

    @property
    def positions(self) -> int:
        return MODEL_SHAPES[self.model].tokens_per_frame

    @property
    def visual(self) -> int:
        return self.frames * self.positions

    @property
    def length(self) -> int:
        return self.visual + self.text

    @property
    def segments(self) -> int:
        return 1 if self.one_segment else -(-self.frames // FRAMES_PER_SEGMENT)

    def __str__(self) -> str:
        return f"{NAMES[self.model]}, {self.frames} frames"


def random_generator() -> torch.Generator:
    """Return a generator on the host, so that every machine gets the same inputs."""
    return torch.Generator().manual_seed(0)


def biased_scores(frames: int, positions: int, generator: torch.Generator) -> Tensor:
    """Make log-normal scores that add up to 1, with the two biases of the paper (section 3.2).

    Global bias: the first frames, and above all the last ones, get most of the attention. Of 32 frames, the last four
    hold most of the highest tenth. Local bias: a few spatial positions get several times the average in every frame.

    Returns:
        `[frames * positions]` float32.
    """
    value = torch.randn(frames, positions, generator=generator, dtype=torch.float64).exp()
    at = torch.linspace(0, 1, frames, dtype=torch.float64)[:, None]
    value *= 1 + 4 * torch.exp(-16 * at) + 24 * torch.exp(-((1 - at) ** 2) * 64)
    value[:, torch.randperm(positions, generator=generator)[: max(1, positions // 50)]] *= 6
    return (value / value.sum()).flatten().float()


@lru_cache(maxsize=1)
def score_inputs(case: Case) -> SimpleNamespace:
    """Make the arguments of `score`, and the queries of the whole sequence, which eager attention needs."""
    make = random_generator()
    query = torch.randn(1, case.heads, case.length, case.dim, generator=make).to(DEVICE, DTYPE)
    return SimpleNamespace(
        case=case,
        all_queries=query,
        query=query[:, :, case.visual :].contiguous(),
        key=torch.randn(1, case.key_heads, case.length, case.dim, generator=make).to(DEVICE, DTYPE),
        rows=torch.arange(case.visual, case.length, device=DEVICE)[None],
        columns=(0, case.visual),
        scale=case.dim**-0.5,
    )


@lru_cache(maxsize=1)
def select_inputs(case: Case) -> SimpleNamespace:
    """Make the arguments of `select` at a first cut, which keeps 2/5 of each segment before it deduplicates."""
    make = random_generator()
    scores = {
        "biased": lambda: biased_scores(case.frames, case.positions, make),
        "uniform": lambda: torch.rand(case.visual, generator=make, dtype=torch.float64).float(),
        "equal": lambda: torch.full((case.visual,), 1 / case.visual),
    }[case.scores]()
    token, frame = torch.arange(case.length), torch.arange(case.frames)
    segment = frame // (case.frames if case.one_segment else FRAMES_PER_SEGMENT)
    sizes = case.positions * segment.bincount(minlength=case.segments)
    return SimpleNamespace(
        case=case,
        score=scores[None].to(DEVICE),
        segment=segment[None].to(DEVICE),
        begin=case.positions * frame[None].to(DEVICE),
        position=torch.where(token < case.visual, token % case.positions, FIXED)[None].to(DEVICE),
        quota=(0.4 * sizes).long()[None].to(DEVICE),
        positions=case.positions,
        deduplicate=True,
    )


@lru_cache(maxsize=1)
def compact_inputs(case: Case) -> SimpleNamespace:
    """Make the arguments of `compact` as in the engine: hidden states, rotary tables, position and origin."""
    make = random_generator()
    x = select_inputs(case)
    keep = run_select(x, "reference")

    def random(size: int) -> Tensor:
        return torch.empty(1, case.length, size).uniform_(-1, 1, generator=make).to(DEVICE, DTYPE)

    origin = torch.arange(case.length, device=DEVICE)[None]
    return SimpleNamespace(
        case=case,
        keep=keep,
        counts=[int(keep.sum())],
        tensors=[random(case.hidden), random(case.dim), random(case.dim), x.position, origin],
    )


def run_score(x: SimpleNamespace, impl: Impl = "auto") -> Tensor:
    """Compute the `[1, C]` scores of `score_inputs`."""
    return score(x.query, x.key, x.rows, x.columns, scale=x.scale, impl=impl)


def run_select(x: SimpleNamespace, impl: Impl = "auto") -> Tensor:
    """Select from `select_inputs`: `[1, L]` bool, the tokens that stay."""
    keep, _ = select(
        x.score,
        x.position,
        x.begin,
        x.quota,
        positions=x.positions,
        segment=x.segment,
        deduplicate=x.deduplicate,
        impl=impl,
    )
    return keep


def run_compact(x: SimpleNamespace, impl: Impl = "auto") -> list[Tensor]:
    """Return the kept rows of `compact_inputs`."""
    return compact(x.keep, x.counts, x.tensors, impl=impl)
